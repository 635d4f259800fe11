//! The script of [`super::rr`] and [`super::crr`]: what comes back is what was sent.

use std::io::{self, Read, Write};

use socket2::Socket;

use super::exchange::{Message, Script};
use crate::pattern::Pattern;

/// Most bytes received at a time.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Messages differ by where in the pattern they begin, so that an answer that belongs to another
/// connection or to an earlier request is seen. So many beginnings there are.
const BEGINNINGS: usize = 251;

/// Messages of one size and their echoes.
#[derive(Debug)]
pub(super) struct Echo {
    size_bytes: usize,
    pattern: Vec<u8>,
    scratch: Vec<u8>,
}

impl Echo {
    pub(super) fn new(size_bytes: usize) -> Self {
        Self {
            size_bytes,
            pattern: Pattern::new(size_bytes as u64).bytes(0, size_bytes + BEGINNINGS),
            scratch: vec![0; size_bytes.min(RECEIVE_BYTES)],
        }
    }
}

impl Script for Echo {
    const ANSWER: &'static str = "echo";

    fn message(&mut self, slot: usize, number: usize) -> Message {
        Message {
            request_bytes: self.size_bytes,
            answer_bytes: self.size_bytes as u64,
            beginning: slot.wrapping_add(number) % BEGINNINGS,
        }
    }

    fn send(&self, mut socket: &Socket, message: &Message, sent: usize) -> io::Result<usize> {
        let rest = message.beginning + sent..message.beginning + self.size_bytes;
        socket.write(&self.pattern[rest])
    }

    fn receive(
        &mut self,
        mut socket: &Socket,
        _message: &Message,
        received: u64,
    ) -> io::Result<usize> {
        let missing = self.size_bytes - received as usize;
        let wanted = missing.min(self.scratch.len());
        socket.read(&mut self.scratch[..wanted])
    }

    fn is_right(&self, message: &Message, received: u64, read: usize) -> bool {
        let start = message.beginning + received as usize;
        self.scratch[..read] == self.pattern[start..start + read]
    }
}
