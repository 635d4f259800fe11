//! Whether io_uring can be used here, why not if not, and which of its features this kernel has.
//!
//! It makes small rings and drops them; it keeps nothing and changes nothing. The three system
//! calls say little in their errno, so that the reason is put together from it, a sysctl and
//! `/proc/thread-self/status`: [`classify`], a pure function.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, register};

use super::limits::{self, Capability, KernelVersion, Limit};

/// Entries of a ring that is only asked what it can do.
const PROBE_ENTRIES: u32 = 4;
/// Entries of the buffer ring that is tried; must be a power of two.
const PROBE_BUFFERS: u16 = 8;
/// Alignment that a buffer ring needs. 64 KiB is the largest page size that Linux has anywhere.
const PAGE_BYTES_MAX: usize = 64 * 1024;
/// The group that the tried buffer ring gets; any number serves.
const PROBE_GROUP: u16 = 0;

/// Why io_uring cannot be used. Each prints as one line: cause; consequence; remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// ENOSYS.
    #[error("{}", self.line())]
    Absent {
        /// `uname -r`.
        release: String,
        /// A filter may answer so, too.
        seccomp: bool,
    },
    /// EPERM, and the sysctl says so.
    #[error("{}", self.line())]
    DisabledBySysctl {
        /// `kernel.io_uring_disabled`: 1 or 2.
        level: i64,
        /// `kernel.io_uring_group`; -1 is none.
        group: i64,
    },
    /// EPERM, and a seccomp filter is attached.
    #[error("{}", self.line())]
    BlockedBySeccomp,
    /// EPERM, EACCES for another reason: a security module.
    #[error("{}", self.line())]
    Denied,
    /// ENOMEM.
    #[error("{}", self.line())]
    LockedMemory {
        /// RLIMIT_MEMLOCK, soft, in bytes.
        limit_bytes: u64,
    },
    /// EINVAL for flags that every kernel of at least [`KernelVersion::MINIMUM`] knows.
    #[error("{}", self.line())]
    KernelTooOld {
        /// `uname -r`.
        release: String,
    },
    /// EMFILE, ENFILE.
    #[error("{}", self.line())]
    FileDescriptors,
    /// Something else.
    #[error("{}", self.line())]
    Other {
        /// The errno.
        errno: i32,
    },
}

impl Blocked {
    /// What is the matter.
    pub fn cause(&self) -> String {
        match self {
            Blocked::Absent {
                release,
                seccomp: false,
            } => format!("this kernel ({release}) has no io_uring"),
            Blocked::Absent { release, .. } => format!(
                "io_uring_setup does not exist here: this kernel ({release}) has no io_uring, or a seccomp filter hides it"
            ),
            Blocked::DisabledBySysctl { level: 1, group } => format!(
                "io_uring is kept from this user (kernel.io_uring_disabled=1, kernel.io_uring_group={group})"
            ),
            Blocked::DisabledBySysctl { level, .. } => {
                format!("io_uring is switched off (kernel.io_uring_disabled={level})")
            }
            Blocked::BlockedBySeccomp => "a seccomp filter forbids io_uring_setup".to_owned(),
            Blocked::Denied => "a security policy forbids io_uring_setup".to_owned(),
            Blocked::LockedMemory { limit_bytes } => format!(
                "the rings do not fit the limit on locked memory (RLIMIT_MEMLOCK is {limit_bytes} bytes)"
            ),
            Blocked::KernelTooOld { release } => {
                format!(
                    "this kernel ({release}) is older than {}",
                    KernelVersion::MINIMUM
                )
            }
            Blocked::FileDescriptors => "no file descriptor is left for a ring".to_owned(),
            Blocked::Other { errno } => {
                format!("io_uring_setup: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }

    /// What follows from it: always the same, there is no other engine.
    pub fn consequence(&self) -> &'static str {
        "Corelay cannot run, it has no engine beside io_uring"
    }

    /// What to do.
    pub fn remedy(&self) -> String {
        let minimum = KernelVersion::MINIMUM;
        match self {
            Blocked::Absent { .. } | Blocked::KernelTooOld { .. } => {
                format!("boot Linux {minimum} or newer with CONFIG_IO_URING=y")
            }
            Blocked::DisabledBySysctl { level: 1, .. } => {
                "run `sysctl kernel.io_uring_group=GID` with a group of this user, or `sysctl kernel.io_uring_disabled=0`".to_owned()
            }
            Blocked::DisabledBySysctl { .. } => "run `sysctl kernel.io_uring_disabled=0`".to_owned(),
            Blocked::BlockedBySeccomp => {
                "allow io_uring_setup, io_uring_enter and io_uring_register: in a container by a seccomp profile of its own (the default ones forbid them), under systemd by SystemCallFilter=@system-service".to_owned()
            }
            Blocked::Denied => {
                "allow io_uring in the policy of SELinux, AppArmor or the like; the kernel's log names the rule".to_owned()
            }
            Blocked::LockedMemory { .. } => {
                "set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`; fewer workers or smaller buffers.per_core need less".to_owned()
            }
            Blocked::FileDescriptors => "raise LimitNOFILE, or `ulimit -n`".to_owned(),
            Blocked::Other { .. } => "see io_uring_setup(2) for this error".to_owned(),
        }
    }

    fn line(&self) -> String {
        format!(
            "{}; {}; {}",
            self.cause(),
            self.consequence(),
            self.remedy()
        )
    }
}

/// What [`classify`] puts beside an errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// `uname -r`.
    pub release: String,
    /// `kernel.io_uring_disabled`; 0 on kernels before 6.6, which lack it.
    pub disabled: i64,
    /// `kernel.io_uring_group`; -1 is none.
    pub group: i64,
    /// Whether CAP_SYS_ADMIN is effective, which passes by level 1.
    pub sys_admin: bool,
    /// Whether a seccomp filter is attached.
    pub seccomp: bool,
    /// RLIMIT_MEMLOCK, soft, in bytes.
    pub memlock_bytes: u64,
}

impl Surroundings {
    /// Those of this thread.
    pub fn read() -> Self {
        Self {
            release: limits::kernel_release(),
            disabled: limits::sysctl("kernel/io_uring_disabled").unwrap_or(0),
            group: limits::sysctl("kernel/io_uring_group").unwrap_or(-1),
            sys_admin: limits::has_capability(Capability::SysAdmin),
            seccomp: limits::has_seccomp_filter(),
            memlock_bytes: limits::locked_memory().map_or(Limit::UNLIMITED, |limit| limit.soft),
        }
    }
}

/// The reason behind io_uring_setup's errno.
pub fn classify(errno: i32, around: &Surroundings) -> Blocked {
    let sysctl_forbids = around.disabled >= 2 || (around.disabled == 1 && !around.sys_admin);
    match errno {
        libc::ENOSYS => Blocked::Absent {
            release: around.release.clone(),
            seccomp: around.seccomp,
        },
        libc::EPERM if sysctl_forbids => Blocked::DisabledBySysctl {
            level: around.disabled,
            group: around.group,
        },
        libc::EPERM | libc::EACCES if around.seccomp => Blocked::BlockedBySeccomp,
        libc::EPERM | libc::EACCES => Blocked::Denied,
        libc::ENOMEM => Blocked::LockedMemory {
            limit_bytes: around.memlock_bytes,
        },
        // The flags are constants that the minimum kernel knows, and the sizes are clamped.
        libc::EINVAL => Blocked::KernelTooOld {
            release: around.release.clone(),
        },
        libc::EMFILE | libc::ENFILE => Blocked::FileDescriptors,
        errno => Blocked::Other { errno },
    }
}

/// One feature of io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// As in metric labels.
    pub name: &'static str,
    /// What Corelay does with it.
    pub purpose: &'static str,
    /// The first kernel that has it.
    pub since: KernelVersion,
    /// Whether Corelay needs it; the others only make it faster.
    pub needed: bool,
    /// Whether this kernel has it.
    pub present: bool,
}

/// The features of this kernel.
///
/// # Errors
/// No ring can be made at all, or none as Corelay needs it.
pub fn io_uring() -> Result<Vec<Feature>, Blocked> {
    let blocked =
        |error: io::Error| classify(error.raw_os_error().unwrap_or(0), &Surroundings::read());
    let plain = IoUring::new(PROBE_ENTRIES).map_err(blocked)?;
    let defer = match relay_like().build(PROBE_ENTRIES) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        // Not a matter of features: a ring that just ended may still count as locked memory.
        Err(error) => return Err(blocked(error)),
    };
    let coop = builder().setup_coop_taskrun().build(PROBE_ENTRIES);
    let no_sqarray = builder().setup_no_sqarray().build(PROBE_ENTRIES);
    let params = plain.params();
    Ok(list(&Present {
        defer_taskrun: defer,
        coop_taskrun: coop.is_ok(),
        ext_arg: params.is_feature_ext_arg(),
        nodrop: params.is_feature_nodrop(),
        buffer_ring: has_buffer_ring(&plain),
        send_zc: has_opcode(&plain, opcode::SendZc::CODE),
        copy_reports: IoUring::new(PROBE_ENTRIES).is_ok_and(reports_copies),
        no_sqarray: no_sqarray.is_ok(),
        recv_bundle: params.is_feature_recvsend_bundle(),
    }))
}

/// What the probe found.
struct Present {
    defer_taskrun: bool,
    coop_taskrun: bool,
    ext_arg: bool,
    nodrop: bool,
    buffer_ring: bool,
    send_zc: bool,
    copy_reports: bool,
    no_sqarray: bool,
    recv_bundle: bool,
}

fn list(found: &Present) -> Vec<Feature> {
    let feature = |name, purpose, (major, minor), needed, present| Feature {
        name,
        purpose,
        since: KernelVersion::new(major, minor),
        needed,
        present,
    };
    vec![
        feature(
            "defer_taskrun",
            "the relay ring works only when asked to",
            (6, 1),
            true,
            found.defer_taskrun,
        ),
        feature(
            "coop_taskrun",
            "the accept ring does not interrupt its core",
            (5, 19),
            true,
            found.coop_taskrun,
        ),
        feature(
            "ext_arg",
            "sleeping until the next timer",
            (5, 11),
            true,
            found.ext_arg,
        ),
        feature(
            "nodrop",
            "no completion is ever lost",
            (5, 5),
            true,
            found.nodrop,
        ),
        feature(
            "buffer_ring",
            "idle connections own no buffer",
            (5, 19),
            true,
            found.buffer_ring,
        ),
        // It has no bit of its own to ask for; SEND_ZC came with the same release.
        feature(
            "recv_multishot",
            "one request for many receives",
            (6, 0),
            true,
            found.send_zc,
        ),
        feature(
            "send_zc",
            "zero-copy sends that tell whether the kernel copied, for relay.zero_copy_send",
            (6, 2),
            false,
            found.copy_reports,
        ),
        feature(
            "no_sqarray",
            "one indirection less per submission",
            (6, 6),
            false,
            found.no_sqarray,
        ),
        feature(
            "recv_bundle",
            "several buffers per receive",
            (6, 10),
            false,
            found.recv_bundle,
        ),
    ]
}

/// Of a ring with entries of the common size.
fn builder() -> io_uring::Builder {
    IoUring::builder()
}

/// With the flags of the relay ring.
fn relay_like() -> io_uring::Builder {
    let mut builder = builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_clamp();
    builder
}

/// Sizes of the rings that one core needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Submission entries.
    pub submission_entries: u32,
    /// Completion entries.
    pub completion_entries: u32,
}

/// Tries to have the rings of `cores` cores at once, and drops them: the limit on locked memory is counted
/// per user, in a way that differs between kernels, so that trying is the only exact answer. Another
/// process of the same user counts as well.
///
/// # Errors
/// Why the first that failed did.
pub fn rings_fit(cores: usize, sizes: &[RingSizes]) -> Result<(), Blocked> {
    let mut rings = Vec::new();
    for _ in 0..cores {
        for size in sizes {
            let ring = relay_like()
                .setup_cqsize(size.completion_entries)
                .build(size.submission_entries);
            match ring {
                Ok(ring) => rings.push(ring),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(0);
                    return Err(classify(errno, &Surroundings::read()));
                }
            }
        }
    }
    Ok(())
}

fn has_opcode(ring: &IoUring, code: u8) -> bool {
    let mut probe = register::Probe::new();
    let asked = ring.submitter().register_probe(&mut probe);
    asked.is_ok() && probe.is_supported(code)
}

/// SEND_ZC with IORING_SEND_ZC_REPORT_USAGE. The flag has no bit to ask for: the kernel looks at an
/// operation's flags before it looks for its descriptor, so that one without says which it minds.
fn reports_copies(mut ring: IoUring) -> bool {
    const REPORT_USAGE: u16 = 1 << 3;
    let entry = opcode::SendZc::new(Fd(-1), std::ptr::null(), 0)
        .zc_flags(REPORT_USAGE)
        .build();
    // SAFETY: the operation has no descriptor and no bytes: it fails before it reads anything.
    let pushed = unsafe { ring.submission().push(&entry) };
    if pushed.is_err() || ring.submit_and_wait(1).is_err() {
        return false;
    }
    let completion = ring.completion().next();
    completion.is_some_and(|completion| completion.result() == -libc::EBADF)
}

/// Registers an empty buffer ring and takes it away again.
fn has_buffer_ring(ring: &IoUring) -> bool {
    let layout = Layout::from_size_align(PAGE_BYTES_MAX, PAGE_BYTES_MAX)
        .expect("a power of two that fits in memory");
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return false;
    }
    let submitter = ring.submitter();
    // SAFETY: `memory` is page-aligned, holds more than PROBE_BUFFERS entries of 16 bytes, and stays
    // allocated until the ring is unregistered below.
    let registered = unsafe {
        submitter.register_buf_ring_with_flags(memory as u64, PROBE_BUFFERS, PROBE_GROUP, 0)
    };
    let present = registered.is_ok();
    if present && submitter.unregister_buf_ring(PROBE_GROUP).is_err() {
        // The kernel may still point there: a leak of one allocation is the lesser evil.
        return true;
    }
    // SAFETY: allocated above with the same layout, and no longer known to the kernel.
    unsafe { dealloc(memory, layout) };
    present
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around() -> Surroundings {
        Surroundings {
            release: "6.6.0".into(),
            disabled: 0,
            group: -1,
            sys_admin: false,
            seccomp: false,
            memlock_bytes: 65_536,
        }
    }

    #[test]
    fn every_reason_is_told_apart_and_has_a_remedy() {
        let disabled = |level, sys_admin| Surroundings {
            disabled: level,
            sys_admin,
            ..around()
        };
        let seccomp = Surroundings {
            seccomp: true,
            ..around()
        };
        for (errno, around, in_cause, in_remedy) in [
            (libc::ENOSYS, around(), "no io_uring", "CONFIG_IO_URING"),
            (libc::ENOSYS, seccomp.clone(), "hides it", "6.1"),
            (
                libc::EPERM,
                disabled(1, false),
                "io_uring_disabled=1",
                "io_uring_group",
            ),
            (
                libc::EPERM,
                disabled(2, true),
                "io_uring_disabled=2",
                "io_uring_disabled=0",
            ),
            (
                libc::EPERM,
                seccomp.clone(),
                "seccomp filter forbids",
                "SystemCallFilter",
            ),
            (libc::EPERM, disabled(1, true), "security policy", "SELinux"),
            (libc::EPERM, around(), "security policy", "SELinux"),
            (libc::EACCES, around(), "security policy", "SELinux"),
            (
                libc::ENOMEM,
                around(),
                "65536 bytes",
                "LimitMEMLOCK=infinity",
            ),
            (libc::EINVAL, around(), "older than 6.1", "6.1"),
            (libc::EMFILE, around(), "file descriptor", "LimitNOFILE"),
            (libc::EFAULT, around(), "Bad address", "io_uring_setup(2)"),
        ] {
            let blocked = classify(errno, &around);
            assert!(blocked.cause().contains(in_cause), "{errno}: {blocked}");
            assert!(blocked.remedy().contains(in_remedy), "{errno}: {blocked}");
            assert!(!blocked.to_string().contains('\n'), "{blocked}");
        }
    }

    #[test]
    fn what_this_host_says_agrees_with_its_version() {
        let features = match io_uring() {
            Ok(features) => features,
            Err(blocked) => {
                eprintln!("skipped: {blocked}");
                return;
            }
        };
        let kernel: KernelVersion = limits::kernel_release().parse().unwrap();
        for feature in &features {
            assert_eq!(
                feature.present,
                kernel >= feature.since,
                "{feature:?} on {kernel}"
            );
        }
        assert!(
            features
                .iter()
                .any(|feature| feature.name == "defer_taskrun")
        );
    }

    #[test]
    fn probing_leaves_nothing_behind() {
        // Other tests of this process open and close descriptors of other kinds meanwhile.
        for _ in 0..50 {
            drop(io_uring());
            drop(rings_fit(
                2,
                &[RingSizes {
                    submission_entries: 64,
                    completion_entries: 128,
                }],
            ));
        }
        let rings = super::super::fd::io_uring_fds().unwrap();
        assert!(rings.len() < 50, "{} rings are left", rings.len());
    }
}
