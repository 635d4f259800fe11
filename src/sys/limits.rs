//! What the kernel allows this process: resource limits, capabilities, the kernel's version, and the
//! sysctls that matter to a proxy.
//!
//! Reads only, and reports what it found; whether that is enough is judged in `doctor` and at start.
//! What the process *uses* is in [`super::process`].

use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A soft and a hard resource limit; see getrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The one in force.
    pub soft: u64,
    /// How far this process may raise the soft one.
    pub hard: u64,
}

impl Limit {
    /// "unlimited".
    pub const UNLIMITED: u64 = libc::RLIM_INFINITY;
}

/// RLIMIT_NOFILE: one above the highest descriptor number.
///
/// # Errors
/// As getrlimit(2); it does not fail on Linux.
pub fn open_files() -> io::Result<Limit> {
    limit(libc::RLIMIT_NOFILE)
}

/// RLIMIT_MEMLOCK, in bytes. Counted per user, not per process, where io_uring is concerned.
///
/// # Errors
/// As getrlimit(2); it does not fail on Linux.
pub fn locked_memory() -> io::Result<Limit> {
    limit(libc::RLIMIT_MEMLOCK)
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut raw = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `raw` is a valid rlimit that outlives the call.
    super::check(unsafe { libc::getrlimit(resource, &mut raw) })?;
    Ok(Limit {
        soft: raw.rlim_cur,
        hard: raw.rlim_max,
    })
}

/// A kernel's version; further parts do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.1.
    pub major: u16,
    /// 1 of 6.1.
    pub minor: u16,
}

impl KernelVersion {
    /// The oldest kernel that Corelay runs on: DEFER_TASKRUN came with it.
    pub const MINIMUM: KernelVersion = KernelVersion::new(6, 1);

    /// `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Not the form of a kernel release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not begin with a kernel version like 6.1")]
pub struct KernelVersionError(String);

impl FromStr for KernelVersion {
    type Err = KernelVersionError;

    /// From a release: `6.1.0-13-amd64`, `6.12-rc3`, `5.15.153.1-microsoft-standard-WSL2`.
    fn from_str(release: &str) -> Result<Self, Self::Err> {
        let bad = || KernelVersionError(release.to_owned());
        let mut parts = release.trim().split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().and_then(|part| part.parse().ok());
        let major = next().ok_or_else(bad)?;
        let minor = next().ok_or_else(bad)?;
        Ok(Self { major, minor })
    }
}

/// `uname -r`; empty if /proc is not mounted.
pub fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// A sysctl's first number: `sysctl("net/core/somaxconn")`. `None` if this kernel has no such
/// sysctl, or shows it not.
pub fn sysctl(path: &str) -> Option<i64> {
    sysctl_numbers(path)?.first().copied()
}

/// The local ports that connect(2) may choose (`net.ipv4.ip_local_port_range`).
pub fn local_port_range() -> Option<RangeInclusive<u16>> {
    match sysctl_numbers("net/ipv4/ip_local_port_range")?[..] {
        [first, last] => Some(u16::try_from(first).ok()?..=u16::try_from(last).ok()?),
        _ => None,
    }
}

fn sysctl_numbers(path: &str) -> Option<Vec<i64>> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.split_whitespace()
        .map(|part| part.parse().ok())
        .collect()
}

/// A privilege, by its bit; see capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// CAP_NET_BIND_SERVICE: ports below `net.ipv4.ip_unprivileged_port_start`.
    NetBindService = 10,
    /// CAP_IPC_LOCK: RLIMIT_MEMLOCK does not hold.
    IpcLock = 14,
    /// CAP_SYS_ADMIN: `kernel.io_uring_disabled` = 1 does not hold.
    SysAdmin = 21,
}

/// Whether the capability is effective.
pub fn has_capability(capability: Capability) -> bool {
    let mask = process_status("CapEff:").and_then(|text| u64::from_str_radix(&text, 16).ok());
    mask.is_some_and(|mask| mask >> (capability as u8) & 1 == 1)
}

/// Whether a seccomp filter is attached (`Seccomp: 2` in proc(5)).
pub fn has_seccomp_filter() -> bool {
    process_status("Seccomp:").is_some_and(|mode| mode == "2")
}

/// The first word of a line of `/proc/self/status`.
fn process_status(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        for (release, version) in [
            ("6.1.0-13-amd64", (6, 1)),
            ("6.18.44-fc-v595", (6, 18)),
            ("6.12-rc3", (6, 12)),
            ("5.15.153.1-microsoft-standard-WSL2\n", (5, 15)),
            ("10.0", (10, 0)),
        ] {
            let parsed: KernelVersion = release.parse().unwrap();
            assert_eq!((parsed.major, parsed.minor), version, "{release}");
        }
        for bad in ["", "6", "six.one", "-6.1", "6.x", "99999.1"] {
            assert!(bad.parse::<KernelVersion>().is_err(), "{bad:?}");
        }
        assert!(KernelVersion::new(6, 10) > KernelVersion::new(6, 9));
        assert!(KernelVersion::new(7, 0) > KernelVersion::MINIMUM);
    }

    #[test]
    fn this_host_can_be_read() {
        let files = open_files().unwrap();
        assert!(files.soft > 0 && files.soft <= files.hard);
        assert!(locked_memory().unwrap().hard >= locked_memory().unwrap().soft);
        kernel_release().parse::<KernelVersion>().unwrap();
        assert!(sysctl("net/core/somaxconn").unwrap() > 0);
        assert!(!local_port_range().unwrap().is_empty());
        assert_eq!(sysctl("kernel/no_such_thing"), None);
    }
}
