//! What every end-to-end test stands on: the real binary, its configuration, its logs and numbers,
//! and peers whose every step a test decides.
//!
//! Nothing here knows a case; the cases are in the modules beside this one.

pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod lines;
pub(crate) mod metrics;
pub(crate) mod nameserver;
pub(crate) mod peer_proxy;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod proxy;

use std::time::{Duration, Instant};

pub(crate) use config::Config;
pub(crate) use peers::{Pair, Upstream};
pub(crate) use proxy::{Launch, Proxy};

/// How long anything may take before a test gives up. Generous: the machine may be busy with the
/// other tests, and a deadline that is met costs nothing.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Time between two looks at something that can only be polled.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until the condition holds; fails the test, naming it, if it never does.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until there is a value; fails the test if there never is one.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "never within {DEADLINE:?}: {what}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Says that a case does not run on this machine, and why. The line is what the summary collects.
pub(crate) fn skip(case: &str, reason: &str) {
    // Straight to the file descriptor: the test harness swallows what a passing test prints.
    use std::io::Write;
    let line = format!("skipped: {case}: {reason}\n");
    // Nothing can be done about a closed stderr.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A number from the environment, or the default: for sizes that a person may want larger.
pub(crate) fn size_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number")),
        Err(_) => default,
    }
}
