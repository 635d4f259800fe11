//! Typed reading of the raw tree: every mistake is noted in a [`Report`] and reading goes on.
//!
//! Getters return `None` after they noted a problem, so that the caller can put a default in and
//! find the next problem. It knows kinds of values but no key of the configuration.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::expand;
use super::limits::NAME_MAX_BYTES;
use super::raw::{Node, NodeId, Value};
use super::suggest::closest;
use crate::units::{ByteSize, UnitError, format_duration, parse_duration, shorten};

/// The word that switches a setting off.
pub(super) const OFF: &str = "off";

/// A value and the path to it.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'n> {
    pub(super) node: &'n Node,
    pub(super) path: String,
}

/// A place that outlives the cursor, for the checks that come after reading.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// `None` for what has no text: the command line.
    pub(super) id: Option<NodeId>,
    pub(super) path: String,
}

/// One problem before its line is known.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) place: Place,
    pub(super) problem: String,
    pub(super) remedy: String,
}

/// Everything found so far.
pub(super) struct Report<'e> {
    env: &'e dyn Fn(&str) -> Option<String>,
    pub(super) findings: Vec<Finding>,
}

/// A mapping whose keys are known.
pub(super) struct Section<'n> {
    pub(super) place: Place,
    entries: Vec<(&'n str, Cursor<'n>)>,
}

impl<'n> Cursor<'n> {
    pub(super) fn root(node: &'n Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            id: Some(self.node.id),
            path: self.path.clone(),
        }
    }

    fn key(&self, key: &str, node: &'n Node) -> Self {
        Self {
            node,
            path: join(&self.path, key),
        }
    }

    fn index(&self, index: usize, node: &'n Node) -> Self {
        Self {
            node,
            path: format!("{}[{index}]", self.path),
        }
    }
}

/// `a` and `b` make `a.b`; a key that is not a plain word is escaped, so that it stays on one line.
fn join(path: &str, key: &str) -> String {
    let key = if key.is_empty() {
        "\"\"".to_owned()
    } else {
        shorten(key)
    };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

impl<'e> Report<'e> {
    pub(super) fn new(env: &'e dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            env,
            findings: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        place: Place,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.findings.push(Finding {
            place,
            problem: problem.into(),
            remedy: remedy.into(),
        });
    }

    /// The text of a scalar, expanded. Call it once per value.
    pub(super) fn text(&mut self, at: &Cursor<'_>) -> Option<String> {
        match &at.node.value {
            Value::Scalar(text) => match expand::expand(text, self.env) {
                // No setting takes an empty text; a variable that is set to nothing ends here too.
                Ok(text) if text.is_empty() => {
                    self.add(
                        at.place(),
                        "is empty",
                        "write a value, or remove the key for the default",
                    );
                    None
                }
                Ok(text) => Some(text),
                Err(error) => {
                    self.add(at.place(), error.to_string(), error.remedy());
                    None
                }
            },
            Value::Null => {
                self.add(
                    at.place(),
                    "has no value",
                    "write one, or remove the key for the default",
                );
                None
            }
            Value::List(_) | Value::Map(_) => {
                let problem = format!("is {}, but must be one value", kind(at.node));
                self.add(
                    at.place(),
                    problem,
                    "write one value; quote it if it holds [ ] { }",
                );
                None
            }
        }
    }

    /// The items of a list.
    pub(super) fn list<'n>(&mut self, at: &Cursor<'n>) -> Option<Vec<Cursor<'n>>> {
        match &at.node.value {
            Value::List(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| at.index(index, item))
                    .collect(),
            ),
            Value::Null | Value::Scalar(_) | Value::Map(_) => {
                self.add(
                    at.place(),
                    format!("is {}, but must be a list", kind(at.node)),
                    "write it as [a, b]",
                );
                None
            }
        }
    }

    /// The items of a list that must have some, or the one value that stands in place of it.
    pub(super) fn one_or_list<'n>(
        &mut self,
        at: &Cursor<'n>,
        remedy: &str,
    ) -> Option<Vec<Cursor<'n>>> {
        if !matches!(at.node.value, Value::List(_)) {
            return Some(vec![at.clone()]);
        }
        let items = self.list(at)?;
        if items.is_empty() {
            self.add(at.place(), "the list is empty", remedy);
            return None;
        }
        Some(items)
    }

    /// The entries of a mapping, the first of equal keys only; the others are noted. `null` is an
    /// empty mapping: a section whose every line is commented out.
    fn entries<'n>(&mut self, at: &Cursor<'n>) -> Option<Vec<(&'n str, NodeId, Cursor<'n>)>> {
        let entries = match &at.node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            Value::Scalar(_) | Value::List(_) => {
                let problem = format!("is {}, but must be a mapping", kind(at.node));
                self.add(at.place(), problem, "write it as lines of `key: value`");
                return None;
            }
        };
        let mut unique: Vec<(&str, NodeId, Cursor<'_>)> = Vec::with_capacity(entries.len());
        let mut seen = std::collections::HashSet::with_capacity(entries.len());
        for entry in entries {
            let value = at.key(&entry.key, &entry.value);
            if seen.insert(entry.key.as_str()) {
                unique.push((&entry.key, entry.key_id, value));
            } else {
                let place = Place {
                    id: Some(entry.key_id),
                    path: value.path,
                };
                self.add(
                    place,
                    "stands here a second time",
                    "keep one of the two, or rename one",
                );
            }
        }
        Some(unique)
    }

    /// A mapping with fixed keys. Others are noted, with the key that was probably meant.
    pub(super) fn section<'n>(&mut self, at: &Cursor<'n>, known: &[&str]) -> Option<Section<'n>> {
        let mut entries = Vec::new();
        for (key, key_id, value) in self.entries(at)? {
            if known.contains(&key) {
                entries.push((key, value));
                continue;
            }
            let remedy = match closest(key, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.add(
                Place {
                    id: Some(key_id),
                    path: value.path,
                },
                "unknown key",
                remedy,
            );
        }
        Some(Section {
            place: at.place(),
            entries,
        })
    }

    /// A mapping with any keys.
    pub(super) fn pairs<'n>(&mut self, at: &Cursor<'n>) -> Option<Vec<(&'n str, Cursor<'n>)>> {
        let entries = self.entries(at)?.into_iter();
        Some(entries.map(|(key, _, value)| (key, value)).collect())
    }

    /// A mapping whose keys are names that the user gives.
    pub(super) fn named<'n>(&mut self, at: &Cursor<'n>) -> Option<Vec<(&'n str, Cursor<'n>)>> {
        let entries = self.entries(at)?;
        let mut named = Vec::with_capacity(entries.len());
        for (name, key_id, value) in entries {
            let plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(plain) {
                let place = Place {
                    id: Some(key_id),
                    path: value.path.clone(),
                };
                let remedy = format!("use 1 to {NAME_MAX_BYTES} letters, digits, `_`, `-` or `.`");
                self.add(place, "cannot be a name", remedy);
            }
            named.push((name, value));
        }
        Some(named)
    }

    /// A whole number within limits, in the type that keeps it, which must hold the whole range.
    pub(super) fn number<T: TryFrom<u64, Error: fmt::Debug>>(
        &mut self,
        at: &Cursor<'_>,
        range: &RangeInclusive<u64>,
    ) -> Option<T> {
        let text = self.text(at)?;
        let remedy = format!(
            "write a whole number from {} to {}",
            range.start(),
            range.end()
        );
        let digits_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u64>() {
            Ok(number) if digits_only && range.contains(&number) => {
                Some(T::try_from(number).expect("the type holds the range"))
            }
            _ if digits_only => {
                self.add(
                    at.place(),
                    format!("`{}` is out of range", shorten(&text)),
                    remedy,
                );
                None
            }
            _ => {
                self.add(
                    at.place(),
                    format!("`{}` is not a whole number", shorten(&text)),
                    remedy,
                );
                None
            }
        }
    }

    /// Whether the value is the word `off`.
    pub(super) fn is_off(&self, at: &Cursor<'_>) -> bool {
        self.is_word(at, OFF)
    }

    /// Whether the value is this word.
    pub(super) fn is_word(&self, at: &Cursor<'_>, word: &str) -> bool {
        match &at.node.value {
            // A variable that cannot be expanded is noted where the value is read.
            Value::Scalar(text) => {
                expand::expand(text, self.env).is_ok_and(|expanded| expanded == word)
            }
            Value::Null | Value::List(_) | Value::Map(_) => false,
        }
    }

    /// A whole number within limits, or `off`.
    pub(super) fn number_or_off<T: TryFrom<u64, Error: fmt::Debug>>(
        &mut self,
        at: &Cursor<'_>,
        range: &RangeInclusive<u64>,
    ) -> Option<Option<T>> {
        if self.is_off(at) {
            return Some(None);
        }
        self.number(at, range).map(Some)
    }

    /// A number of bytes within limits.
    pub(super) fn byte_size(
        &mut self,
        at: &Cursor<'_>,
        range: &RangeInclusive<u64>,
        step: u64,
    ) -> Option<u64> {
        let text = self.text(at)?;
        let ByteSize(bytes) = self.parsed(at, text.parse())?;
        if range.contains(&bytes) && bytes.is_multiple_of(step) {
            return Some(bytes);
        }
        let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
        let problem = if range.contains(&bytes) {
            "is not a whole multiple"
        } else {
            "is out of range"
        };
        let remedy = format!(
            "write a multiple of {} from {least} to {most}",
            ByteSize(step)
        );
        self.add(at.place(), format!("`{text}` {problem}"), remedy);
        None
    }

    /// A number of bytes within limits, or `off`, which is `None` like a mistake.
    pub(super) fn size_or_off(
        &mut self,
        at: &Cursor<'_>,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        let text = self.text(at)?;
        if text == OFF {
            return None;
        }
        let ByteSize(bytes) = self.parsed(at, text.parse())?;
        if range.contains(&bytes) {
            return Some(bytes);
        }
        let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
        self.add(
            at.place(),
            format!("`{}` is out of range", shorten(&text)),
            format!("write {least} to {most}, or off"),
        );
        None
    }

    /// A duration within limits.
    pub(super) fn duration(
        &mut self,
        at: &Cursor<'_>,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let text = self.text(at)?;
        if text == OFF {
            self.add(
                at.place(),
                "cannot be off",
                "write a duration, or remove the key for the default",
            );
            return None;
        }
        self.checked_duration(at, &text, range, "")
    }

    /// A duration within limits, or `off`.
    pub(super) fn duration_or_off(
        &mut self,
        at: &Cursor<'_>,
        range: &RangeInclusive<Duration>,
    ) -> Option<Option<Duration>> {
        let text = self.text(at)?;
        if text == OFF {
            return Some(None);
        }
        self.checked_duration(at, &text, range, ", or off")
            .map(Some)
    }

    /// `alternative` is what else could be written, as the end of the remedy.
    fn checked_duration(
        &mut self,
        at: &Cursor<'_>,
        text: &str,
        range: &RangeInclusive<Duration>,
        alternative: &str,
    ) -> Option<Duration> {
        match parse_duration(text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let (least, most) = (
                    format_duration(*range.start()),
                    format_duration(*range.end()),
                );
                let problem = format!("`{}` is out of range", shorten(text));
                self.add(
                    at.place(),
                    problem,
                    format!("write {least} to {most}{alternative}"),
                );
                None
            }
            Err(error) => {
                self.add(
                    at.place(),
                    error.to_string(),
                    format!("{}{alternative}", error.remedy()),
                );
                None
            }
        }
    }

    /// `true` or `false`. The YAML 1.1 words `yes` and `on` are text in YAML 1.2.
    pub(super) fn boolean(&mut self, at: &Cursor<'_>) -> Option<bool> {
        self.choice(at, &[("true", true), ("false", false)])
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, at: &Cursor<'_>, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(at)?;
        let chosen = choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if chosen.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let remedy = match (words.as_slice(), closest(&text, &words)) {
                ([one], _) => format!("write {one}"),
                ([one, other], _) => format!("write {one} or {other}"),
                (many, None) => format!("write one of {}", many.join(", ")),
                (many, Some(meant)) => {
                    format!("did you mean `{meant}`? It is one of {}", many.join(", "))
                }
            };
            self.add(
                at.place(),
                format!("`{}` is not a choice", shorten(&text)),
                remedy,
            );
        }
        chosen
    }

    /// Notes why a text is not the quantity it should be.
    pub(super) fn parsed<T>(&mut self, at: &Cursor<'_>, parsed: Result<T, UnitError>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(at.place(), error.to_string(), error.remedy());
                None
            }
        }
    }
}

impl<'n> Section<'n> {
    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<&Cursor<'n>> {
        self.entries
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// The value of a key that must be there.
    pub(super) fn require(
        &self,
        report: &mut Report<'_>,
        key: &str,
        example: &str,
    ) -> Option<&Cursor<'n>> {
        let found = self.get(key);
        if found.is_none() {
            report.add(
                self.place.clone(),
                format!("`{key}` is missing"),
                format!("add it, like `{example}`"),
            );
        }
        found
    }
}

fn kind(node: &Node) -> &'static str {
    match node.value {
        Value::Null => "empty",
        Value::Scalar(_) => "one value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}
