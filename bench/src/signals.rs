//! Signals to a process that the caller started, without unsafe code.

use std::io;

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// Sends a signal; fails if there is no such process.
pub fn send(process_id: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(process_id).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_a_process_and_nobody_is_process_zero() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        send(child.id(), Signal::TERM).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(send(0, Signal::TERM).is_err());
    }
}
