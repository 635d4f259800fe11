//! Seeded bytes: byte N of a stream is a function of the seed and N.
//!
//! So a receiver can check any piece of a stream without keeping what was sent, and a byte that
//! crossed from one connection to another shows as the wrong seed's byte. Not a cipher, not random
//! enough for anything but telling streams and offsets apart.

/// Bytes per word of the generator.
const WORD_BYTES: u64 = 8;

/// One stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        // Mixed once, so that neighbouring seeds do not give shifted copies of one stream.
        Self { seed: mix(seed) }
    }

    /// Writes the stream's bytes from `offset` on into `buffer`.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let word = self.word(at / WORD_BYTES);
            let skip = (at % WORD_BYTES) as usize;
            let take = rest.len().min(word.len() - skip);
            let (head, tail) = rest.split_at_mut(take);
            head.copy_from_slice(&word[skip..skip + take]);
            at += take as u64;
            rest = tail;
        }
    }

    /// The stream's bytes from `offset` on.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        self.fill(offset, &mut buffer);
        buffer
    }

    /// The offset in `received` of the first byte that is not the stream's, the first of
    /// `received` being the stream's byte `offset`.
    pub fn first_difference(&self, offset: u64, received: &[u8]) -> Option<usize> {
        const CHUNK_BYTES: usize = 4096;
        let mut expected = [0; CHUNK_BYTES];
        for (index, chunk) in received.chunks(CHUNK_BYTES).enumerate() {
            let start = index * CHUNK_BYTES;
            let expected = &mut expected[..chunk.len()];
            self.fill(offset + start as u64, expected);
            if chunk != expected {
                let inside = chunk.iter().zip(expected.iter()).position(|(a, b)| a != b);
                return inside.map(|position| start + position);
            }
        }
        None
    }

    fn word(&self, index: u64) -> [u8; WORD_BYTES as usize] {
        mix(self.seed.wrapping_add(index)).to_le_bytes()
    }
}

/// The finaliser of SplitMix64: each input bit changes half of the output bits.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A small seeded generator for tests and load: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let value = mix(self.state);
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        value
    }

    /// A number below `bound`, which must not be 0. Slightly uneven for huge bounds.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        self.next_u64() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_equals_the_same_piece_of_the_whole() {
        let pattern = Pattern::new(7);
        let whole = pattern.bytes(0, 1000);
        for (offset, length) in [(0, 1), (1, 7), (7, 9), (8, 8), (991, 9), (123, 456)] {
            assert_eq!(
                pattern.bytes(offset as u64, length),
                whole[offset..offset + length]
            );
        }
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let pattern = Pattern::new(7);
        let mut bytes = pattern.bytes(100, 10_000);
        assert_eq!(pattern.first_difference(100, &bytes), None);
        bytes[9_001] ^= 1;
        assert_eq!(pattern.first_difference(100, &bytes), Some(9_001));
        assert_eq!(Pattern::new(8).first_difference(100, &bytes), Some(0));
    }

    #[test]
    fn neighbouring_seeds_are_not_shifted_copies() {
        let one = Pattern::new(1).bytes(0, 64);
        let two = Pattern::new(2).bytes(0, 64);
        assert!(!one.windows(8).any(|w| two.windows(8).any(|v| v == w)));
    }
}
