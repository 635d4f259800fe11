//! A JSON Schema (draft 2020-12) of the configuration, for editors that complete and check it.
//!
//! It says nothing that is not said elsewhere: the keys are validation's, the words, limits and
//! defaults are the tables that validation reads, the descriptions stand in the index of
//! `docs/configuration.md`, for one sentence kept in one place is kept. What is added here is [`keys`]:
//! the forms of each key. Tests hold each key's forms against what validation accepts.
//!
//! A schema sees one value at a time. Relations between parts (dangling references, collisions) and the
//! range of what is written with a unit are for `corelay check` to see.
//!
//! Only keywords that mean the same since draft 7, and no `$ref`: editors differ in the rest.

mod defaults;
mod form;
mod index;
mod keys;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::limits::LISTENERS_MAX;
use super::validate::{COMPACT_KEYS, known_keys};
use form::{Form, any_of};

/// Writes the schema, indented, with a line break at the end. The same each time.
pub fn schema() -> String {
    let generator = Generator::new();
    let mut schema = generator.section("", false);
    // The keywords of mappings say nothing of lists, and those of lists nothing of mappings: both forms
    // in one tell what is wrong with either, which a choice between the two does not.
    schema["type"] = json!(["object", "array"]);
    schema["items"] = generator.compact_item();
    schema["minItems"] = json!(1);
    schema["maxItems"] = json!(LISTENERS_MAX);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Corelay configuration");
    schema["description"] = json!(
        "docs/configuration.md explains every key; `corelay check` sees more than a schema can."
    );
    format!("{schema:#}\n")
}

struct Generator {
    known: Vec<String>,
    forms: HashMap<String, Vec<Form>>,
    rows: HashMap<&'static str, index::Row>,
    defaults: defaults::Defaults,
}

impl Generator {
    fn new() -> Self {
        Self {
            known: known_keys(),
            forms: keys::keys().into_iter().collect(),
            rows: index::rows()
                .into_iter()
                .map(|row| (row.key, row))
                .collect(),
            defaults: defaults::Defaults::new(),
        }
    }

    /// The section at a path; `may_be_empty`: no value at all is a section whose every line is
    /// commented out.
    fn section(&self, path: &str, may_be_empty: bool) -> Value {
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}.")
        };
        let below = |key: &'_ &String| {
            let name = key.strip_prefix(&prefix)?;
            (!name.contains('.')).then(|| (name.to_owned(), self.setting(key)))
        };
        let properties: Map<String, Value> =
            self.known.iter().filter_map(|key| below(&key)).collect();
        let mut schema = json!({ "properties": properties, "additionalProperties": false });
        let required = keys::required(path);
        let either = keys::either(path);
        let is_optional = required.is_empty() && either.is_empty();
        schema["type"] = if may_be_empty && is_optional {
            json!(["object", "null"])
        } else {
            json!("object")
        };
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if !either.is_empty() {
            let one = |key: &&str| json!({ "required": [key] });
            schema["oneOf"] = either.iter().map(one).collect();
        }
        schema
    }

    /// The value of a key.
    fn setting(&self, key: &str) -> Value {
        let section = |path: &str, may_be_empty| self.section(path, may_be_empty);
        let forms = self.forms.get(key).map_or(&[][..], Vec::as_slice);
        let mut schema = any_of(forms, key, &section);
        if let Some(row) = self.rows.get(key) {
            schema["description"] = row.description(&said(forms)).into();
        }
        if let Some(default) = self.defaults.of(key) {
            schema["default"] = default;
        }
        schema
    }

    /// An item of the compact form.
    fn compact_item(&self) -> Value {
        let [listen, forward] = COMPACT_KEYS;
        let section = |path: &str, may_be_empty| self.section(path, may_be_empty);
        let mut port = any_of(&keys::listen(), "listen", &section);
        port["description"] = "An address, or a port of every IPv4 address.".into();
        json!({
            "type": "object",
            "properties": { listen: port, forward: self.setting("upstreams.NAME.servers") },
            "required": COMPACT_KEYS,
            "additionalProperties": false,
        })
    }
}

/// What may be written, as the index says it.
fn said(forms: &[Form]) -> String {
    let said: Vec<String> = forms.iter().map(Form::said).collect();
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_forms_and_only_keys_have() {
        let known = known_keys();
        let forms: Vec<String> = keys::keys().into_iter().map(|(key, _)| key).collect();
        let missing: Vec<_> = known.iter().filter(|key| !forms.contains(key)).collect();
        assert!(
            missing.is_empty(),
            "say in src/config/schema/keys.rs how these are written: {missing:?}"
        );
        for key in &forms {
            assert!(known.contains(key), "there is no key {key}");
        }
        assert_eq!(forms.len(), known.len(), "a key stands there twice");
    }

    /// Keys whose default is no single value of theirs: another key, this host or a whole section decides.
    const DEFAULT_IN_WORDS: [&str; 18] = [
        "dns.nameservers",
        "listeners.NAME.limits",
        "listeners.NAME.limits.bandwidth",
        "listeners.NAME.limits.burst",
        "listeners.NAME.limits.per_source",
        "listeners.NAME.limits.per_source.burst",
        "listeners.NAME.route.no_name",
        "listeners.NAME.route.other_protocol",
        "upstreams.NAME.check.port",
        "upstreams.NAME.check.proxy_protocol",
        "upstreams.NAME.check.send",
        "upstreams.NAME.check.status",
        "upstreams.NAME.eject",
        "upstreams.NAME.queue",
        "upstreams.NAME.servers[].check_address",
        "upstreams.NAME.source.address",
        "upstreams.NAME.source.congestion",
        "upstreams.NAME.source.dscp",
    ];

    /// The numbers and words of the documentation are those of the code.
    #[test]
    fn the_index_says_what_may_be_written_and_what_stands_for_what_is_absent() {
        let Generator {
            forms,
            rows,
            defaults,
            ..
        } = Generator::new();
        let mut wrong = Vec::new();
        for (key, row) in &rows {
            let (values, default) = row.values_and_default();
            let said = said(forms.get(*key).map_or(&[][..], Vec::as_slice));
            if values != said {
                wrong.push(format!("{key}: values: `{values}`, should be `{said}`"));
            }
            let real = defaults.of(key).map(|it| match it {
                Value::String(text) => text,
                other => other.to_string(),
            });
            match real {
                Some(real) if default.trim_matches('"') == real => {}
                None if ["", "none"].contains(&default) || DEFAULT_IN_WORDS.contains(key) => {}
                Some(real) => wrong.push(format!("{key}: default: `{default}`, should be `{real}`")),
                None => wrong.push(format!(
                    "{key}: default: `{default}`: give FILES of defaults.rs its section, or add it to DEFAULT_IN_WORDS"
                )),
            }
        }
        wrong.sort();
        assert!(
            wrong.is_empty(),
            "docs/configuration.md:\n{}",
            wrong.join("\n")
        );
    }
}
