//! Where log lines go: stdout, stderr or a file, opened so that a reader that stopped reading
//! yields `WouldBlock` instead of a blocked thread.
//!
//! Setting `O_NONBLOCK` on an inherited descriptor would set it for every process that shares it (the
//! flag belongs to the open file description, see open(2)), the user's shell among them. So:
//!
//! | stdout is | then |
//! |---|---|
//! | a pipe, a terminal, another device | opened anew through `/proc/self/fd`, with a description of its own and `O_NONBLOCK` |
//! | a socket (the journal's) | sent with `MSG_DONTWAIT` |
//! | a file | written as it is: a disk does not block for want of a reader |
//! | a pipe or device that may not be opened anew | written as it is, and may block the writer |
//!
//! Nothing is buffered and nothing retried here; that is the writer's part.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

/// Permissions of a new log file, before the umask: it holds clients' addresses.
const FILE_MODE: u32 = 0o640;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// This file, appended to, made if missing (mode 0640). A FIFO needs a reader.
    File(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Stdout => f.write_str("on stdout"),
            Target::Stderr => f.write_str("on stderr"),
            Target::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// An open target.
#[derive(Debug)]
pub enum Sink {
    /// Written with write(2).
    File(File),
    /// Sent with send(2), which alone can be told per call not to block.
    Socket(File),
}

impl Sink {
    /// Opens a target.
    ///
    /// # Errors
    /// As open(2) and dup(2).
    pub fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Stdout => Self::from_inherited(io::stdout().as_fd()),
            Target::Stderr => Self::from_inherited(io::stderr().as_fd()),
            Target::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(FILE_MODE)
                // For a FIFO, whose open would otherwise wait for a reader; regular files ignore it.
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)
                .map(Sink::File),
        }
    }

    /// A sink on a descriptor that others may share; its flags are left alone.
    ///
    /// # Errors
    /// As dup(2) and fstat(2).
    pub fn from_inherited(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(fd.try_clone_to_owned()?);
        let kind = file.metadata()?.file_type();
        if kind.is_socket() {
            return Ok(Sink::Socket(file));
        }
        if kind.is_fifo() || kind.is_char_device() {
            let anew = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            if let Ok(anew) = anew {
                return Ok(Sink::File(anew));
            }
        }
        Ok(Sink::File(file))
    }

    /// Writes some of `bytes` and returns how many.
    ///
    /// # Errors
    /// `WouldBlock` if the reader is behind; otherwise as write(2) and send(2). Never SIGPIPE: the
    /// Rust runtime ignores it, and send(2) is told not to raise it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File(file) => file.write(bytes),
            Sink::Socket(file) => socket2::SockRef::from(&*file)
                .send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// More than a pipe or a socket pair takes without a reader.
    const MORE_THAN_FITS: usize = 8 << 20;

    fn fill(sink: &mut Sink) -> usize {
        let chunk = [b'x'; 4096];
        let mut written = 0;
        while written < MORE_THAN_FITS {
            match sink.write(&chunk) {
                Ok(bytes) => written += bytes,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return written;
                }
            }
        }
        panic!("the sink took {written} bytes that nobody reads");
    }

    #[test]
    fn a_full_pipe_does_not_block_and_keeps_its_flags() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::from_inherited(writer.as_fd()).unwrap();
        let written = fill(&mut sink);
        assert!(written > 0);
        // The descriptor that others share still blocks: a write to it would now hang, so its flags
        // are read from /proc instead.
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", writer.as_raw_fd())).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(
            flags & libc::O_NONBLOCK,
            0,
            "inherited flags changed: {info}"
        );
        drop(reader);
        let error = sink.write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_socket_does_not_block() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut sink = Sink::from_inherited(writer.as_fd()).unwrap();
        assert!(matches!(sink, Sink::Socket(_)));
        let written = fill(&mut sink);
        let mut all = vec![0; written];
        reader.read_exact(&mut all).unwrap();
        assert!(all.iter().all(|byte| *byte == b'x'));
    }

    #[test]
    fn a_file_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        std::fs::write(&path, "before\n").unwrap();
        let mut sink = Sink::open(&Target::File(path.clone())).unwrap();
        assert_eq!(sink.write(b"after\n").unwrap(), 6);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }
}
