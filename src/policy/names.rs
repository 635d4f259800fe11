//! Which of many names one belongs to: exact, or by the longest `*.suffix`.
//!
//! A wildcard stands for one or more labels: `*.example.com` holds `a.example.com` and `a.b.example.com`, not
//! `example.com` (as nginx has it; a certificate's wildcard, RFC 6125, stands for exactly one). An exact name wins
//! over every wildcard, a longer wildcard over a shorter one. A lookup costs a hash per label.

use std::collections::HashMap;

/// Names with something behind each.
#[derive(Clone, Debug)]
pub struct Names<T> {
    exact: HashMap<Box<str>, T>,
    /// By what follows the `*.`.
    wildcards: HashMap<Box<str>, T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            wildcards: HashMap::new(),
        }
    }
}

impl<T: Copy> Names<T> {
    /// Adds a name, or a wildcard, in lower case and without a final dot.
    pub fn insert(&mut self, name: &str, value: T) {
        match name.strip_prefix("*.") {
            Some(suffix) => self.wildcards.insert(suffix.into(), value),
            None => self.exact.insert(name.into(), value),
        };
    }

    /// What stands behind a name, in lower case and without a final dot.
    pub fn get(&self, name: &str) -> Option<T> {
        if let Some(value) = self.exact.get(name) {
            return Some(*value);
        }
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(value) = self.wildcards.get(suffix) {
                return Some(*value);
            }
            rest = suffix;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_win_and_then_the_longest_wildcard() {
        let mut names = Names::default();
        for (name, value) in [
            ("example.com", 1),
            ("*.example.com", 2),
            ("*.b.example.com", 3),
            ("a.b.example.com", 4),
            ("*.com", 5),
        ] {
            names.insert(name, value);
        }
        for (name, value) in [
            ("example.com", Some(1)),
            ("a.example.com", Some(2)),
            ("x.a.example.com", Some(2)),
            ("b.example.com", Some(2)),
            ("c.b.example.com", Some(3)),
            ("a.b.example.com", Some(4)),
            ("other.com", Some(5)),
            ("com", None),
            ("example.org", None),
            ("notexample.com", Some(5)),
            ("", None),
        ] {
            assert_eq!(names.get(name), value, "{name}");
        }
    }
}
