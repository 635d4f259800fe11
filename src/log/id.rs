//! What a session is called in the access log, and wherever else it is told of.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::units::CoreId;

/// Unique, also over restarts; its text is at most 36 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId {
    /// See [`start_nonce`].
    pub nonce: u32,
    /// The core that serves it.
    pub core: CoreId,
    /// Counts the sessions of the core.
    pub sequence: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SessionId {
            nonce,
            core,
            sequence,
        } = self;
        write!(f, "{nonce:08x}-{}-{sequence}", core.0)
    }
}

/// Tells this process's sessions from those of the one before it in the same file. Drawn once per process.
pub fn start_nonce() -> u32 {
    // The standard library's hash keys are the one source of randomness at hand without a crate.
    let random = RandomState::new().build_hasher().finish();
    (random >> 32) as u32
}
