//! A process seen through /proc: its descriptors, threads, memory and CPU time; and its tools.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use corelay_bench::signals::{self, Signal};

/// Debug builds look into a ring's fdinfo before each sleep; under strace(1) they are often caught at it.
const IS_PASSING: &str = "/fdinfo/";

/// Clock ticks per second in /proc/PID/stat; Linux has reported 100 on every architecture since 2.6.
const USER_HZ: u64 = 100;

/// A process by its id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// Sends a signal. The process must be one that this test started.
    pub(crate) fn signal(self, signal: Signal) {
        signals::send(self.0, signal).expect("signalling the process");
    }

    /// How many file descriptors are open, without those of [`IS_PASSING`]; `None` once the process is gone.
    pub(crate) fn open_fds(self) -> Option<usize> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.0)).ok()?;
        let is_passing = |entry: &fs::DirEntry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            target.to_string_lossy().contains(IS_PASSING)
        };
        Some(entries.flatten().filter(|entry| !is_passing(entry)).count())
    }

    /// What those descriptors are, sorted: for the message of a failed leak check.
    pub(crate) fn fd_list(self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.0)) else {
            return Vec::new();
        };
        let mut list: Vec<String> = entries
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .map(|target| target.display().to_string())
            .filter(|target| !target.contains(IS_PASSING))
            .collect();
        list.sort();
        list
    }

    /// The names of the threads, sorted. Kernel workers of an io_uring (`iou-wrk-…`) are among them.
    pub(crate) fn thread_names(self) -> Vec<String> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.0)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = tasks
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .collect();
        names.sort();
        names
    }

    /// The thread of this name.
    pub(crate) fn thread_id(self, name: &str) -> Option<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).ok()?;
        tasks.flatten().find_map(|task| {
            let comm = fs::read_to_string(task.path().join("comm")).ok()?;
            let id = task.file_name().to_str()?.parse().ok()?;
            (comm.trim_end() == name).then_some(id)
        })
    }

    /// Anonymous resident memory in bytes: what the process itself has written.
    pub(crate) fn anonymous_bytes(self) -> u64 {
        self.status_kib("RssAnon:") * 1024
    }

    /// User and system time so far, in milliseconds.
    pub(crate) fn cpu_ms(self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("its stat");
        // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
        let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|f| f.parse::<u64>().expect("a number"))
            .sum();
        ticks * 1000 / USER_HZ
    }

    /// The processes that it started and that still run.
    pub(crate) fn children(self) -> Vec<Process> {
        let path = format!("/proc/{0}/task/{0}/children", self.0);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace()
            .filter_map(|id| id.parse().ok().map(Process))
            .collect()
    }

    /// Whether every thread is in this state of proc_pid_stat(5): `T` after SIGSTOP, `S` while it waits.
    pub(crate) fn threads_are(self, state: char) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).expect("its threads");
        let mut states = tasks.filter_map(|task| {
            let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        });
        states.all(|it| it == state)
    }

    fn status_kib(self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("its status");
        let line = status
            .lines()
            .find(|line| line.starts_with(key))
            .expect("the field");
        line.split_whitespace()
            .nth(1)
            .expect("a value")
            .parse()
            .expect("a number")
    }
}

/// Where a tool is, if this machine has it.
pub(crate) fn tool(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|folder| folder.join(name))
        .find(|candidate| Path::is_file(candidate))
}

/// strace(1), if it is here and may trace; else the case is skipped.
pub(crate) fn strace(case: &str) -> Option<String> {
    let path = tool("strace");
    let works = path.as_ref().is_some_and(|path| {
        let status = Command::new(path)
            .args(["-o", "/dev/null", "true"])
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    });
    if !works {
        super::skip(case, "no working strace(1) here");
        return None;
    }
    path.map(|path| path.to_str().unwrap().to_owned())
}

/// What strace(1) does to a system call of one running thread, until this is dropped.
pub(crate) struct Injection(Child);

impl Injection {
    /// `inject` is of strace's own words, such as `error=ENFILE:when=1`. Returns when it is in force.
    #[track_caller]
    pub(crate) fn into_thread(strace: &str, thread: u32, call: &str, inject: &str) -> Self {
        let child = Command::new(strace)
            .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:{inject}")])
            .args(["-p", &thread.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        super::wait_until("the thread is traced", || {
            let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
            !status.contains("TracerPid:\t0")
        });
        Self(child)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
