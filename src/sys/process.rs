//! What this process uses, from /proc and getrusage(2).

use std::fs;
use std::time::Duration;

/// A look at the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Open descriptors.
    pub open_fds: u64,
    /// RLIMIT_NOFILE, soft.
    pub max_fds: u64,
    /// VmRSS, in bytes.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// User and system time.
    pub cpu: Duration,
    /// Connections of this network namespace, ours or not, that an accept queue had no room for
    /// (TcpExtListenOverflows).
    pub listen_overflows: u64,
}

/// Reads everything; what cannot be read is 0.
pub fn usage() -> Usage {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    };
    Usage {
        open_fds: open_fds(),
        max_fds: max_fds(),
        resident_bytes: field("VmRSS:") * 1024,
        threads: field("Threads:"),
        cpu: cpu_time(),
        listen_overflows: listen_overflows(
            &fs::read_to_string("/proc/self/net/netstat").unwrap_or_default(),
        ),
    }
}

/// Of the text of /proc/PID/net/netstat: a line of names for each line of numbers (see nstat(8)).
fn listen_overflows(netstat: &str) -> u64 {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
        return 0;
    };
    let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
    let found = pairs.find(|(name, _)| *name == "ListenOverflows");
    found
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(0)
}

/// Descriptors open now; the one that reads the directory is not counted.
pub fn open_fds() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1) as u64)
}

/// RLIMIT_NOFILE, soft.
pub fn max_fds() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}

/// Raises the soft limit on descriptors to the hard one. Returns the new soft limit.
pub fn raise_max_fds() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit that outlives the call.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
    max_fds()
}

fn cpu_time() -> Duration {
    // SAFETY: rusage is plain old data for which all zeroes is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid rusage that outlives the call.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return Duration::ZERO;
    }
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflows_are_found_by_their_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 23 45\n\
                    IpExt: ListenOverflows\nIpExt: 9\n";
        assert_eq!(listen_overflows(text), 23);
        assert_eq!(listen_overflows("TcpExt: A\nTcpExt: 1\n"), 0);
        assert_eq!(listen_overflows(""), 0);
        let real = fs::read_to_string("/proc/self/net/netstat").expect("this kernel has it");
        assert!(real.contains(" ListenOverflows "));
    }
}
