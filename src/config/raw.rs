//! The configuration as written: a tree of YAML values that still has its duplicate keys, and a way
//! back from a value to its line.
//!
//! Not a set of derived structs, on purpose: those keep the last of two equal keys silently, stop at
//! the first unknown key, and cannot expand `${NAME}` in what is to become a number. It knows no key
//! of the configuration; that is `validate`'s part.
//!
//! serde_yaml tells the position of an error but not that of a value. Every value and every key
//! therefore has a number, in reading order, and [`locate`] reads the text again and fails on
//! purpose at the wanted number.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};

use super::limits::{NODES_MAX, TEXT_MAX_BYTES};
use super::problem::{Position, Problem};

/// A key's or a value's number in reading order; the root is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(u32);

/// A value as written.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) value: Value,
}

/// What kind of value.
#[derive(Debug)]
pub(super) enum Value {
    /// `~`, `null` or nothing at all.
    Null,
    /// Text, a number or a boolean, all as text, not expanded yet. Whether it must be a number is for
    /// its reader to say.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the text, duplicates included.
    Map(Vec<Entry>),
}

/// One line of a mapping.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_id: NodeId,
    pub(super) value: Node,
}

/// Reads a whole text.
///
/// # Errors
/// The first place that is not YAML, or not of the kind of YAML that a configuration needs.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    if text.len() > TEXT_MAX_BYTES {
        return Err(Problem {
            position: None,
            path: String::new(),
            problem: format!("the text is longer than {} MiB", TEXT_MAX_BYTES >> 20),
            remedy: "split it over several instances".to_owned(),
        });
    }
    let reader = Reader {
        next_id: Cell::new(0),
        stop_at: None,
    };
    reader
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| syntax_problem(&error))
}

/// Where the value with this number stands; `None` if the text has no such value.
pub(super) fn locate(text: &str, id: NodeId) -> Option<Position> {
    let reader = Reader {
        next_id: Cell::new(0),
        stop_at: Some(id),
    };
    reader
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()
        .and_then(|error| position_of(&error))
}

fn position_of(error: &serde_yaml::Error) -> Option<Position> {
    error.location().map(|location| Position {
        line: location.line(),
        column: location.column(),
    })
}

fn syntax_problem(error: &serde_yaml::Error) -> Problem {
    let position = position_of(error);
    let mut problem = error.to_string();
    if let Some(Position { line, column }) = position {
        // The position goes in front, once.
        problem = problem.replacen(&format!(" at line {line} column {column}"), "", 1);
    }
    // serde_yaml puts the path in front of messages of a visitor, except at the root.
    let (path, problem) = match problem.split_once(": ") {
        Some((path, rest)) if !path.contains(' ') => (path.to_owned(), rest.to_owned()),
        _ => (String::new(), problem),
    };
    let (problem, remedy) = match problem.as_str() {
        TAG_PROBLEM => (problem, "remove the `!tag`"),
        KEY_PROBLEM => (problem, "write a plain name before the colon"),
        "unknown anchor" => (problem, "define it before, with &, or remove the *"),
        "repetition limit exceeded" => (
            "aliases expand to too many values".to_owned(),
            "write the values out",
        ),
        "recursion limit exceeded" => (
            "lists or mappings are nested too deep".to_owned(),
            "remove the extra levels",
        ),
        text if text.contains("more than one document") => (
            "there is more than one YAML document".to_owned(),
            "keep one; remove the `---` lines",
        ),
        _ => (
            problem,
            "check the indentation, and quote values that hold [ ] { } # or `: `, like \"[::]:9000\" or \"${NAME}\"",
        ),
    };
    Problem {
        position,
        path,
        problem,
        remedy: remedy.to_owned(),
    }
}

const TAG_PROBLEM: &str = "YAML tags have no meaning here";
const KEY_PROBLEM: &str = "a key must be a plain word";

/// Numbers the values while it reads them, and stops on demand.
struct Reader {
    next_id: Cell<u32>,
    stop_at: Option<NodeId>,
}

impl Reader {
    fn number<E: de::Error>(&self) -> Result<NodeId, E> {
        let id = NodeId(self.next_id.get());
        if id.0 >= NODES_MAX {
            return Err(E::custom(format!(
                "more than {NODES_MAX} values, aliases expanded"
            )));
        }
        self.next_id.set(id.0 + 1);
        if self.stop_at == Some(id) {
            return Err(E::custom("found"));
        }
        Ok(id)
    }

    fn scalar<E: de::Error>(&self, text: String) -> Result<Node, E> {
        Ok(Node {
            id: self.number()?,
            value: Value::Scalar(text),
        })
    }
}

impl<'de> DeserializeSeed<'de> for &Reader {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Reader {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a mapping")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node {
            id: self.number()?,
            value: Value::Null,
        })
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        self.scalar(value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        self.scalar(value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        self.scalar(value.to_string())
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Node, E> {
        self.scalar(value.to_string())
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        self.scalar(value.to_string())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        // The debug form keeps the point of `3.0`, so that a fraction never passes for an integer.
        self.scalar(format!("{value:?}"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.scalar(value.to_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let id = self.number()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node {
            id,
            value: Value::List(items),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let id = self.number()?;
        let mut entries = Vec::new();
        while let Some((key, key_id)) = access.next_key_seed(KeyReader(self))? {
            let value = access.next_value_seed(self)?;
            entries.push(Entry { key, key_id, value });
        }
        Ok(Node {
            id,
            value: Value::Map(entries),
        })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _access: A) -> Result<Node, A::Error> {
        Err(de::Error::custom(TAG_PROBLEM))
    }
}

/// Reads a key: any scalar, as text.
struct KeyReader<'r>(&'r Reader);

impl<'de> DeserializeSeed<'de> for KeyReader<'_> {
    type Value = (String, NodeId);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match deserializer.deserialize_any(self.0)? {
            Node {
                id,
                value: Value::Scalar(text),
            } => Ok((text, id)),
            Node { .. } => Err(de::Error::custom(KEY_PROBLEM)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_survive_and_every_value_is_found_again() {
        let text = "a: 1\nb:\n  - x\n  - {c: 2, c: 3}\na: 0x10\n";
        let root = parse(text).expect("valid YAML");
        let Value::Map(entries) = &root.value else {
            panic!("a mapping, not {root:?}")
        };
        let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "a"]);
        assert!(matches!(&entries[2].value.value, Value::Scalar(text) if text == "16"));
        assert_eq!(locate(text, root.id), Some(Position { line: 1, column: 1 }));
        assert_eq!(
            locate(text, entries[2].key_id),
            Some(Position { line: 5, column: 1 })
        );
        assert_eq!(
            locate(text, entries[2].value.id),
            Some(Position { line: 5, column: 4 })
        );
        let Value::List(items) = &entries[1].value.value else {
            panic!("a list")
        };
        let Value::Map(inner) = &items[1].value else {
            panic!("a mapping")
        };
        assert_eq!(
            locate(text, inner[1].key_id),
            Some(Position {
                line: 4,
                column: 12
            })
        );
    }

    #[test]
    fn numbers_beyond_64_bits_and_fractions_stay_text() {
        for (text, expected) in [
            (
                "340282366920938463463374607431768211455",
                "340282366920938463463374607431768211455",
            ),
            ("3.0", "3.0"),
            ("true", "true"),
            ("0660", "0660"),
            ("off", "off"),
        ] {
            let node = parse(text).expect(text);
            assert!(
                matches!(&node.value, Value::Scalar(scalar) if scalar == expected),
                "{text}: {node:?}"
            );
        }
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let previous = level - 1;
            let aliases = vec![format!("*a{previous}"); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(parse(&text).is_err());
    }
}
