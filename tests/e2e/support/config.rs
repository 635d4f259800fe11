//! A configuration file for one test: a working minimum, and `set` for what the test is about.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Value, json};

/// The listener that every configuration has.
pub(crate) const LISTENER: &str = "edge";
/// The upstream that every configuration has.
pub(crate) const UPSTREAM: &str = "app";

/// Names the `relay.mover` that every test runs with: copy, splice or auto. Unset is the default.
const MOVER: &str = "CORELAY_E2E_MOVER";

/// A configuration under construction. It is written as JSON, which is YAML.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    root: Value,
}

impl Config {
    /// Listener `edge` on a free port of 127.0.0.1, forwarding to these servers; admin on a free
    /// port; every session in the access log.
    pub(crate) fn to<S: Display>(servers: impl IntoIterator<Item = S>) -> Self {
        let servers: Vec<String> = servers
            .into_iter()
            .map(|server| server.to_string())
            .collect();
        let config = Self {
            root: json!({
                "listeners": { LISTENER: { "bind": "127.0.0.1:0", "upstream": UPSTREAM } },
                "upstreams": { UPSTREAM: { "balance": "round_robin", "servers": servers } },
                "admin": { "bind": "127.0.0.1:0" },
                "log": { "level": "info", "format": "json", "access": "all" },
            }),
        };
        match std::env::var(MOVER) {
            Ok(mover) => config.set("relay.mover", mover),
            Err(_) => config,
        }
    }

    /// Sets the value at a dotted path: `set("timeouts.idle", "500ms")`.
    pub(crate) fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut place = &mut self.root;
        for key in path.split('.') {
            if !place.is_object() {
                *place = json!({});
            }
            let object = place.as_object_mut().expect("it was made one");
            place = object.entry(key).or_insert(Value::Null);
        }
        *place = value.into();
        self
    }

    /// The name of its first listener.
    pub(crate) fn listener_name(&self) -> String {
        let listeners = self.root["listeners"].as_object().expect("a mapping");
        listeners.keys().next().expect("a listener").clone()
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) {
        let text = serde_json::to_string_pretty(&self.root).expect("a JSON value prints");
        std::fs::write(path, text).expect("writing the configuration");
    }
}
