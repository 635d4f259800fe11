//! `corelay-bench compare` with Corelay and the control alone, for moments: does it measure at all,
//! does it leave nothing behind? Not how fast anything is.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use corelay_bench::signals::{self, Signal};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_corelay-bench");
/// Names the binary under test, where it does not lie beside this one.
const CORELAY_VARIABLE: &str = "CORELAY_BIN";
/// Long beyond what an interrupted run needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// The corelay under test: `cargo test --workspace` has built it. After a build of this package alone
/// there may be none, and then it is built here.
fn corelay() -> PathBuf {
    if let Some(path) = std::env::var_os(CORELAY_VARIABLE) {
        return PathBuf::from(path);
    }
    let beside = Path::new(BENCH).with_file_name("corelay");
    if !beside.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--offline", "--quiet", "--package", "corelay"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let status = build.current_dir(root).status().expect("cargo runs");
        assert!(status.success(), "corelay does not build");
    }
    beside
}

fn compare(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BENCH);
    command
        .args([
            "compare",
            "--peers",
            "corelay",
            "--integrity-mib",
            "2",
            "--rounds",
            "2",
        ])
        // The congestion control is the whole machine's: a test leaves it alone.
        .args(["--idle-connections", "20", "--keep-congestion-control"])
        .arg("--corelay")
        .arg(corelay())
        .arg("--out")
        .arg(folder)
        .args(arguments)
        // Proxies leave their files in it; so it can be seen that they are gone.
        .env("TMPDIR", folder);
    command
}

/// A comparison that goes on until it is told to stop; a failed test leaves none behind.
struct Running(Child);

impl Running {
    /// Returns once a proxy runs.
    fn start(folder: &Path) -> Self {
        let running = compare(folder, &["--seconds", "60", "--only", "rr-8"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
            .unwrap();
        wait("the start of a proxy", || !processes_of(folder).is_empty());
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn corelay_and_the_control_are_measured_without_errors() {
    let folder = tempfile::tempdir().unwrap();
    let scenarios = [
        "--seconds",
        "0.1",
        "--only",
        "rr-8,bulk-1,crr-fin,mixed,tails,open,idle,workers-rr-64",
    ];
    let output = compare(folder.path(), &scenarios).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let printed = text(&output);
    assert!(printed.contains("| CPU per request"), "{printed}");
    // Each with its latency, that of mixed, of the requests, and of tails, of the last bytes.
    let latencies = printed.matches("| latency, us").count();
    assert_eq!(latencies, 7, "{printed}");
    let tails = printed.matches("| wait for the tail, us").count();
    assert_eq!(tails, 1, "{printed}");

    let json = std::fs::read_to_string(folder.path().join("results.json")).unwrap();
    let record: Value = serde_json::from_str(&json).unwrap();
    let samples = record["samples"].as_array().unwrap();
    // Two rounds of two contestants, but for idle, where the control has no proxy.
    assert_eq!(samples.len(), 8 * 2 * 2 + 2, "{json}");
    let paced = record["bulk_bytes_per_second"].as_f64().unwrap();
    assert!(readme_of(folder.path()).contains("The paced streams were held to"));
    for sample in samples {
        if sample["scenario"] == "mixed-paced" {
            let most = paced * sample["elapsed_seconds"].as_f64().unwrap();
            assert!(sample["bytes"].as_f64().unwrap() <= most, "{sample}");
        }
        assert_eq!(sample["errors"], serde_json::json!({}), "{sample}");
        assert_eq!(sample["io_workers"], 0, "{sample}");
        let scenario = sample["scenario"].as_str().unwrap();
        let work = if scenario == "bulk-1" {
            "bytes"
        } else {
            "operations"
        };
        assert!(sample[work].as_u64().unwrap() > 0, "{sample}");
        let is_proxy = sample["peer"] != "direct";
        if scenario == "idle" {
            assert!(sample["idle_anonymous_bytes"].is_number(), "{sample}");
        } else {
            assert_eq!(sample["cpu_ns"].as_u64().unwrap() > 0, is_proxy, "{sample}");
        }
        assert_eq!(
            sample["threads"].as_u64().unwrap() > 0,
            is_proxy,
            "{sample}"
        );
    }
    assert_eq!(record["bars"].as_array().unwrap().len(), 24, "{json}");
    assert!(folder.path().join("cpu.svg").exists());
    let readme = readme_of(folder.path());
    assert!(readme.contains("access: off"), "{readme}");
    let home = folder.path().display().to_string();
    assert!(!readme.contains(&format!("{home}/.")), "{readme}");
    nothing_is_left(folder.path());
}

fn readme_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("README.md")).unwrap()
}

#[test]
fn an_interrupt_stops_the_proxies_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(folder.path());
    signals::send(running.0.id(), Signal::INT).unwrap();
    wait("the end", || running.0.try_wait().unwrap().is_some());
    assert!(!running.0.wait().unwrap().success());
    assert!(!folder.path().join("results.json").exists());
    nothing_is_left(folder.path());
}

#[test]
fn killing_it_kills_the_proxies() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(folder.path());
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    wait("the end of the proxies", || {
        processes_of(folder.path()).is_empty()
    });
}

#[test]
fn unknown_names_are_refused_before_anything_starts() {
    for arguments in [["--only", "nonsense"], ["--peers", "nonsense"]] {
        let output = Command::new(BENCH)
            .arg("compare")
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(text(&output).contains("--list") || text(&output).contains("nonsense"));
    }
}

/// Processes whose command line names this folder: its proxies have their configuration there. The
/// comparison itself, which also names it, is left out.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let commands = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let is_proxy = command.contains(&folder) && !command.contains(" compare --peers ");
            is_proxy.then_some(command)
        });
    commands.collect()
}

#[track_caller]
fn nothing_is_left(folder: &Path) {
    assert_eq!(processes_of(folder), Vec::<String>::new());
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let folders: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(folders.is_empty(), "left behind: {folders:?}");
}
