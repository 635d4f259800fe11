//! The JSON Schema beside what validation does: on every file, on every random configuration, and on every
//! key with values at and beyond its limits.
//!
//! The schema may never refuse what loads. What it lets pass although it does not load is listed here:
//! it cannot see relations, and no range of what is written with a unit.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use corelay::config;
use corelay::units::{format_duration, parse_duration};
use jsonschema::Validator;
use serde_json::{Value, json};

use super::{cases, load, repository, uncomment};

static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&config::schema()).expect("JSON"));
static VALIDATOR: LazyLock<Validator> =
    LazyLock::new(|| jsonschema::draft202012::new(&SCHEMA).expect("a schema of draft 2020-12"));

/// Files whose only fault is none of the shape of one value.
const UNSEEN: [&str; 18] = [
    // Relations between values.
    "admin_equals_listener",
    "admin_wildcard_collides",
    "bind_twice",
    "bind_wildcard_collides",
    "buffers_slab_too_large",
    "canary_unused",
    "compact_loop",
    "dangling_reference",
    "loop",
    "only_backups",
    "server_twice",
    "unreferenced_upstream",
    "zero_copy_small_buffers",
    // The range of what is written with a unit.
    "busy_poll",
    "tcp_user_timeout",
    "timeouts_absurd",
    // The values of variables.
    "variable_unset",
    "variable_with_a_bad_value",
];

/// The text as an editor sees it; `None` if it is not even that.
fn tree(text: &str) -> Option<Value> {
    fn plain(value: serde_yaml::Value) -> Option<Value> {
        use serde_yaml::Value as Yaml;
        Some(match value {
            Yaml::Mapping(entries) => {
                let entry = |(key, value): (Yaml, Yaml)| {
                    let key = match key {
                        Yaml::String(text) => text,
                        other => serde_yaml::to_string(&other).ok()?.trim().to_owned(),
                    };
                    Some((key, plain(value)?))
                };
                Value::Object(entries.into_iter().map(entry).collect::<Option<_>>()?)
            }
            Yaml::Sequence(items) => {
                Value::Array(items.into_iter().map(plain).collect::<Option<_>>()?)
            }
            Yaml::Tagged(_) => return None,
            scalar => serde_json::to_value(scalar).ok()?,
        })
    }
    plain(serde_yaml::from_str(text).ok()?)
}

/// Why the schema refuses a text that loads; `None`: it does not.
pub(super) fn refuses(text: &str) -> Option<String> {
    let tree = tree(text).expect("what loads is a tree");
    let error = VALIDATOR.validate(&tree).err()?;
    Some(format!("{}: {}", error.instance_path(), error.masked()))
}

#[test]
fn what_is_valid_validates() {
    let mut files = cases("tests/config/valid");
    let reference = std::fs::read_to_string(repository("config.yaml")).expect("config.yaml");
    files.push(("config.yaml, uncommented".to_owned(), uncomment(&reference)));
    files.push(("config.yaml".to_owned(), reference));
    for (name, text) in files {
        assert_eq!(refuses(&text), None, "{name}");
    }
}

#[test]
fn what_is_invalid_in_shape_does_not_validate() {
    let unseen: BTreeSet<String> = cases("tests/config/invalid")
        .into_iter()
        // What is no tree, an editor sees without a schema.
        .filter(|(_, text)| tree(text).is_some_and(|tree| VALIDATOR.is_valid(&tree)))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(unseen, UNSEEN.map(str::to_owned).into());
}

/// The schema of a key, by its path.
fn of_key(key: &str) -> Option<&'static Value> {
    let full: &Value = &SCHEMA;
    key.split('.').try_fold(full, |at, step| {
        let (step, is_list) = match step.strip_suffix("[]") {
            Some(step) => (step, true),
            None => (step, false),
        };
        let mut forms = at
            .get("anyOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let has = |form: &&Value| {
            form.get("properties")
                .is_some_and(|it| it.get(step).is_some())
        };
        let at = match step {
            "NAME" => at.get("additionalProperties")?,
            _ if has(&at) => &at["properties"][step],
            _ => &forms.find(has)?["properties"][step],
        };
        if !is_list {
            return Some(at);
        }
        let mut forms = at
            .get("anyOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        at.get("items")
            .or_else(|| forms.find_map(|form| form.get("items")))
    })
}

#[test]
fn every_key_is_described() {
    for key in config::known_keys() {
        let schema = of_key(&key).unwrap_or_else(|| panic!("the schema leaves out {key}"));
        let description = schema["description"].as_str().unwrap_or_default();
        assert!(
            description.len() > 5 && description.ends_with('.'),
            "{key}: {description:?}"
        );
        assert!(!description.contains("]("), "{key}: {description:?}");
    }
    let limit = of_key("buffers.per_core").expect("a key");
    assert_eq!(limit["default"], json!(4096));
}

#[test]
fn the_command_prints_it() {
    let corelay = env!("CARGO_BIN_EXE_corelay");
    let output = Command::new(corelay)
        .arg("schema")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(printed, config::schema());
}

#[test]
fn the_schema_is_the_same_each_time_and_of_the_draft_it_says() {
    assert_eq!(config::schema(), config::schema());
    jsonschema::draft202012::meta::validate(&SCHEMA).expect("valid");
}

/// Every section, and every type of check, so that any key has a place where it may stand.
const EVERYTHING: &str = r"
listeners:
  a: { bind: 127.0.0.1:1, upstream: u, accept: {}, proxy_protocol: { trusted: all }, route: { by: sni, names: {} }, access: [allow: all], limits: { rate: 1, per_source: { rate: 1 }, bandwidth: { connection: { upload: 1m }, listener: { upload: 1m } } } }
  s: { bind: 127.0.0.1:4, upstream: s }
  b: { bind: 127.0.0.1:2, upstreams: { u: 1, v: 1, w: 1, x: 1 }, route: { by: sni, names: {} }, access: [deny: all] }
upstreams:
  u: { servers: [address: 127.0.0.1:9], queue: { max: 1 }, retry_budget: {}, eject: {}, check: {}, proxy_protocol: { version: v2 }, source: { mark: 1 } }
  v: { servers: [address: 127.0.0.1:9], check: { type: exchange, send: a } }
  w: { servers: [address: 127.0.0.1:9], check: { type: http } }
  x: { servers: [address: 127.0.0.1:9], check: { type: tls }, balance: maglev, source: { address: 10.0.0.1 } }
  s: { servers: [{ address: 127.0.0.1:9, check_address: 127.0.0.1:9 }], check: { type: http }, on_no_server: stop_listening, stop_listening: {} }
buffers: {}
timeouts: {}
relay: {}
tcp: { keepalive: {} }
dns: {}
admin: { bind: 127.0.0.1:3 }
log: {}
";

/// What depends on other values, or on what a duration comes to.
const RELATIONS: [&str; 3] = [
    "has a fallback itself",
    "there is no upstream",
    "whole number of seconds",
];

/// Keys of which only one may stand.
const EITHER: [[&str; 2]; 3] = [
    ["upstream", "upstreams"],
    ["allow", "deny"],
    ["expect", "contains"],
];

/// Every document that has this value at a place that the key means, with the place as problems name it.
fn documents(key: &str, value: &Value) -> Vec<(String, String)> {
    let everything = tree(EVERYTHING).expect("YAML");
    let mut pointers = vec![String::new()];
    for step in key.split('.') {
        let (step, index) = match step.strip_suffix("[]") {
            Some(step) => (step, "/0"),
            None => (step, ""),
        };
        let below = |at: String| match step {
            "NAME" => {
                let names = everything.pointer(&at).and_then(Value::as_object);
                let names = names.expect("a mapping of names").keys();
                names.map(|name| format!("{at}/{name}")).collect()
            }
            _ => vec![format!("{at}/{step}{index}")],
        };
        pointers = pointers.into_iter().flat_map(below).collect();
    }
    let document = |pointer: String| {
        let (section, name) = pointer.rsplit_once('/')?;
        let mut document = everything.clone();
        match document.pointer_mut(section)? {
            Value::Object(keys) => {
                let pair = EITHER.iter().find(|pair| pair.contains(&name));
                for other in pair.into_iter().flatten() {
                    keys.remove(*other);
                }
                keys.insert(name.to_owned(), value.clone());
            }
            items => items[0] = value.clone(),
        }
        let path = pointer[1..].replace("/0", "[0]").replace('/', ".");
        Some((document.to_string(), path))
    };
    pointers.into_iter().filter_map(document).collect()
}

/// Why validation refuses a value where its key may stand; `None`: somewhere it accepts it.
fn problem_of(key: &str, value: &Value) -> Option<String> {
    /// Another type of check, `address` beside `transparent`, one upstream: this is not the place.
    const NO_PLACE: [&str; 2] = ["means nothing", "there is nothing to split"];
    let documents = documents(key, value);
    assert!(!documents.is_empty(), "EVERYTHING has no place for {key}");
    let problems = documents.into_iter().map(|(text, path)| {
        let problems = load(&text).err();
        let mut problems = problems.iter().flat_map(|it| it.problems());
        let here = problems.find(|it| {
            let rest = it.path.strip_prefix(&path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        here.map(|it| it.problem.clone())
    });
    let mut in_place = problems.filter(|it| {
        it.as_ref()
            .is_none_or(|it| !NO_PLACE.iter().any(|no| it.starts_with(no)))
    });
    in_place
        .next()
        .unwrap_or_else(|| panic!("EVERYTHING has no place for {key}"))
}

/// Values that some keys take and others do not, and those at the edges of this key's schema.
fn probes(schema: &Value) -> Vec<Value> {
    let texts = [
        "",
        "x",
        "off",
        "auto",
        "all",
        "true",
        "yes",
        "5",
        "-1",
        "16KiB",
        "1MB",
        "10s",
        "1 m",
        "0",
        "1.5s",
        "1us",
        "0640",
        "0x2a",
        "ef",
        "EF",
        "127.0.0.1",
        "127.0.0.1:80",
        "256.0.0.1:80",
        "::1",
        "[::1]:80",
        "10.0.0.0/8",
        "10.0.0.1-10.0.0.9",
        "unix:/x",
        "unix:x",
        "a.example",
        "a.example:80",
        "srv:_a._tcp.b",
        "*.a.example",
        "file:/x",
        "file:x",
        "/x",
        "x/",
        "two words",
        "1-2.3a",
        "a.1",
        "-a",
        "a-.b",
        "1-2:80",
        "200-299",
        "hex:00",
        "${NOT_SET}",
        "${1}",
        "v1",
        "u",
        "eth0.5",
        "a name that is too long to be one in the kernel",
    ];
    let mut probes: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
    probes.extend([
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(443),
        json!(1.5),
    ]);
    probes.extend([
        json!([]),
        json!({}),
        json!({ "x": 1 }),
        json!({ "u": 1 }),
        json!({ "u": "u" }),
    ]);
    edges(schema, &mut probes);
    let is_list = |form: &Value| form.get("items").is_some();
    let mut forms = schema["anyOf"].as_array().into_iter().flatten();
    let many = if is_list(schema) || forms.any(is_list) {
        probes.len()
    } else {
        1
    };
    let items: Vec<Value> = probes[..many].iter().map(|probe| json!([probe])).collect();
    probes.extend(items);
    probes
}

/// Words, limits and what lies just beyond them.
fn edges(schema: &Value, found: &mut Vec<Value>) {
    for word in schema["enum"].as_array().into_iter().flatten() {
        found.push(word.clone());
    }
    for (edge, beyond) in [("minimum", -1), ("maximum", 1)] {
        if let Some(limit) = schema[edge].as_i64() {
            found.extend([json!(limit), json!(limit + beyond)]);
        }
    }
    found.extend(schema.get("default").cloned());
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        edges(form, found);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = schema.get(below) {
            edges(below, found);
        }
    }
}

/// Whether a schema cannot see why this value has this problem.
fn is_unseen(value: &Value, problem: &str) -> bool {
    let about = |words: &[&str]| words.iter().any(|it| problem.contains(it));
    let is_unseen = match value {
        // A variable, a number in quotes, what has a unit.
        Value::String(text) => {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            is_number || about(&["environment variable", "out of range"])
        }
        // One may write these without quotes, and editors read a number then.
        Value::Number(_) | Value::Bool(_) => about(&["is not a host name", "is not an octal mode"]),
        Value::Array(items) => items.iter().any(|item| is_unseen(item, problem)),
        Value::Null | Value::Object(_) => false,
    };
    // Where no single value will do, a variable is told as any other.
    let is_variable = value.to_string().contains("${NOT_SET}");
    is_unseen || is_variable || about(&RELATIONS)
}

#[test]
fn the_schema_of_every_key_agrees_with_validation() {
    let mut wrong = Vec::new();
    for key in config::known_keys() {
        let schema = of_key(&key).expect("a schema");
        let validator = jsonschema::draft202012::new(schema).expect("a schema");
        for value in probes(schema) {
            match (validator.is_valid(&value), problem_of(&key, &value)) {
                (false, None) => wrong.push(format!("{key}: {value} loads, the schema refuses it")),
                (true, Some(problem)) if !is_unseen(&value, &problem) => {
                    wrong.push(format!("{key}: {value} passes the schema: {problem}"));
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Durations are text, whose range the schema can only tell.
#[test]
fn the_range_that_a_description_tells_is_the_one_that_holds() {
    let mut count = 0;
    for key in config::known_keys() {
        let description = of_key(&key).expect("a schema")["description"].as_str();
        let Some((_, values)) = description.expect(&key).split_once("Values: ") else {
            continue;
        };
        let (range, _) = values.split_once(['.', ',']).expect(&key);
        let Some((least, most)) = range.split_once(" to ") else {
            continue;
        };
        let (Ok(least), Ok(most)) = (parse_duration(least), parse_duration(most)) else {
            continue;
        };
        count += 1;
        let step = Duration::from_micros(1);
        for (duration, holds) in [
            (least, true),
            (most, true),
            (least - step, false),
            (most + step, false),
        ] {
            let text = format_duration(duration);
            let problem = problem_of(&key, &json!(text));
            assert_eq!(problem.is_none(), holds, "{key}: {text}: {problem:?}");
        }
    }
    assert!(count > 20, "only {count} keys with durations");
}

#[test]
fn what_the_schema_requires_is_what_validation_misses() {
    let mut sections: BTreeSet<String> = BTreeSet::new();
    for key in config::known_keys() {
        sections.extend(key.rsplit_once('.').map(|(section, _)| section.to_owned()));
    }
    for section in &sections {
        let schema = of_key(section).expect("a schema");
        let forms = schema["anyOf"].as_array().into_iter().flatten();
        let mut forms = std::iter::once(schema).chain(forms);
        let schema = forms
            .find(|form| form.get("properties").is_some())
            .expect("a section");
        for required in schema["required"].as_array().into_iter().flatten() {
            let missing = format!("`{}` is missing", required.as_str().expect("a key"));
            let documents = documents(section, &json!({}));
            let is_told = documents.iter().all(|(text, path)| {
                let error = load(text).expect_err(text);
                error
                    .problems()
                    .iter()
                    .any(|it| it.path == *path && it.problem == missing)
            });
            assert!(is_told, "{section}: {missing}");
        }
    }
}
