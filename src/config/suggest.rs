//! "Did you mean": the known word closest to a misspelt one. Pure.

use super::limits::NAME_MAX_BYTES;

/// The known word that a misspelt one was probably meant to be: at most a third of it differs.
pub(super) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // A key far longer than any known one is not a slip, and comparing it would cost its square.
    if word.len() > NAME_MAX_BYTES {
        return None;
    }
    let differs_most = (word.chars().count() / 3).max(1);
    let scored = known
        .iter()
        .map(|candidate| (edit_distance(word, candidate), *candidate));
    scored
        .filter(|(distance, _)| *distance <= differs_most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Levenshtein's distance without regard to case; a swap of neighbours counts as one.
fn edit_distance(one: &str, other: &str) -> usize {
    let fold = |text: &str| {
        text.chars()
            .map(|c| {
                if c == '-' {
                    '_'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    };
    let one: Vec<char> = fold(one);
    let other: Vec<char> = fold(other);
    let mut before_previous: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut current = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = previous[j] + usize::from(a != b);
            let mut best = replaced.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                best = best.min(before_previous[j - 1] + 1);
            }
            current.push(best);
        }
        before_previous = std::mem::replace(&mut previous, current);
    }
    previous[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["connect", "idle", "half_close", "max_age", "drain"];
        for (word, expected) in [
            ("conect", Some("connect")),
            ("idel", Some("idle")),
            ("half-close", Some("half_close")),
            ("HalfClose", Some("half_close")),
            ("maxage", Some("max_age")),
            ("keepalive", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(closest(word, &known), expected, "{word}");
        }
    }
}
