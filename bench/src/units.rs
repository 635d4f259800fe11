//! Sizes and rates as they are typed: `1000`, `64KiB`, `300MiB`. Parsing and printing only.
//!
//! Whether a value makes sense where it is used is not decided here.

use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    /// `4096`, `64KiB`, `64k`, `1GiB`: units are powers of 1024, in either case.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_bytes = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            // 1000 to some, 1024 to others: whoever means one must not get the other.
            "kb" | "mb" | "gb" => {
                return Err("write KiB, MiB or GiB, which are powers of 1024".to_owned());
            }
            _ => return Err("write a whole number of bytes, or a size like 64KiB".to_owned()),
        };
        if number.is_empty() {
            return Err("write a number of bytes, or a size like 64KiB".to_owned());
        }
        let number: Option<u64> = number.parse().ok();
        number
            .and_then(|number| number.checked_mul(unit_bytes))
            .map(Self)
            .ok_or_else(|| "write a smaller size".to_owned())
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that divides it: `64KiB`, `20MiB`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit_bytes, unit) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(unit_bytes) {
                return write!(f, "{}{unit}", self.0 / unit_bytes);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl TryFrom<ByteSize> for usize {
    type Error = std::num::TryFromIntError;

    fn try_from(size: ByteSize) -> Result<usize, Self::Error> {
        usize::try_from(size.0)
    }
}

/// A number of bytes per second. A slow one may be a part of a byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ByteRate(pub f64);

impl FromStr for ByteRate {
    type Err = String;

    /// As a [`ByteSize`], or a plain number with a fraction: `300MiB`, `0.5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        match text.parse() {
            Ok(rate) if is_plain => Ok(Self(rate)),
            _ => text.parse().map(|ByteSize(bytes)| Self(bytes as f64)),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_they_are_typed() {
        for (text, bytes) in [
            ("0", 0),
            ("20971520", 20 * MIB),
            ("64KiB", 64 * KIB),
            ("64k", 64 * KIB),
            ("20 mib", 20 * MIB),
            ("1GiB", GIB),
            ("2G", 2 * GIB),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for (text, remedy) in [
            ("", "a number of bytes"),
            ("KiB", "a number of bytes"),
            ("-1", "a whole number"),
            ("1.5MiB", "a whole number"),
            ("16 apples", "a whole number"),
            ("16KB", "powers of 1024"),
            ("99999999999999999999", "smaller"),
            ("18446744073709551615k", "smaller"),
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.contains(remedy), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for (bytes, text) in [
            (0, "0"),
            (1000, "1000"),
            (64 * KIB, "64KiB"),
            (20 * MIB, "20MiB"),
            (GIB, "1GiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn rates_take_units_and_fractions_but_not_both() {
        for (text, rate) in [
            ("10000", 10_000.0),
            ("0.5", 0.5),
            ("300MiB", 314_572_800.0),
            ("1g", 1_073_741_824.0),
        ] {
            assert_eq!(text.parse(), Ok(ByteRate(rate)), "{text}");
        }
        for text in ["", ".", "-1", "inf", "nan", "1e3", "1.5MiB", "5MB"] {
            text.parse::<ByteRate>().unwrap_err();
        }
        assert_eq!(ByteRate(10_000.0).to_string(), "10000");
    }
}
