//! Room for file descriptors: thousands of sockets in one process need a higher soft limit.
//!
//! It touches only the soft limit of this process, never the hard one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one and returns the soft limit then in force
/// (`u64::MAX`: no limit). It does not fail: what cannot be raised stays as it is.
pub fn raise_open_files() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    // Refused only if the hard limit were above fs.nr_open; the old limit holds then.
    let _ = setrlimit(Resource::Nofile, wanted);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let soft = raise_open_files();
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(soft, hard);
    }
}
