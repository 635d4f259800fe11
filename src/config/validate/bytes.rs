//! Bytes as they are written: text as it stands (YAML's double quotes know `\r\n`), or `hex:` and pairs of digits.

use crate::config::read::{Place, Report};

/// 1 to `most` bytes.
pub(super) fn bytes(
    report: &mut Report<'_>,
    place: &Place,
    text: &str,
    most: usize,
) -> Option<Vec<u8>> {
    let bytes = match text.strip_prefix("hex:") {
        Some(digits) => hex_digits(digits),
        None => Some(text.as_bytes().to_vec()),
    };
    match bytes {
        Some(bytes) if (1..=most).contains(&bytes.len()) => return Some(bytes),
        Some(bytes) => report.add(
            place.clone(),
            format!("is {} bytes long", bytes.len()),
            format!("write 1 to {most} bytes, or remove it"),
        ),
        None => report.add(
            place.clone(),
            "is not pairs of hexadecimal digits",
            "write bytes like hex:0d0a, or text without `hex:`",
        ),
    }
    None
}

fn hex_digits(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<char> = digits.chars().filter(|c| *c != ' ').collect();
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => {
            let value = high.to_digit(16)? * 16 + low.to_digit(16)?;
            u8::try_from(value).ok()
        }
        _ => None,
    });
    pairs.collect()
}
