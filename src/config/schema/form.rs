//! The forms that a setting may be written in, each with its JSON Schema and its words for people.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::limits::NAME_MAX_BYTES;
use crate::config::read::OFF;
use crate::units::{ByteSize, format_duration};

/// Labels, which begin and end with no `-`, and a last one that is not digits alone: that would be an IP
/// address. Without look-ahead, which not every validator has.
const HOST: &str = r"([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*[0-9]*([A-Za-z_]([A-Za-z0-9_-]*[A-Za-z0-9_])?|[0-9]-[A-Za-z0-9_-]*[A-Za-z0-9_])";
const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
/// Loose: what is wrong with an IPv6 address is for `corelay check` to say.
const IPV6: &str = "[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*";
const PORT: &str = "[0-9]{1,5}";
/// No server has port 0.
const SERVER_PORT: &str = "0*[1-9][0-9]{0,4}";
const UNIX: &str = r"unix:/[^\x00-\x1f]*";

/// One way to write a setting. A setting has one or several.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A section whose keys are those below this one.
    Section,
    /// Names, and what stands under each.
    Names {
        what: &'static str,
        names: String,
        values: Vec<Form>,
        count: RangeInclusive<usize>,
    },
    List {
        what: &'static str,
        items: Vec<Form>,
        count: RangeInclusive<usize>,
    },
    Words(Vec<&'static str>),
    Bool,
    Number(RangeInclusive<u64>),
    Duration(RangeInclusive<Duration>),
    /// Bytes, in whole multiples of `step`.
    Size {
        range: RangeInclusive<u64>,
        step: u64,
    },
    /// What is read as text, also where YAML sees a number or a truth in it.
    Text {
        what: &'static str,
        pattern: String,
    },
    /// Text that is no number and no truth.
    Pattern {
        what: &'static str,
        pattern: String,
    },
}

impl Form {
    pub(super) fn off() -> Self {
        Form::Words(vec![OFF])
    }

    /// The words of one of validation's tables.
    pub(super) fn words<T>(words: &[(&'static str, T)]) -> Self {
        Form::Words(words.iter().map(|(word, _)| *word).collect())
    }

    /// As [`Form::words`], in lower or upper case. `what` names them for people, who know the pattern.
    pub(super) fn words_in_any_case<T>(what: &'static str, words: &[(&'static str, T)]) -> Self {
        let cases = words
            .iter()
            .map(|(word, _)| format!("{word}|{}", word.to_ascii_uppercase()));
        let pattern = cases.collect::<Vec<_>>().join("|");
        Form::Pattern { what, pattern }
    }

    pub(super) fn text(what: &'static str) -> Self {
        let pattern = r"[\s\S]+".to_owned();
        Form::Text { what, pattern }
    }

    pub(super) fn text_like(what: &'static str, pattern: &str) -> Self {
        let pattern = pattern.to_owned();
        Form::Text { what, pattern }
    }

    pub(super) fn pattern(what: &'static str, pattern: &str) -> Self {
        let pattern = pattern.to_owned();
        Form::Pattern { what, pattern }
    }

    /// A name that the user gives.
    pub(super) fn name() -> Self {
        Self::text_like("name", &name_pattern())
    }

    pub(super) fn host() -> Self {
        Self::text_like("name", HOST)
    }

    pub(super) fn bind() -> Self {
        Self::pattern("address", &format!("{}|{UNIX}", socket(PORT)))
    }

    pub(super) fn admin_bind() -> Self {
        Self::pattern("ip:port", &socket(PORT))
    }

    pub(super) fn server() -> Self {
        let socket = socket(SERVER_PORT);
        let pattern = format!(r"{socket}|{UNIX}|srv:{HOST}\.?|{HOST}\.?:{SERVER_PORT}");
        Self::pattern("address", &pattern)
    }

    /// One without names.
    pub(super) fn known_server() -> Self {
        let pattern = format!("{}|{UNIX}", socket(SERVER_PORT));
        Self::pattern("ip:port, [ip]:port, unix:/path", &pattern)
    }

    pub(super) fn ip_or_socket() -> Self {
        Self::pattern(
            "IP or ip:port",
            &format!("{}|{}", ip(), socket(SERVER_PORT)),
        )
    }

    pub(super) fn ip_range() -> Self {
        let pattern = format!("{ip}( *- *{ip})?", ip = ip());
        Self::pattern("IP, range", &pattern)
    }

    pub(super) fn network() -> Self {
        Self::pattern("network", &format!("{}(/[0-9]{{1,3}})?", ip()))
    }

    pub(super) fn list(what: &'static str, least: usize, items: Vec<Form>) -> Self {
        let count = least..=usize::MAX;
        Form::List { what, items, count }
    }

    /// The schemas that this form is one of, below the path of its setting. `section` makes that of
    /// the keys below a path; `is_alone`: no word may stand in place of it.
    pub(super) fn schema(
        &self,
        path: &str,
        is_alone: bool,
        section: &dyn Fn(&str, bool) -> Value,
    ) -> Vec<Value> {
        match self {
            Form::Section => vec![section(path, is_alone)],
            Form::Names {
                what: _,
                names,
                values,
                count,
            } => {
                // No value at all is an empty mapping.
                let kind = if *count.start() == 0 {
                    json!(["object", "null"])
                } else {
                    json!("object")
                };
                let mut schema = json!({
                    "type": kind,
                    "propertyNames": { "pattern": whole(names) },
                    "additionalProperties": any_of(values, &format!("{path}.NAME"), section),
                });
                bound(&mut schema, count, "minProperties", "maxProperties");
                vec![schema]
            }
            Form::List {
                what: _,
                items,
                count,
            } => {
                let items = any_of(items, &format!("{path}[]"), section);
                let mut schema = json!({ "type": "array", "items": items });
                bound(&mut schema, count, "minItems", "maxItems");
                vec![schema]
            }
            scalar => scalar.scalar_schema(),
        }
    }

    fn scalar_schema(&self) -> Vec<Value> {
        match self {
            Form::Words(words) => vec![json!({ "enum": words })],
            // In quotes, too: everything is read as text first.
            Form::Bool => vec![json!({ "type": "boolean" }), like("true|false")],
            Form::Number(range) => vec![
                json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
                like("[0-9]+"),
            ],
            Form::Duration(_) => vec![like(r"[0-9]+\s*(us|ms|s|m|h|d)")],
            Form::Size { range, step } => vec![
                json!({
                    "type": "integer",
                    "minimum": range.start(),
                    "maximum": range.end(),
                    "multipleOf": step,
                }),
                like(r"[0-9]+\s*([kKmMgG]([iI][bB])?|[bB])?"),
            ],
            Form::Text { what: _, pattern } => vec![json!({
                "type": ["string", "number", "boolean"],
                "pattern": whole(pattern),
            })],
            Form::Pattern { what: _, pattern } => vec![like(pattern)],
            Form::Section | Form::Names { .. } | Form::List { .. } => Vec::new(),
        }
    }

    pub(super) fn is_scalar(&self) -> bool {
        !matches!(self, Form::Section | Form::Names { .. } | Form::List { .. })
    }

    /// As the index of the documentation says it.
    pub(super) fn said(&self) -> String {
        match self {
            Form::Section => "section".to_owned(),
            Form::Names { what, values, .. } => match values.as_slice() {
                [number @ Form::Number(_)] => format!("{what}, {}", number.said()),
                _ => (*what).to_owned(),
            },
            Form::List { what, .. } | Form::Text { what, .. } | Form::Pattern { what, .. } => {
                (*what).to_owned()
            }
            Form::Words(words) => words.join(", "),
            Form::Bool => "true, false".to_owned(),
            Form::Number(range) => format!("{} to {}", range.start(), range.end()),
            Form::Duration(range) => {
                let (least, most) = (*range.start(), *range.end());
                format!("{} to {}", format_duration(least), format_duration(most))
            }
            Form::Size { range, .. } => {
                format!("{} to {}", ByteSize(*range.start()), ByteSize(*range.end()))
            }
        }
    }
}

/// What may be written in any of these forms. Every scalar may be a variable, whose value nobody knows yet.
pub(super) fn any_of(forms: &[Form], path: &str, section: &dyn Fn(&str, bool) -> Value) -> Value {
    let has_words = forms
        .iter()
        .any(|form| matches!(form, Form::Words(words) if words.as_slice() != [OFF]));
    let schemas = forms
        .iter()
        .map(|form| form.schema(path, !has_words, section));
    let mut schemas: Vec<Value> = schemas.flatten().collect();
    if forms.iter().any(Form::is_scalar) {
        schemas.push(json!({ "type": "string", "pattern": VARIABLE }));
    }
    match schemas.len() {
        // Nobody said how this key is written; a test names it.
        0 => json!({}),
        1 => schemas.remove(0),
        _ => json!({ "anyOf": schemas }),
    }
}

/// `${NAME}` or `${NAME:-default}` somewhere in the text.
const VARIABLE: &str = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}";

pub(super) fn name_pattern() -> String {
    format!("[A-Za-z0-9_.-]{{1,{NAME_MAX_BYTES}}}")
}

/// Names to route by: hosts, or every name below one.
pub(super) fn route_pattern() -> String {
    format!(r"(\*\.)?{HOST}\.?")
}

fn ip() -> String {
    format!(r"({OCTET}(\.{OCTET}){{3}}|{IPV6})")
}

fn socket(port: &str) -> String {
    // An IPv6 address may name its interface, which needs a number.
    format!(r"({OCTET}(\.{OCTET}){{3}}|\[{IPV6}(%[0-9]+)?\]):{port}")
}

/// Text that is this and nothing else.
fn like(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": whole(pattern) })
}

fn whole(pattern: &str) -> String {
    format!("^({pattern})$")
}

fn bound(schema: &mut Value, count: &RangeInclusive<usize>, least: &str, most: &str) {
    if *count.start() > 0 {
        schema[least] = json!(count.start());
    }
    if *count.end() < usize::MAX {
        schema[most] = json!(count.end());
    }
}
