//! The configuration from outside: golden files, the commented reference, round trips, junk.
//!
//! Each `tests/config/invalid/NAME.yaml` stands beside `NAME.expected`, the whole message. After a
//! deliberate change of a message, `CORELAY_BLESS=1 cargo test --test config` writes the expected
//! files anew; read the difference before you keep it. Each `tests/config/valid/NAME.yaml` stands
//! beside `NAME.expected`, the effective configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use corelay::config::model::{
    AccessLog, Buffers, Config, Keepalive, Log, LogFormat, LogLevel, Mover, Relay, TcpOptions,
    Timeouts, Workers,
};
use corelay::config::{self, LoadError};

#[path = "config/properties.rs"]
mod properties;
#[path = "config/schema.rs"]
mod schema;

/// Fewer would mean that files went missing.
const INVALID_FILES_MIN: usize = 35;
/// Set: write the expected files instead of comparing them.
const BLESS: &str = "CORELAY_BLESS";

/// The environment of every test: fixed, so that the host's cannot change a result.
fn env(name: &str) -> Option<String> {
    let value = match name {
        "PORT" => "9000",
        "PER_CORE" => "128",
        "WORD" => "all",
        "EMPTY" => "",
        "LIST" => "[127.0.0.1:9090]",
        _ => return None,
    };
    Some(value.to_owned())
}

fn load(text: &str) -> Result<Config, LoadError> {
    config::from_str(text, "test.yaml", &env)
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The YAML files of a directory: name and text, sorted.
fn cases(directory: &str) -> Vec<(String, String)> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(repository(directory)).expect(directory) {
        let path = entry.expect("an entry").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            cases.push((name, std::fs::read_to_string(&path).expect("a text file")));
        }
    }
    cases.sort();
    cases
}

/// Compares with the file of expectations, or writes it; returns the difference as a message.
fn compare(directory: &str, name: &str, actual: &str) -> Option<String> {
    let path = repository(directory).join(format!("{name}.expected"));
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, actual).expect("written");
        return None;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    (expected != actual)
        .then(|| format!("--- {name}: expected\n{expected}--- {name}: actual\n{actual}"))
}

#[test]
fn every_invalid_file_gets_its_whole_message() {
    const DIRECTORY: &str = "tests/config/invalid";
    let cases = cases(DIRECTORY);
    assert!(
        cases.len() >= INVALID_FILES_MIN,
        "only {} files",
        cases.len()
    );
    let mut differences = Vec::new();
    for (name, text) in &cases {
        match config::from_str(text, &format!("{name}.yaml"), &env) {
            Ok(config) => differences.push(format!("--- {name} is valid: {config:?}")),
            Err(error) => differences.extend(compare(DIRECTORY, name, &format!("{error}\n"))),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_problem_says_where_what_and_how_on_one_line() {
    for (name, text) in cases("tests/config/invalid") {
        let error = config::from_str(&text, &name, &env).expect_err(&name);
        assert_eq!(
            error.to_string().lines().count(),
            error.problems().len(),
            "{name}: {error}"
        );
        for problem in error.problems() {
            assert!(
                !problem.problem.is_empty() && !problem.remedy.is_empty(),
                "{name}: {problem:?}"
            );
            // The YAML parser gives no position for what concerns the whole text.
            let whole = ["syntax_alias_bomb", "syntax_two_documents"].contains(&name.as_str());
            assert!(problem.position.is_some() || whole, "{name}: {problem:?}");
        }
    }
}

#[test]
fn every_valid_file_gives_its_effective_configuration_which_loads_again() {
    const DIRECTORY: &str = "tests/config/valid";
    let mut differences = Vec::new();
    for (name, text) in cases(DIRECTORY) {
        let config = load(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rendered = config::render(&config);
        assert_eq!(load(&rendered).expect(&name), config, "{name}:\n{rendered}");
        differences.extend(compare(DIRECTORY, &name, &rendered));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn the_compact_form_is_the_full_form_with_defaults() {
    let compact = load(r#"[{ "listen": 9000, "forward": ["127.0.0.1:9090"] }]"#).expect("compact");
    let full = load(
        "listeners: { listener-1: { bind: 0.0.0.0:9000, upstream: upstream-1 } }\n\
         upstreams: { upstream-1: { servers: [127.0.0.1:9090] } }",
    );
    assert_eq!(compact, full.expect("full"));
}

#[test]
fn absent_settings_have_the_documented_defaults() {
    let config = load("[{ listen: 9000, forward: [127.0.0.1:9090] }]").expect("valid");
    assert_eq!(config.workers, Workers::Auto);
    assert_eq!(
        config.buffers,
        Buffers {
            size_bytes: 16_384,
            per_core: 4096
        }
    );
    assert_eq!(
        config.timeouts,
        Timeouts {
            connect: Duration::from_secs(3),
            idle: Duration::from_secs(600),
            half_close: Duration::from_secs(30),
            max_age: None,
            drain: Duration::from_secs(30),
        }
    );
    let relay = Relay {
        mover: Mover::Auto,
        zero_copy_send: false,
        busy_poll: None,
    };
    assert_eq!(config.relay, relay);
    let keepalive = Keepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(10),
        count: 3,
    };
    assert_eq!(
        config.tcp,
        TcpOptions {
            nodelay: true,
            keepalive: Some(keepalive),
            user_timeout: None
        }
    );
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.backlog, listener.unix_mode, listener.defer_connect),
        (4096, 0o660, None)
    );
    assert_eq!(config.admin, None);
    assert_eq!(
        config.log,
        Log {
            level: LogLevel::Info,
            format: LogFormat::Json,
            access: AccessLog::All,
            access_file: None
        }
    );
}

#[test]
fn limits_are_limits() {
    let many = |listeners: usize, servers: usize| {
        let mut text = String::from("listeners:\n");
        for index in 0..listeners {
            text.push_str(&format!(
                "  l{index}: {{ bind: 127.0.0.1:0, upstream: app }}\n"
            ));
        }
        text.push_str("upstreams:\n  app:\n    servers:\n");
        for index in 0..servers {
            text.push_str(&format!(
                "      - 10.0.{}.{}:80\n",
                index / 256,
                index % 256
            ));
        }
        load(&text)
    };
    let config = many(1024, 4096).expect("at the limits");
    assert_eq!(
        (config.listeners.len(), config.upstreams[0].servers.len()),
        (1024, 4096)
    );
    let error = many(1025, 4097).expect_err("above the limits").to_string();
    assert!(
        error.contains("1025 listeners are too many")
            && error.contains("4097 servers are too many"),
        "{error}"
    );
    let error = load(&"#".repeat((4 << 20) + 1))
        .expect_err("too long")
        .to_string();
    assert!(error.contains("longer than 4 MiB"), "{error}");
    let hundreds = format!("{}\n", "x: 1\n".repeat(300));
    let error = load(&hundreds).expect_err("300 times the same key");
    assert!(
        error.problems().len() >= 300,
        "all at once, also beyond the positions that are looked up"
    );
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("c.yaml");
    let error = config::load(&path).expect_err("missing").to_string();
    assert!(
        error.starts_with(&format!("{}: cannot be read: ", path.display())),
        "{error}"
    );
    std::fs::write(&path, b"listeners: \xff").expect("written");
    let error = config::load(&path).expect_err("not UTF-8").to_string();
    assert!(
        error.contains("is not UTF-8 text from byte 11 on"),
        "{error}"
    );
    std::fs::write(&path, "[{listen: 9000, forward: [\"127.0.0.1:9090\"]}]").expect("written");
    assert!(config::load(&path).is_ok());
}

#[test]
fn relay_arguments_are_checked_like_a_file() {
    let to = |servers: &[&str]| servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let config = config::for_relay(
        "9000",
        &to(&["app:80", "127.0.0.1:81"]),
        Some("127.0.0.1:9901"),
    )
    .expect("valid");
    assert_eq!(config.listeners[0].bind.to_string(), "0.0.0.0:9000");
    assert_eq!(config.upstreams[0].servers.len(), 2);
    assert_eq!(
        config.admin.map(|admin| admin.bind.to_string()).as_deref(),
        Some("127.0.0.1:9901")
    );
    assert_eq!(load(&config::render(&config)).expect("loads again"), config);
    // The shell has expanded what it wanted; nothing is expanded twice.
    let error = config::for_relay("unix:x", &to(&["${PORT}:1", "a:1", "a:1"]), Some("9901"))
        .expect_err("invalid");
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert!(
        lines[0].starts_with("command line: --listen: `unix:x` is not an absolute path; "),
        "{error}"
    );
    assert!(config::for_relay("9000", &[], None).is_err());
    assert!(config::for_relay("0.0.0.0:9000", &to(&["localhost:9000"]), None).is_err());
}

/// Takes the `#` away from every line that shows a default.
fn uncomment(text: &str) -> String {
    let line = |line: &str| {
        let content = line.trim_start();
        match content.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                format!("{}{setting}\n", &line[..line.len() - content.len()])
            }
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

#[test]
fn the_reference_runs_and_shows_the_real_defaults() {
    let text = std::fs::read_to_string(repository("config.yaml")).expect("config.yaml");
    let no_env = |_: &str| None;
    let config =
        config::from_str(&text, "config.yaml", &no_env).unwrap_or_else(|error| panic!("{error}"));
    let servers: Vec<_> = config.upstreams[0]
        .servers
        .iter()
        .map(|server| server.address.to_string())
        .collect();
    assert_eq!(config.listeners[0].bind.to_string(), "127.0.0.1:9000");
    assert_eq!(servers, ["127.0.0.1:9090", "127.0.0.1:9091"]);
    assert_eq!(
        config.admin.map(|admin| admin.bind.to_string()).as_deref(),
        Some("127.0.0.1:9901")
    );
    // The file leaves every default alone, so that adding what its comments show must change nothing.
    let full = uncomment(&text);
    let with_defaults =
        config::from_str(&full, "config.yaml", &no_env).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(with_defaults, config);
}

/// Whether a YAML tree has the key that a path like `listeners.NAME.bind` or `a[].b` describes.
fn has_key(value: &serde_yaml::Value, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    if let Some(list) = first.strip_suffix("[]") {
        let items = value.get(list).and_then(serde_yaml::Value::as_sequence);
        return items.is_some_and(|items| items.iter().any(|item| has_key(item, rest)));
    }
    if *first == "NAME" {
        let named = value.as_mapping();
        return named.is_some_and(|named| named.iter().any(|(_, child)| has_key(child, rest)));
    }
    value.get(first).is_some_and(|child| has_key(child, rest))
}

/// Keys without a default, of which one excludes another: the reference shows them in its explanations.
const ALTERNATIVES: [&str; 34] = [
    "upstreams.NAME.retry_budget.percent",
    "upstreams.NAME.retry_budget.min_per_second",
    "upstreams.NAME.check.server_name",
    "upstreams.NAME.check.send",
    "upstreams.NAME.check.expect",
    "upstreams.NAME.check.contains",
    "upstreams.NAME.check.port",
    "upstreams.NAME.check.proxy_protocol",
    "upstreams.NAME.servers[].check_address",
    "upstreams.NAME.fallback",
    "upstreams.NAME.hash",
    "upstreams.NAME.stop_listening",
    "upstreams.NAME.stop_listening.after",
    "upstreams.NAME.stop_listening.resume_after",
    "listeners.NAME.proxy_protocol.trusted",
    "listeners.NAME.proxy_protocol.versions",
    "listeners.NAME.proxy_protocol.timeout",
    "listeners.NAME.route.by",
    "listeners.NAME.route.alpn",
    "listeners.NAME.route.names",
    "listeners.NAME.route.no_name",
    "listeners.NAME.route.other_protocol",
    "listeners.NAME.route.timeout",
    "upstreams.NAME.proxy_protocol.version",
    "upstreams.NAME.proxy_protocol.crc32c",
    "upstreams.NAME.proxy_protocol.pass_tlvs",
    "upstreams.NAME.proxy_protocol.unique_id",
    "upstreams.NAME.source.address",
    "upstreams.NAME.source.interface",
    "upstreams.NAME.source.mark",
    "upstreams.NAME.source.dscp",
    "upstreams.NAME.source.congestion",
    "upstreams.NAME.source.transparent",
    "upstreams.NAME.source.fast_open",
];

#[test]
fn the_reference_names_every_key() {
    let text = std::fs::read_to_string(repository("config.yaml")).expect("config.yaml");
    let full: serde_yaml::Value = serde_yaml::from_str(&uncomment(&text)).expect("YAML");
    for key in config::known_keys() {
        let path: Vec<&str> = key.split('.').collect();
        let last = path.last().expect("a path has an end");
        let mut explained = text
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("#     "));
        let is_shown = ALTERNATIVES.contains(&key.as_str())
            && explained.any(|line| line.trim_start().starts_with(&format!("{last}: ")));
        assert!(
            is_shown || has_key(&full, &path),
            "config.yaml does not name {key}"
        );
    }
    for key in ["\"listen\"", "\"forward\""] {
        assert!(
            text.contains(key),
            "config.yaml does not name {key} of the compact form"
        );
    }
}

#[test]
fn the_index_has_a_row_for_every_key_and_for_nothing_else() {
    let page = std::fs::read_to_string(repository("docs/configuration.md")).expect("the page");
    let index = page.split("## What several").next().expect("a first part");
    let mut rows: Vec<&str> = index
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let mut keys = config::known_keys();
    rows.sort_unstable();
    keys.sort_unstable();
    assert_eq!(rows, keys);
}

#[test]
fn the_list_of_keys_is_the_list_of_what_is_rendered() {
    let config = load(
        "listeners: { a: { bind: 127.0.0.1:1, upstream: b, access: [{ deny: 10.0.0.1 }, { allow: all }], proxy_protocol: { trusted: all }, route: { by: sni, alpn: { h2: b }, names: {}, no_name: b, other_protocol: b }, limits: { bandwidth: { connection: { upload: 1m }, listener: { download: 1m } } } }, c: { bind: 127.0.0.1:3, upstreams: { b: 1, f: 1 } }, s: { bind: 127.0.0.1:4, upstream: s } }\n\
         upstreams:\n\
         \x20 b: { servers: [{ address: \"[::1]:9\", check_address: 127.0.0.1:9 }], fallback: d, retry_budget: {}, check: { type: http, port: 1, proxy_protocol: off }, proxy_protocol: v2 }\n\
         \x20 d: { servers: [e:1], check: { type: tls, server_name: e }, source: { address: 10.0.0.1, interface: eth0, mark: 1, dscp: ef, congestion: bbr } }\n\
         \x20 f: { servers: [g:1], balance: maglev, fallback: h, check: { type: exchange, send: a, expect: b } }\n\
         \x20 h: { servers: [i:1], check: { type: exchange, contains: b } }\n\
         \x20 s: { servers: [k:1], check: tcp, on_no_server: stop_listening }\n\
         admin: { bind: 127.0.0.1:2 }",
    );
    let rendered = config::render(&config.expect("valid"));
    let tree: serde_yaml::Value = serde_yaml::from_str(&rendered).expect("YAML");
    for key in config::known_keys() {
        let path: Vec<&str> = key.split('.').collect();
        assert!(
            has_key(&tree, &path),
            "the effective configuration leaves out {key}:\n{rendered}"
        );
    }
}
