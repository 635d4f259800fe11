//! CRC-32C (Castagnoli), as RFC 4960 appendix B and RFC 3720 section 12.1 define it: reflected, all ones at
//! the beginning, inverted at the end.
//!
//! One table and a byte at a time: it runs once per connection over at most a few hundred bytes, where
//! hardware instructions would gain nothing.

/// The polynomial 0x1EDC6F41 with its bits reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < u8::BITS {
            value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

/// The checksum of several pieces as if they were one.
pub(super) fn checksum(pieces: &[&[u8]]) -> u32 {
    let step = |crc: u32, byte: &u8| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    !pieces.iter().copied().flatten().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3720 appendix B.4 (there in the order of the bytes on the wire), and the usual
    /// check value.
    #[test]
    fn known_checksums() {
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, expected) in [
            (&[0; 32][..], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&ascending, 0x46DD_794E),
            (b"123456789", 0xE306_9283),
            (b"", 0),
        ] {
            assert_eq!(checksum(&[bytes]), expected, "{bytes:x?}");
            let (left, right) = bytes.split_at(bytes.len() / 2);
            assert_eq!(checksum(&[left, right]), expected);
        }
    }
}
