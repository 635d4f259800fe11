//! What one connection of a server does, without sockets: bytes in, bytes out, and what next.
//!
//! The event loop calls a role; a role never blocks and never sees a file descriptor.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::answers::{Answers, BLOCK_BYTES};
use super::http::HttpRole;
use super::{Behaviour, Fault, Finished};
use crate::pattern::{Pattern, Random};

/// Most that a role produces at a time, in bytes. Bounds a connection's memory.
const PRODUCE_BYTES: usize = 64 * 1024;

/// What is to happen with a connection after a role has been called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go on.
    Continue,
    /// Send what is queued, then FIN; go on reading.
    Finish,
    /// Close now, in an orderly way.
    Close,
    /// Reset now.
    Reset,
}

/// One connection's behaviour.
pub(super) trait Role: Send {
    /// The connection has just been accepted.
    fn opened(&mut self, _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    /// These bytes have come.
    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next;

    /// The peer sent FIN.
    fn peer_finished(&mut self, _out: &mut Vec<u8>) -> Next {
        Next::Finish
    }

    /// Everything queued has been sent and there is room for more.
    fn produce(&mut self, _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    /// The behaviour's interval has passed.
    fn tick(&mut self, _out: &mut Vec<u8>) {}

    /// Whether the socket is to be read at all.
    fn reads(&self) -> bool {
        true
    }

    /// The part of the server's block ([`super::answers::block`]) that is to be sent next, instead of
    /// bytes that the role makes. Empty: none.
    fn ready_made(&self) -> Range<usize> {
        0..0
    }

    /// So many bytes of [`Role::ready_made`] have been sent.
    fn sent_ready_made(&mut self, _bytes: usize) {}

    /// Whether what comes may be dropped unseen: [`Role::received`] is not called then.
    fn discards(&self) -> bool {
        false
    }

    /// What is to be reported after the end.
    fn report(&mut self, _clean: bool) -> Option<Finished> {
        None
    }
}

/// The role that connection `index` of this behaviour plays.
pub(super) fn role_of(behaviour: &Behaviour, index: u64) -> Box<dyn Role> {
    match behaviour {
        Behaviour::Echo => Box::new(Echo { limit: None }),
        Behaviour::Sink { hash } => Box::new(Sink {
            bytes: 0,
            hash: hash.then(Sha256::new),
        }),
        Behaviour::Source { bytes, seed } => Box::new(Source {
            pattern: Pattern::new(*seed),
            sent: 0,
            bytes: *bytes,
        }),
        Behaviour::Http { name } => Box::new(HttpRole::new(name)),
        Behaviour::Discard => Box::new(Discard { is_endless: false }),
        Behaviour::Blast => Box::new(Discard { is_endless: true }),
        Behaviour::Answers => Box::new(Answers::default()),
        Behaviour::Digest => Box::new(DigestSink(Sha256::new())),
        Behaviour::Faulty(fault) => faulty(fault),
        Behaviour::FaultyMix { seed } => faulty(&drawn_fault(*seed, index)),
    }
}

/// How many kinds of fault a mixed server draws from.
const DRAWN_KINDS: u64 = 6;

/// The fault of connection `index` of a mixed server. Only faults that can be told apart from a
/// correct server within a second, and that need no timer.
fn drawn_fault(seed: u64, index: u64) -> Fault {
    const BYTES_MAX: u64 = 4096;
    let mut random = Random::new(Random::new(seed).next_u64().wrapping_add(index));
    let bytes = random.below(BYTES_MAX);
    match random.below(DRAWN_KINDS) {
        0 => Fault::NeverRead,
        1 => Fault::ResetAfter { bytes },
        2 => Fault::HalfCloseEarly,
        3 => Fault::AcceptThenClose,
        4 => Fault::Stall { after_bytes: bytes },
        _ => Fault::Corrupt { at: bytes },
    }
}

fn faulty(fault: &Fault) -> Box<dyn Role> {
    match fault {
        Fault::NeverRead => Box::new(NeverRead),
        Fault::ResetAfter { bytes } => Box::new(ResetAfter { left: *bytes }),
        Fault::HalfCloseEarly => Box::new(Immediately(Next::Finish)),
        Fault::AcceptThenClose => Box::new(Immediately(Next::Close)),
        Fault::Trickle { bytes, .. } => Box::new(Trickle {
            bytes: *bytes,
            sent: 0,
        }),
        Fault::Stall { after_bytes } => Box::new(Echo {
            limit: Some(*after_bytes),
        }),
        Fault::Banner { text } => Box::new(Banner { text: text.clone() }),
        Fault::Delay { delay } => Box::new(Delay {
            delay: *delay,
            pieces: VecDeque::new(),
        }),
        // The event loop stands still, not the role.
        Fault::Freeze { .. } => Box::new(Echo { limit: None }),
        Fault::Corrupt { at } => Box::new(Corrupt { until: Some(*at) }),
    }
}

/// Sends everything back, up to a limit if there is one; then it neither reads nor writes.
struct Echo {
    limit: Option<u64>,
}

impl Role for Echo {
    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next {
        match &mut self.limit {
            None => out.extend_from_slice(bytes),
            Some(left) => {
                let take = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                out.extend_from_slice(&bytes[..take]);
                *left -= take as u64;
            }
        }
        Next::Continue
    }

    fn reads(&self) -> bool {
        self.limit != Some(0)
    }
}

struct Sink {
    bytes: u64,
    hash: Option<Sha256>,
}

impl Role for Sink {
    fn received(&mut self, bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        self.bytes += bytes.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        Next::Continue
    }

    fn report(&mut self, clean: bool) -> Option<Finished> {
        let hash = self.hash.take()?;
        Some(Finished {
            bytes: self.bytes,
            sha256: hash.finalize().into(),
            clean,
        })
    }
}

struct Source {
    pattern: Pattern,
    sent: u64,
    bytes: u64,
}

impl Role for Source {
    fn received(&mut self, _bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    /// The client's FIN does not end the stream: half-close is what this server is for.
    fn peer_finished(&mut self, _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    fn produce(&mut self, out: &mut Vec<u8>) -> Next {
        let left = self.bytes - self.sent;
        if left == 0 {
            return Next::Finish;
        }
        let take = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(PRODUCE_BYTES);
        let start = out.len();
        out.resize(start + take, 0);
        self.pattern.fill(self.sent, &mut out[start..]);
        self.sent += take as u64;
        Next::Continue
    }
}

/// Drops everything unseen; sends the same bytes again and again if it is endless.
struct Discard {
    is_endless: bool,
}

impl Role for Discard {
    fn received(&mut self, _bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    fn peer_finished(&mut self, _out: &mut Vec<u8>) -> Next {
        if self.is_endless {
            Next::Continue
        } else {
            Next::Finish
        }
    }

    fn ready_made(&self) -> Range<usize> {
        // Where in the block it is does not matter.
        0..if self.is_endless { BLOCK_BYTES } else { 0 }
    }

    fn discards(&self) -> bool {
        true
    }
}

struct DigestSink(Sha256);

impl Role for DigestSink {
    fn received(&mut self, bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        self.0.update(bytes);
        Next::Continue
    }

    fn peer_finished(&mut self, out: &mut Vec<u8>) -> Next {
        out.extend_from_slice(&self.0.finalize_reset());
        Next::Finish
    }
}

struct NeverRead;

impl Role for NeverRead {
    fn received(&mut self, _bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    fn reads(&self) -> bool {
        false
    }
}

struct ResetAfter {
    left: u64,
}

impl Role for ResetAfter {
    fn opened(&mut self, _out: &mut Vec<u8>) -> Next {
        if self.left == 0 {
            Next::Reset
        } else {
            Next::Continue
        }
    }

    fn received(&mut self, bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if self.left == 0 {
            Next::Reset
        } else {
            Next::Continue
        }
    }
}

/// Does one thing as soon as it is accepted, then reads and drops.
struct Immediately(Next);

impl Role for Immediately {
    fn opened(&mut self, _out: &mut Vec<u8>) -> Next {
        self.0
    }

    fn received(&mut self, _bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }
}

struct Trickle {
    bytes: usize,
    sent: u64,
}

impl Role for Trickle {
    fn received(&mut self, _bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        Next::Continue
    }

    fn tick(&mut self, out: &mut Vec<u8>) {
        // A client that does not read must not make the queue grow.
        if out.len() < PRODUCE_BYTES {
            let bytes = Pattern::new(0).bytes(self.sent, self.bytes);
            self.sent += bytes.len() as u64;
            out.extend_from_slice(&bytes);
        }
    }
}

struct Banner {
    text: Vec<u8>,
}

impl Role for Banner {
    fn opened(&mut self, out: &mut Vec<u8>) -> Next {
        out.extend_from_slice(&self.text);
        Next::Continue
    }

    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next {
        out.extend_from_slice(bytes);
        Next::Continue
    }
}

/// Echoes each piece some time after it came.
struct Delay {
    delay: Duration,
    pieces: VecDeque<(Instant, Vec<u8>)>,
}

impl Role for Delay {
    fn received(&mut self, bytes: &[u8], _out: &mut Vec<u8>) -> Next {
        let due = Instant::now() + self.delay;
        self.pieces.push_back((due, bytes.to_vec()));
        Next::Continue
    }

    fn tick(&mut self, out: &mut Vec<u8>) {
        let now = Instant::now();
        while self.pieces.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, bytes)) = self.pieces.pop_front()
        {
            out.extend_from_slice(&bytes);
        }
    }
}

/// Echoes; flips the lowest bit of one byte.
struct Corrupt {
    /// Bytes before it; none: it is over.
    until: Option<u64>,
}

impl Role for Corrupt {
    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next {
        let start = out.len();
        out.extend_from_slice(bytes);
        if let Some(until) = self.until {
            self.until = until.checked_sub(bytes.len() as u64);
            if let Some(byte) = usize::try_from(until)
                .ok()
                .and_then(|until| out.get_mut(start + until))
            {
                *byte ^= 1;
            }
        }
        Next::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_sends_exactly_its_bytes_and_then_finishes() {
        let mut role = role_of(
            &Behaviour::Source {
                bytes: PRODUCE_BYTES as u64 + 10,
                seed: 3,
            },
            0,
        );
        let mut out = Vec::new();
        assert_eq!(role.produce(&mut out), Next::Continue);
        assert_eq!(role.produce(&mut out), Next::Continue);
        assert_eq!(role.produce(&mut out), Next::Finish);
        assert_eq!(out.len(), PRODUCE_BYTES + 10);
        assert_eq!(Pattern::new(3).first_difference(0, &out), None);
    }

    #[test]
    fn a_stalling_echo_stops_reading_at_its_limit() {
        let mut role = role_of(&Behaviour::Faulty(Fault::Stall { after_bytes: 3 }), 0);
        let mut out = Vec::new();
        role.received(b"ab", &mut out);
        assert!(role.reads());
        role.received(b"cd", &mut out);
        assert!(!role.reads());
        assert_eq!(out, b"abc");
    }

    #[test]
    fn a_reset_comes_with_the_last_byte() {
        let mut role = role_of(&Behaviour::Faulty(Fault::ResetAfter { bytes: 3 }), 0);
        let mut out = Vec::new();
        assert_eq!(role.opened(&mut out), Next::Continue);
        assert_eq!(role.received(b"ab", &mut out), Next::Continue);
        assert_eq!(role.received(b"c", &mut out), Next::Reset);
    }

    #[test]
    fn drawn_faults_follow_the_seed_and_cover_all_kinds() {
        let draw = |seed| (0..100).map(move |index| drawn_fault(seed, index));
        assert!(draw(5).eq(draw(5)));
        assert!(!draw(5).eq(draw(6)));
        let kinds: std::collections::HashSet<_> = draw(5)
            .map(|fault| std::mem::discriminant(&fault))
            .collect();
        assert_eq!(kinds.len(), DRAWN_KINDS as usize);
    }

    #[test]
    fn one_bit_of_one_byte_is_wrong_wherever_the_pieces_end() {
        for piece in [1, 3, 100] {
            let mut role = role_of(&Behaviour::Faulty(Fault::Corrupt { at: 5 }), 0);
            let mut out = Vec::new();
            for bytes in [0_u8; 9].chunks(piece) {
                role.received(bytes, &mut out);
            }
            assert_eq!(out, [0, 0, 0, 0, 0, 1, 0, 0, 0]);
        }
    }
}
