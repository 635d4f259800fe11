//! What stands for a key that is absent: read off the effective configuration of files without it.

use serde_json::Value;

use crate::config;

/// Files with nothing, and with each section and as little as possible in it. `NAME` is the name, so that a
/// place in the effective configuration is the path of a key.
const FILES: [&str; 5] = [
    "listeners: { NAME: { bind: 127.0.0.1:1, upstream: NAME } }
upstreams: { NAME: { servers: [{ address: 127.0.0.1:2 }] } }",
    "listeners: { NAME: { bind: 127.0.0.1:1, upstream: NAME, proxy_protocol: { trusted: all }, route: { by: sni, names: {} } } }
upstreams: { NAME: { balance: maglev, retry_budget: {}, check: {}, proxy_protocol: { version: v2 }, source: { mark: 1 }, servers: [{ address: 127.0.0.1:2 }] } }",
    "listeners: { NAME: { bind: 127.0.0.1:1, upstreams: { NAME: 1 } } }
upstreams: { NAME: { check: { type: http }, servers: [{ address: 127.0.0.1:2 }] } }",
    "listeners: { NAME: { bind: 127.0.0.1:1, upstream: NAME, limits: { bandwidth: { connection: { download: 1m }, listener: { download: 1m } } } } }
upstreams: { NAME: { on_no_server: stop_listening, check: tcp, servers: [{ address: 127.0.0.1:2 }] } }",
    "listeners: { NAME: { bind: 127.0.0.1:1, upstream: NAME, limits: { bandwidth: { connection: { upload: 1m }, listener: { upload: 1m } } } } }
upstreams: { NAME: { servers: [{ address: 127.0.0.1:2 }] } }",
];

/// Defaults that another key decides: a burst is one second of its rate.
const DEPENDENT: [&str; 2] = [
    "listeners.NAME.limits.burst",
    "listeners.NAME.limits.per_source.burst",
];

/// Each file as written, and its effective configuration.
pub(super) struct Defaults(Vec<(Value, Value)>);

impl Defaults {
    pub(super) fn new() -> Self {
        let tree = |text: &str| serde_yaml::from_str(text).expect("YAML of our own");
        let both = |text: &str| {
            let no_env = |_: &str| None;
            let config = config::from_str(text, "defaults", &no_env).expect("a valid file");
            (tree(text), tree(&config::render(&config)))
        };
        Self(FILES.map(both).into())
    }

    /// The default of a key, where that is one value.
    pub(super) fn of(&self, key: &str) -> Option<Value> {
        if DEPENDENT.contains(&key) {
            return None;
        }
        let files = self.0.iter();
        let absent = files.filter(|(written, _)| lookup(written, key).is_none());
        let mut found = absent.filter_map(|(_, effective)| lookup(effective, key));
        let default = found.next()?;
        (!default.is_object() && !default.is_array()).then(|| default.clone())
    }
}

/// The value at the path of a key; of a list the first item.
fn lookup<'v>(tree: &'v Value, key: &str) -> Option<&'v Value> {
    key.split('.')
        .try_fold(tree, |at, step| match step.strip_suffix("[]") {
            Some(list) => at.get(list)?.get(0),
            None => at.get(step),
        })
}
