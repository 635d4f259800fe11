//! Running one test of this binary in another process: to be killed, or inside a namespace.

use std::process::{Child, Command, Stdio};

use super::process::tool;
use super::skip;

/// Set in the environment of such a process; its value says which role it plays.
pub(crate) const ROLE: &str = "CORELAY_E2E_ROLE";

/// The role of a test's part in a network namespace.
const NAMESPACE: &str = "namespace";

/// Whether this process was started to play this role.
pub(crate) fn plays(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|value| value == role)
}

/// Starts this test binary again to run only the test of this name, in this role.
pub(crate) fn start(test: &str, role: &str, stderr: Stdio) -> Child {
    command(Command::new(this_binary()), test, role)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("starting this test binary again")
}

/// Whether this is the test's part in a network namespace of its own, with loopback up. If not, that part
/// is run, or skipped where the host has no namespaces or lacks one of these tools; then there is nothing
/// left to do.
pub(crate) fn is_in_namespace(test: &str, tools: &[&str]) -> bool {
    if plays(NAMESPACE) {
        run_tool("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    if let Some(missing) = tools.iter().find(|name| tool(name).is_none()) {
        skip(test, &format!("no {missing}(8) here"));
    } else if let Err(reason) = run_in_namespace(test) {
        skip(test, &reason);
    }
    false
}

/// Runs the test of this name in a network namespace of its own, with its own user namespace so
/// that no privilege is needed. `Err` says why it cannot be done here.
fn run_in_namespace(test: &str) -> Result<(), String> {
    let unshare = tool("unshare").ok_or("no unshare(1)")?;
    let ip = tool("ip").ok_or("no ip(8)")?;
    let probe = Command::new(&unshare)
        .args(["-Urn"])
        .arg(&ip)
        .args(["link", "set", "lo", "up"])
        .output()
        .map_err(|error| format!("unshare does not start: {error}"))?;
    if !probe.status.success() {
        let reason = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
        return Err(format!("no namespaces here: {reason}"));
    }
    let mut unshare = Command::new(unshare);
    unshare.arg("-Urn").arg(this_binary());
    let output = command(unshare, test, NAMESPACE)
        .output()
        .expect("running the test again");
    let said = String::from_utf8_lossy(&output.stdout);
    // A name that no test has would run none, and that is a success too.
    assert!(
        output.status.success() && said.contains("test result: ok. 1 passed"),
        "{test} failed in its namespace:\n{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Runs a tool of this machine; fails the test with its output if it fails.
#[track_caller]
pub(crate) fn run_tool(name: &str, arguments: &[&str]) {
    let path = tool(name).unwrap_or_else(|| panic!("no {name} here"));
    let output = Command::new(path)
        .args(arguments)
        .output()
        .expect("running a tool");
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn this_binary() -> std::path::PathBuf {
    std::env::current_exe().expect("the path of this test binary")
}

fn command(mut command: Command, test: &str, role: &str) -> Command {
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    command
}
