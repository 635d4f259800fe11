//! A walk over bytes with big-endian numbers and lengths, as TLS and PROXY v2 use them.
//!
//! Every step either succeeds within the bytes or gives `None`: there is no index to get wrong.

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Bytes behind a length of one byte.
    pub(super) fn take_u8_prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    /// Bytes behind a length of two bytes.
    pub(super) fn take_u16_prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_past_the_end_give_nothing_and_take_nothing() {
        let mut cursor = Cursor::new(&[0, 2, b'a', b'b', 3, b'c']);
        assert_eq!(cursor.take_u16_prefixed(), Some(&b"ab"[..]));
        assert_eq!(cursor.clone().take_u8_prefixed(), None);
        assert_eq!(cursor.take(3), None);
        assert_eq!(cursor.u16(), Some(0x0363));
        assert_eq!((cursor.len(), cursor.is_empty()), (0, true));
        assert_eq!(cursor.u8(), None);
    }
}
