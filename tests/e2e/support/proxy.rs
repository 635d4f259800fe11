//! The process under test: started with a configuration, watched through its logs, its admin
//! listener and /proc, and ended.
//!
//! Everything the process writes is kept and printed when the test fails. A test ends with
//! [`Proxy::finish`], which is the leak check.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use corelay_bench::signals::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::config::{Config, LISTENER};
use super::lines::Lines;
use super::metrics::{self, Answer, Metrics};
use super::process::Process;
use super::{DEADLINE, POLL_INTERVAL, wait_for, wait_until};

/// Exit codes of `corelay run`.
pub(crate) mod exit {
    pub(crate) const OK: i32 = 0;
    pub(crate) const FAILED: i32 = 1;
    pub(crate) const BAD_CONFIG: i32 = 2;
    pub(crate) const HOST: i32 = 3;
    pub(crate) const ADDRESS: i32 = 4;
}

/// The binary that Cargo built for these tests.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_corelay"))
}

/// How a process is started, where that differs from the ordinary.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    /// A command put before the binary, such as strace or prlimit.
    wrapper: Vec<String>,
    environment: Vec<(String, String)>,
    stdout: Output,
}

/// What becomes of standard output, that is, of the access log.
#[derive(Debug, Default)]
pub(crate) enum Output {
    /// Collected.
    #[default]
    Collect,
    /// A pipe that nobody reads.
    Blocked,
    /// A pipe whose reader is gone.
    Closed,
    /// A file or device.
    File(PathBuf),
}

impl Launch {
    /// Runs the binary under this command.
    pub(crate) fn under<S: Into<String>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    /// Sends standard output there.
    pub(crate) fn stdout(mut self, output: Output) -> Self {
        self.stdout = output;
        self
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self, config: &Config) -> Proxy {
        let mut proxy = self.spawn(config);
        proxy.wait_ready();
        proxy
    }

    /// Starts it and returns at once: for a process that is expected to fail.
    #[track_caller]
    pub(crate) fn spawn(self, config: &Config) -> Proxy {
        let directory = tempfile::Builder::new()
            .prefix("corelay-e2e-")
            .tempdir()
            .unwrap();
        let file = directory.path().join("config.yaml");
        config.write(&file);
        let binary = binary();
        let mut command = match self.wrapper.split_first() {
            None => Command::new(binary),
            Some((tool, arguments)) => {
                let mut command = Command::new(tool);
                command.args(arguments).arg(binary);
                command
            }
        };
        command.arg("run").arg("--config").arg(&file);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        match &self.stdout {
            Output::File(path) => command.stdout(
                File::options()
                    .append(true)
                    .create(true)
                    .open(path)
                    .unwrap(),
            ),
            _ => command.stdout(Stdio::piped()),
        };
        let mut child = command.spawn().expect("starting the process under test");
        let stderr = Lines::collect(child.stderr.take().expect("it is piped"));
        let mut blocked = None;
        let stdout = match (self.stdout, child.stdout.take()) {
            (Output::Collect, Some(pipe)) => Lines::collect(pipe),
            (Output::Blocked, pipe) => {
                blocked = pipe;
                Lines::default()
            }
            _ => Lines::default(),
        };
        Proxy {
            child,
            wrapped: !self.wrapper.is_empty(),
            stderr,
            stdout,
            blocked_stdout: blocked,
            _directory: directory,
            listeners: HashMap::new(),
            admin: None,
            base: None,
            ended: false,
        }
    }
}

/// What the process held when it was ready.
#[derive(Clone, Debug)]
struct Base {
    fds: usize,
    fd_list: Vec<String>,
    threads: Vec<String>,
}

/// A running process under test. Dropping it kills it.
pub(crate) struct Proxy {
    child: Child,
    wrapped: bool,
    stderr: Lines,
    stdout: Lines,
    blocked_stdout: Option<std::process::ChildStdout>,
    /// Holds the configuration; removed with the process.
    _directory: TempDir,
    listeners: HashMap<String, String>,
    admin: Option<SocketAddr>,
    base: Option<Base>,
    ended: bool,
}

impl Proxy {
    /// Starts the binary with this configuration and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(config: &Config) -> Self {
        Launch::default().start(config)
    }

    /// For a process that was spawned and is to become ready later.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self) {
        self.wait_log("ready");
        for line in self.stderr.all_json() {
            let address = line["address"].as_str().unwrap_or_default().to_owned();
            match line["message"].as_str() {
                Some("listening") => {
                    let name = line["listener"]
                        .as_str()
                        .expect("a listener's name")
                        .to_owned();
                    self.listeners.insert(name, address);
                }
                Some("admin listening") => {
                    self.admin = Some(address.parse().expect("the admin address"));
                }
                _ => {}
            }
        }
        let process = self.process();
        // A thread has its creator's name until it runs for the first time.
        wait_until("every thread has its name", || {
            let names = process.thread_names();
            let unnamed = names.iter().filter(|name| *name == "corelay").count();
            unnamed == 1 && names.iter().any(|name| name == "signals")
        });
        let threads = process.thread_names();
        // Sockets of health checks come and go; what is always there is what there is at the least.
        let looks = if threads.iter().any(|name| name == "health") {
            25
        } else {
            1
        };
        let lists = (0..looks).map(|look| {
            if look > 0 {
                std::thread::sleep(POLL_INTERVAL / 2);
            }
            process.fd_list()
        });
        let fd_list = lists.min_by_key(Vec::len).expect("a look");
        self.base = Some(Base {
            fds: fd_list.len(),
            fd_list,
            threads,
        });
    }

    /// Where listener `edge` listens.
    #[track_caller]
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener(LISTENER).parse().expect("a TCP address")
    }

    /// Where this listener listens, as logged.
    #[track_caller]
    pub(crate) fn listener(&self, name: &str) -> &str {
        self.listeners
            .get(name)
            .unwrap_or_else(|| panic!("no listener {name} was logged"))
    }

    /// The process itself, also when a wrapper such as strace was started.
    #[track_caller]
    pub(crate) fn process(&self) -> Process {
        let started = Process(self.child.id());
        if !self.wrapped {
            return started;
        }
        // prlimit and setpriv exec the binary, strace forks it.
        wait_for("the process under its wrapper", || {
            std::iter::once(started)
                .chain(started.children())
                .find(|process| {
                    std::fs::read_link(format!("/proc/{}/exe", process.0))
                        .is_ok_and(|exe| exe.file_name() == binary().file_name())
                })
        })
    }

    /// Waits for a line of the process log with this message.
    #[track_caller]
    pub(crate) fn wait_log(&self, message: &str) -> Value {
        self.wait_log_where(message, |line| line["message"] == message)
    }

    /// Waits for a line of the process log.
    #[track_caller]
    pub(crate) fn wait_log_where(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let found = self.stderr.wait(DEADLINE, |lines| {
            lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .find(&matches)
        });
        found.unwrap_or_else(|| panic!("the process log never said {what:?}"))
    }

    /// The process log so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits for this many access-log lines in all and returns them.
    #[track_caller]
    pub(crate) fn access_lines(&self, count: usize) -> Vec<Value> {
        let lines = self.stdout.wait(DEADLINE, |lines| {
            (lines.len() >= count).then(|| lines.to_vec())
        });
        let lines = lines.unwrap_or_else(|| {
            panic!(
                "{} of {count} access-log lines came",
                self.stdout.all().len()
            )
        });
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line:?}")))
            .collect()
    }

    /// Waits for the only access-log line of this test.
    #[track_caller]
    pub(crate) fn access_line(&self) -> Value {
        let mut lines = self.access_lines(1);
        assert_eq!(
            lines.len(),
            1,
            "one session, {} access-log lines",
            lines.len()
        );
        lines.remove(0)
    }

    /// Access-log lines so far.
    pub(crate) fn access_so_far(&self) -> Vec<Value> {
        self.stdout.all_json()
    }

    /// Where admin listens.
    #[track_caller]
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("no admin listener was logged")
    }

    /// GETs a path of the admin listener.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        metrics::get(self.admin(), path).unwrap_or_else(|| panic!("no answer to GET {path}"))
    }

    /// GET /metrics, parsed.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        Metrics::parse(&answer.body)
    }

    /// GET /stats, parsed.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        let answer = self.get("/stats");
        assert_eq!(answer.status, 200);
        serde_json::from_str(&answer.body).expect("/stats is JSON")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for the process") {
                self.ended = true;
                self.stderr.wait_end(DEADLINE);
                if self.blocked_stdout.is_none() {
                    self.stdout.wait_end(POLL_INTERVAL);
                }
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the process did not end within {patience:?}"
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("asking after the process")
            .is_none()
    }

    /// The leak check: descriptors and threads as at the start, no session, no buffer held.
    #[track_caller]
    pub(crate) fn check_leaks(&self) {
        let base = self.base.clone().expect("it was ready");
        let process = self.process();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let held = self.held();
            // Empty pipes are kept for the next stream.
            let pipe_fds = 2 * self.metrics().sum("corelay_pipes") as usize;
            if process.open_fds() == Some(base.fds + pipe_fds)
                && process.thread_names() == base.threads
                && held == (0.0, 0.0, 0.0)
            {
                return;
            }
            if Instant::now() > deadline {
                let fds = process.fd_list();
                let excess: Vec<_> = fds
                    .iter()
                    .filter(|fd| !base.fd_list.contains(fd))
                    .take(10)
                    .collect();
                let gone: Vec<_> = base.fd_list.iter().filter(|fd| !fds.contains(fd)).collect();
                panic!(
                    "gone since the start {gone:?}; leaked: {} fds at the start, {} now, new among them {excess:?}; \
                     threads {:?} at the start, {:?} now; buffers held, active sessions and pipes held {held:?}",
                    base.fds,
                    fds.len(),
                    base.threads,
                    process.thread_names()
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Buffers held, sessions active and pipes held.
    #[track_caller]
    fn held(&self) -> (f64, f64, f64) {
        let metrics = self.metrics();
        (
            metrics.sum("corelay_buffers_held"),
            metrics.sum_where("corelay_connections_active", &[]),
            metrics.sum("corelay_pipes_held"),
        )
    }

    /// The end of a test: leak check, SIGTERM, exit code 0, nothing that looks like a panic.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.check_leaks();
        self.stop();
    }

    /// SIGTERM and exit code 0, without the leak check.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_exit(DEADLINE * 2);
        assert_eq!(status.code(), Some(exit::OK), "after SIGTERM: {status:?}");
        let log = self.log();
        let panicked = log.iter().find(|line| line.contains("panicked"));
        assert!(
            panicked.is_none(),
            "a panic in the process log: {panicked:?}"
        );
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if !self.ended {
            if self.wrapped {
                // A tracer that dies first would leave its tracee running.
                for child in Process(self.child.id()).children() {
                    child.signal(Signal::KILL);
                }
            }
            // Both fail only if it has ended meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

impl Proxy {
    fn print_logs(&self) {
        /// Enough to see what happened last; thousands of sessions would bury it.
        const LINES: usize = 12;
        for (name, lines) in [
            ("process log", self.stderr.all()),
            ("access log", self.stdout.all()),
        ] {
            eprintln!("--- {name}: {} lines, the last {LINES}:", lines.len());
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// Asserts the close reason of an access-log line, as `side/stage/cause`.
#[track_caller]
pub(crate) fn assert_reason(line: &Value, expected: &str) {
    assert_eq!(reason(line), expected, "close reason of {line}");
}

/// The close reason of an access-log line, as `side/stage/cause`.
pub(crate) fn reason(line: &Value) -> String {
    let part = |key: &str| line["close_reason"][key].as_str().unwrap_or("?").to_owned();
    format!("{}/{}/{}", part("side"), part("stage"), part("cause"))
}

/// The one line that a failed start must be: cause, consequence, remedy, and no backtrace.
#[track_caller]
pub(crate) fn assert_one_clear_line(proxy: &Proxy, must_name: &str) {
    let log = proxy.log();
    let lines: Vec<_> = log.iter().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line: {lines:#?}");
    assert!(
        lines[0].contains(must_name),
        "{must_name:?} is not in {:?}",
        lines[0]
    );
    assert!(
        !lines[0].contains("panicked") && !lines[0].contains("backtrace"),
        "{}",
        lines[0]
    );
}
