//! The system calls that Corelay makes outside its rings, each behind a safe function.
//!
//! `unsafe` is allowed here and in `ring`, nowhere else. No policy lives here: a function does one
//! thing and reports the errno.

pub mod affinity;
pub mod clock;
pub mod event;
pub mod fast_open;
pub mod fd;
pub mod filter;
pub mod limits;
pub mod lock;
pub mod pages;
pub mod pipe;
pub mod poll;
pub mod probe;
pub mod process;
pub mod socket;
pub mod source;
pub mod tcp_info;

use std::io;

/// Turns a C return value of -1 into the errno.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
