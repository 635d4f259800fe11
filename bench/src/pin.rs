//! A thread's CPU: load generator and servers must not wander onto the CPU of the proxy under test.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Binds the calling thread to one CPU, numbered as in `/proc/cpuinfo`. Fails if there is no such
/// CPU, or if the process may not use it.
pub fn this_thread(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("there is no CPU {cpu}"),
        ));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn a_pinned_thread_may_use_one_cpu_and_an_absent_one_is_an_error() {
        let allowed = sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU)
            .rfind(|cpu| allowed.is_set(*cpu))
            .unwrap();
        let thread = std::thread::spawn(move || {
            this_thread(last).unwrap();
            let now = sched_getaffinity(None).unwrap();
            assert_eq!(now.count(), 1);
            assert!(now.is_set(last));
            assert!(this_thread(CpuSet::MAX_CPU).is_err());
        });
        thread.join().unwrap();
    }
}
