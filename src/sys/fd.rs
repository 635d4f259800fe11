//! Ownership of file descriptors across libraries.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Takes over a descriptor from a type that gives up its own.
pub fn adopt(from: impl IntoRawFd) -> OwnedFd {
    let raw = from.into_raw_fd();
    // SAFETY: `into_raw_fd` hands over a descriptor that is open and that nobody else will close.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Borrows the descriptor of a type that owns one but only shows its number.
pub fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: every caller's type keeps its descriptor open for as long as it lives, and the
    // borrow cannot outlive it.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// The io_uring descriptors of this process, as `/proc/thread-self/fd` shows them.
///
/// monoio does not hand out its ring's descriptor; the one that is new after building a runtime is
/// the runtime's.
pub fn io_uring_fds() -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/thread-self/fd")? {
        let entry = entry?;
        // The directory's own descriptor is listed and may be gone by the time it is read.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if target.as_os_str() == "anon_inode:[io_uring]"
            && let Some(fd) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
        {
            found.push(fd);
        }
    }
    Ok(found)
}

/// Submission entries that a ring has not consumed yet, from its `fdinfo` (`SqTail - SqHead`).
///
/// `None` if the kernel does not show it. Debug builds use it to prove that nothing is left in
/// monoio's ring when a core goes to sleep.
pub fn ring_backlog(ring: RawFd) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{ring}")).ok()?;
    let field = |name: &str| -> Option<u32> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(field("SqTail:")?.wrapping_sub(field("SqHead:")?))
}
