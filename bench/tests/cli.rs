//! The command-line tool from outside: its reports, its signals, its files.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use corelay_bench::load::Report;
use corelay_bench::servers::{Handle, RefusedPort, Server};
use corelay_bench::signals::{self, Signal};

const DEADLINE: Duration = Duration::from_secs(20);

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelay-bench"));
    command.args(arguments);
    command
}

fn succeed(arguments: &[&str]) -> String {
    let output = bench(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that is killed, should the test end before it does.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rr_report(echo: &Handle, file: &Path) {
    let to = echo.endpoint().to_string();
    let file = file.to_str().unwrap();
    let duration = "100ms";
    succeed(&["rr", "--to", &to, "--duration", duration, "--json", file]);
}

#[test]
fn ctrl_c_ends_a_load_with_its_report() {
    for (signal, load) in [
        (Signal::INT, "rr"),
        (Signal::TERM, "rr"),
        (Signal::INT, "crr"),
        (Signal::INT, "bulk"),
        (Signal::INT, "idle"),
        (Signal::INT, "answers"),
    ] {
        let server = match load {
            "answers" => Server::answers(),
            _ => Server::echo(),
        };
        let server = server.start().unwrap();
        let to = server.endpoint().to_string();
        let child = bench(&[load, "--to", &to, "--duration", "10min", "--json", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        wait_until("the load runs", || {
            let stats = server.stats();
            match load {
                "idle" => stats.bytes_in == 4000,
                "answers" => stats.bytes_out > 100_000_000,
                _ => stats.bytes_in > 10_000,
            }
        });
        signals::send(child.0.id(), signal).unwrap();
        wait_until("it ends", || child.0.try_wait().unwrap().is_some());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let json = lines.find(|line| line.as_ref().unwrap().starts_with('{'));
        let report = Report::from_json(&json.unwrap().unwrap()).unwrap();
        assert!(child.0.wait().unwrap().success());
        assert_eq!(report.kind.name(), load);
        assert!(report.bytes_sent > 0 && report.elapsed < DEADLINE);
        assert_eq!(report.errors, [].into());
    }
}

#[test]
fn the_duration_ends_it_with_a_table_and_the_files() {
    let echo = Server::echo().start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (json, hgrm) = (folder.path().join("a.json"), folder.path().join("a.hgrm"));
    let hlog = folder.path().join("a.hlog");
    let to = echo.endpoint().to_string();
    let table = succeed(&[
        "rr",
        "--to",
        &to,
        "--duration",
        "200ms",
        "--rate",
        "500",
        "--json",
        json.to_str().unwrap(),
        "--hgrm",
        hgrm.to_str().unwrap(),
        "--hlog",
        hlog.to_str().unwrap(),
    ]);
    assert!(table.contains("p99.9"), "{table}");
    let report = Report::from_json(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(report.operations, 100);
    let hgrm = std::fs::read_to_string(hgrm).unwrap();
    assert!(hgrm.contains("Total count    =          100]"), "{hgrm}");
    let log = std::fs::read_to_string(hlog).unwrap();
    assert!(log.contains("#[StartTime: "), "{log}");
    let log = corelay_bench::hlog::read(&log, "a", &Default::default()).unwrap();
    assert_eq!(Some(log.service_ns), report.intended_ns);
}

#[test]
fn reports_are_merged_and_drawn() {
    let echo = Server::echo().start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let text = |name: &str| file(name).to_str().unwrap().to_owned();
    rr_report(&echo, &file("first.json"));
    rr_report(&echo, &file("second.json"));
    let read = |text: &str| Report::from_json(text).unwrap();
    let read_file = |name| read(&std::fs::read_to_string(file(name)).unwrap());
    let (first, second) = (read_file("first.json"), read_file("second.json"));

    let merged = succeed(&[
        "merge",
        &text("first.json"),
        &text("second.json"),
        "--json",
        "-",
    ]);
    let merged = read(&merged);
    assert_eq!(merged.operations, first.operations + second.operations);
    let mut sum = first.service_ns.clone();
    sum.add(&second.service_ns).unwrap();
    assert_eq!(merged.service_ns, sum);

    for name in ["chart.svg", "chart.png"] {
        let out = text(name);
        succeed(&[
            "plot",
            &text("first.json"),
            &text("second.json"),
            "--out",
            &out,
        ]);
    }
    let svg = std::fs::read_to_string(file("chart.svg")).unwrap();
    for label in ["first", "second", "99.9%", "operations per second"] {
        assert!(svg.contains(label), "{label} is not in the chart");
    }

    // What a log holds: the latencies, and nothing else.
    let hlog = text("both.hlog");
    succeed(&[
        "merge",
        &text("first.json"),
        &text("second.json"),
        "--hlog",
        &hlog,
    ]);
    let logs = succeed(&[
        "merge",
        &hlog,
        &hlog,
        "--log-unit",
        "us",
        "--log-tag",
        "-",
        "--json",
        "-",
    ]);
    let logs = read(&logs);
    assert_eq!(
        (logs.kind.name(), logs.operations),
        ("log", 2 * merged.operations)
    );
    let p50_us = merged.service_ns.value_at_quantile(0.5) as f64;
    let p50_ns = logs.service_ns.value_at_quantile(0.5) as f64;
    assert!(
        (p50_ns / p50_us / 1000.0 - 1.0).abs() < 0.01,
        "{p50_ns} {p50_us}"
    );
    succeed(&[
        "plot",
        &hlog,
        &text("first.json"),
        "--out",
        &text("logs.svg"),
    ]);
    let mixed = ended(bench(&["merge", &hlog, &text("first.json")]));
    assert!(!mixed.status.success() && mixed.stdout.is_empty());
    assert!(
        String::from_utf8_lossy(&mixed.stderr).contains("make no sum"),
        "{mixed:?}"
    );
    std::fs::write(file("bad.hlog"), "#a comment\n1.0,1.0,1.0,AAAA\n").unwrap();
    let bad = ended(bench(&["merge", &text("bad.hlog")]));
    let error = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(!bad.status.success());
    assert!(
        error.contains("bad.hlog") && error.contains("line 2"),
        "{error}"
    );

    let png = std::fs::read(file("chart.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    let refused = bench(&["plot", &text("first.json"), "--out", &text("chart.gif")]);
    assert!(!ended(refused).status.success());
}

#[test]
fn a_server_of_the_command_line_serves_and_a_load_that_gets_nothing_fails() {
    let child = bench(&["serve", "echo", "--cpu", "0", "--name", "here"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.strip_prefix("here listening on ").unwrap().trim();
    succeed(&[
        "crr",
        "--to",
        address,
        "--duration",
        "100ms",
        "--close",
        "rst",
    ]);
    drop(child);
    let output = ended(bench(&["crr", "--to", address, "--duration", "100ms"]));
    assert!(!output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("connect: connection refused"), "{table}");
}

#[test]
fn sizes_take_units_and_so_do_the_servers() {
    // The source ends each stream after its bytes: only if both say 64 KiB, the stream is whole.
    let child = bench(&["serve", "source", "--bytes", "64KiB"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let source = line.strip_prefix("server listening on ").unwrap().trim();
    let down = ["bulk", "--direction", "down", "--verify", "--to", source];
    let report = json_of(&[&down[..], &["--bytes", "64KiB", "--connections", "2"]].concat());
    assert_eq!((report.operations, report.bytes_received), (2, 2 * 65_536));

    let echo = Server::echo().start().unwrap();
    let to = echo.endpoint().to_string();
    for load in ["rr", "crr"] {
        let report = json_of(&[load, "--to", &to, "--size", "2KiB", "--duration", "100ms"]);
        assert_eq!(report.bytes_sent, report.operations * 2048, "{load}");
    }
    let answers = Server::answers().start().unwrap();
    let to = answers.endpoint().to_string();
    let short = ["answers", "--to", &to, "--duration", "100ms"];
    let report = json_of(&[&short[..], &["--bytes", "1KiB", "--spread", "1k"]].concat());
    assert_eq!(report.options["bytes"], 1024);
    assert_eq!(report.options["spread_bytes"], 1024);
}

/// The code, and the lines on stderr.
fn code_and_errors(arguments: &[&str]) -> (Option<i32>, Vec<String>) {
    let output = ended(bench(arguments));
    let errors = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        errors.lines().map(str::to_owned).collect(),
    )
}

#[test]
fn exit_codes_tell_success_failure_and_wrong_arguments() {
    let echo = Server::echo().start().unwrap();
    let to = echo.endpoint().to_string();
    let served = code_and_errors(&["rr", "--to", &to, "--duration", "50ms"]);
    assert_eq!(served, (Some(0), Vec::new()));

    let refused = RefusedPort::new().unwrap();
    let gone = refused.address().to_string();
    for failing in [
        &["rr", "--to", &gone, "--duration", "50ms"][..],
        &["rr", "--to", &gone, "--duration", "50ms", "--fail-fast"],
        &["rr", "--to", &to, "--rate", "0"],
        &["merge", "/nonexistent/report.json"],
        &["serve", "echo", "--listen", &to],
        &["compare", "--only", "nonsense"],
    ] {
        let (code, errors) = code_and_errors(failing);
        assert_eq!(code, Some(1), "{failing:?}: {errors:?}");
        assert_eq!(errors.len(), 1, "{failing:?}: {errors:?}");
        assert!(errors[0].starts_with("corelay-bench: "), "{errors:?}");
    }
    for unreadable in [
        &["rr"][..],
        &["rr", "--to", "nowhere"],
        &["bulk", "--to", &to, "--bytes", "16KB"],
        &["no-such-command"],
    ] {
        let (code, errors) = code_and_errors(unreadable);
        assert_eq!(code, Some(2), "{unreadable:?}: {errors:?}");
    }
    let help = succeed(&["--help"]);
    for code in ["0", "1", "2", "130, 143"] {
        let line = format!("\n  {code:<8}  ");
        assert!(help.contains(&line), "no {code} in {help}");
    }
}

#[test]
fn a_second_signal_ends_a_load_at_once_with_its_own_code() {
    // What it never answers is waited for after the first signal, once it was sent.
    let silent = Server::sink().start().unwrap();
    let to = silent.endpoint().to_string();
    let child = bench(&["rr", "--to", &to, "--duration", "10min"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    wait_until("a request waits", || silent.stats().bytes_in > 0);
    let mut status = None;
    wait_until("it ends", || {
        // More than two: those that come before the first was seen to are one.
        signals::send(child.0.id(), Signal::INT).unwrap();
        status = child.0.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(130));
}

fn json_of(arguments: &[&str]) -> Report {
    let json = succeed(&[arguments, &["--json", "-"]].concat());
    Report::from_json(&json).unwrap()
}

fn ended(mut command: Command) -> Output {
    command.output().unwrap()
}
