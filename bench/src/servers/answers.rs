//! Answers as long as the client asks for, on a connection that stays: what a download over keep-alive
//! looks like to a proxy. After the last byte nothing follows, neither bytes nor FIN.
//!
//! ```text
//! client: how many bytes (8 bytes, big endian)   server: so many bytes, then silence   …   and again
//! ```
//!
//! Byte `n` of an answer of `length` bytes is byte `(length + n) % BLOCK_BYTES` of one block that both
//! sides know: the server sends slices of it without making anything, and answers of different
//! lengths differ.

use std::collections::VecDeque;
use std::ops::Range;

use super::role::{Next, Role};
use crate::pattern::Pattern;

/// Length of a request: the wanted length of the answer, big endian.
pub const REQUEST_BYTES: usize = 8;
/// After so many bytes an answer repeats itself; also the most that one send offers.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// Which pattern the block is.
const BLOCK_SEED: u64 = 0;

/// The block that all answers are cut from.
pub fn block() -> Vec<u8> {
    Pattern::new(BLOCK_SEED).bytes(0, BLOCK_BYTES)
}

/// The part of the block that comes next in an answer of `length` bytes of which `done` have been; it
/// goes no further than the end of the answer or of the block.
pub fn slice(length: u64, done: u64) -> Range<usize> {
    // Below BLOCK_BYTES, so it fits.
    let start = (length.wrapping_add(done) % BLOCK_BYTES as u64) as usize;
    let left = usize::try_from(length - done).unwrap_or(usize::MAX);
    start..start + left.min(BLOCK_BYTES - start)
}

/// The role of the server.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The beginning of a request whose end has not come.
    request: Vec<u8>,
    /// The lengths that are still to be answered. While there are any nothing is read, so it holds
    /// no more than what one receive brought.
    wanted: VecDeque<u64>,
    /// Bytes sent of the first of them.
    done: u64,
}

impl Role for Answers {
    fn received(&mut self, bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        for byte in bytes {
            self.request.push(*byte);
            if let Ok(request) = <[u8; REQUEST_BYTES]>::try_from(&self.request[..]) {
                self.request.clear();
                let length = u64::from_be_bytes(request);
                if length > 0 {
                    self.wanted.push_back(length);
                }
            }
        }
        Next::Continue
    }

    fn reads(&self) -> bool {
        self.wanted.is_empty()
    }

    fn ready_made(&self) -> Range<usize> {
        self.wanted
            .front()
            .map_or(0..0, |length| slice(*length, self.done))
    }

    fn sent_ready_made(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self
            .wanted
            .front()
            .is_some_and(|wanted| *wanted == self.done)
        {
            self.wanted.pop_front();
            self.done = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a role sends for what it has been told.
    fn answer(role: &mut Answers) -> Vec<u8> {
        let block = block();
        let mut sent = Vec::new();
        loop {
            let range = role.ready_made();
            if range.is_empty() {
                return sent;
            }
            sent.extend_from_slice(&block[range.clone()]);
            role.sent_ready_made(range.len());
        }
    }

    #[test]
    fn every_request_is_answered_with_its_length_wherever_the_pieces_end() {
        let lengths = [1, 7, BLOCK_BYTES as u64 * 2 + 5];
        let requests: Vec<u8> = lengths.iter().flat_map(|one| one.to_be_bytes()).collect();
        for piece in [1, 5, 8, 24] {
            let mut role = Answers::default();
            let mut sent = 0;
            for bytes in requests.chunks(piece) {
                assert!(role.reads());
                role.received(bytes, &mut Vec::new());
                sent += answer(&mut role).len() as u64;
            }
            assert_eq!(sent, lengths.iter().sum::<u64>(), "pieces of {piece}");
            assert!(role.reads());
        }
    }

    #[test]
    fn nothing_is_read_before_the_answer_is_sent() {
        let mut role = Answers::default();
        role.received(&10_u64.to_be_bytes(), &mut Vec::new());
        assert!(!role.reads());
        role.sent_ready_made(9);
        assert!(!role.reads());
        role.sent_ready_made(1);
        assert!(role.reads());
    }

    #[test]
    fn an_answer_is_the_block_from_its_length_on() {
        let block = block();
        let length = BLOCK_BYTES as u64 + 3;
        let mut role = Answers::default();
        role.received(&length.to_be_bytes(), &mut Vec::new());
        let sent = answer(&mut role);
        let expected: Vec<u8> = (0..length as usize)
            .map(|n| block[(length as usize + n) % BLOCK_BYTES])
            .collect();
        assert!(sent == expected);
    }
}
