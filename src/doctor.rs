//! `corelay doctor`: what this host offers, whether that is enough for a configuration, and what to do if
//! not. Each line is ok, warn or fail.
//!
//! [`HostFacts::read`] looks at the host, [`judge`] is a pure function of what it saw, [`run`] prints.
//! It binds nothing, changes nothing, and keeps nothing open.

mod judge;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::ops::RangeInclusive;

use serde_json::{Value, json};

pub use judge::judge;

use crate::config::model::{Config, ServerAddress, Workers};
use crate::control::{listen, source};
use crate::sys::limits::{self, Capability, Limit};
use crate::sys::probe::{self, Blocked, Feature, RingSizes};
use crate::sys::{affinity, fast_open, process};
use crate::units::Address;

/// The rings of one core: the relay ring at its largest, and the accept and dial runtime's.
const RINGS_PER_CORE: [RingSizes; 2] = [
    RingSizes {
        submission_entries: 512,
        completion_entries: 65_536,
    },
    RingSizes {
        submission_entries: 256,
        completion_entries: 512,
    },
];
/// Cores for which rings are made at once to see whether they fit; each takes about 1.3 MiB for a moment.
const CORES_TRIED_MAX: usize = 64;
/// Default of `net.ipv4.ip_unprivileged_port_start`.
const UNPRIVILEGED_PORT_START: i64 = 1024;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Corelay runs, with a limit or slower.
    Warn,
    /// Corelay does not start.
    Fail,
}

impl Verdict {
    /// As printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at; a stable word for scripts.
    pub check: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; absent if all is well.
    pub remedy: Option<String>,
}

/// What was seen of the host. Plain values, so that a test can have any host it likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel_release: String,
    /// The features of io_uring, or why it cannot be used.
    pub io_uring: Result<Vec<Feature>, Blocked>,
    /// Whether the rings of all cores could be had at once.
    pub rings_fit: Result<(), Blocked>,
    /// RLIMIT_NOFILE.
    pub open_files: Limit,
    /// Descriptors open already.
    pub open_files_used: u64,
    /// RLIMIT_MEMLOCK, in bytes.
    pub locked_memory: Limit,
    /// CAP_IPC_LOCK: the limit on locked memory does not hold.
    pub may_lock_all: bool,
    /// CAP_NET_BIND_SERVICE.
    pub may_bind_low_ports: bool,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub unprivileged_port_start: i64,
    /// The affinity mask.
    pub cpus: Vec<usize>,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<i64>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// `fs.pipe-user-pages-soft`.
    pub pipe_pages_soft: Option<i64>,
    /// `net.ipv4.tcp_fastopen`.
    pub fast_open: Option<i64>,
}

impl HostFacts {
    /// Of this host, for this many cores.
    pub fn read(cores: usize) -> Self {
        let io_uring = probe::io_uring();
        let rings_fit = match &io_uring {
            Ok(_) => probe::rings_fit(cores.min(CORES_TRIED_MAX), &RINGS_PER_CORE),
            Err(_) => Ok(()),
        };
        let unknown = Limit { soft: 0, hard: 0 };
        Self {
            kernel_release: limits::kernel_release(),
            io_uring,
            rings_fit,
            open_files: limits::open_files().unwrap_or(unknown),
            open_files_used: process::open_fds(),
            locked_memory: limits::locked_memory().unwrap_or(unknown),
            may_lock_all: limits::has_capability(Capability::IpcLock),
            may_bind_low_ports: limits::has_capability(Capability::NetBindService),
            unprivileged_port_start: limits::sysctl("net/ipv4/ip_unprivileged_port_start")
                .unwrap_or(UNPRIVILEGED_PORT_START),
            cpus: affinity::allowed_cpus(),
            somaxconn: limits::sysctl("net/core/somaxconn"),
            local_ports: limits::local_port_range(),
            pipe_pages_soft: limits::sysctl("fs/pipe-user-pages-soft"),
            fast_open: fast_open::allowed(),
        }
    }
}

/// What a configuration asks of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// CPUs named one by one; empty if they are not.
    pub cpus: Vec<usize>,
    /// A number of cores; `None` is one per CPU.
    pub cores: Option<usize>,
    /// Listeners with a TCP address.
    pub tcp_listeners: u64,
    /// Listeners with a unix path.
    pub unix_listeners: u64,
    /// The longest accept queue asked for.
    pub backlog_max: u32,
    /// The lowest TCP port listened on, admin included.
    pub lowest_port: Option<u16>,
    /// Servers with a TCP address; a name counts as one.
    pub tcp_servers: u64,
    /// Memory that each core pins for zero-copy sends, in bytes; `None` if they are off.
    pub pinned_bytes: Option<u64>,
    /// Sessions that the listeners allow together, those without `limits.connections` left out.
    pub sessions: u64,
    /// Bits of `net.ipv4.tcp_fastopen` that are asked for.
    pub fast_open: i64,
}

impl Needs {
    /// Of a configuration.
    pub fn of(config: &Config) -> Self {
        let (cpus, cores) = match &config.workers {
            Workers::Auto => (Vec::new(), None),
            Workers::Count(count) => (Vec::new(), Some(*count)),
            Workers::Cpus(cpus) => (cpus.clone(), Some(cpus.len())),
        };
        let port = |address: &Address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => None,
        };
        let ports = config
            .listeners
            .iter()
            .filter_map(|listener| port(&listener.bind));
        let tcp_listeners = ports.clone().count() as u64;
        let admin_port = config.admin.map(|admin| admin.bind.port());
        let servers = config
            .upstreams
            .iter()
            .flat_map(|upstream| &upstream.servers);
        let is_tcp = |address: &ServerAddress| match address {
            ServerAddress::Known(address) => port(address).is_some(),
            ServerAddress::Named { .. } | ServerAddress::Service { .. } => true,
        };
        Self {
            cpus,
            cores,
            tcp_listeners,
            unix_listeners: config.listeners.len() as u64 - tcp_listeners,
            backlog_max: config
                .listeners
                .iter()
                .map(|l| l.backlog)
                .max()
                .unwrap_or(0),
            // Port 0 asks for any free one.
            lowest_port: ports.chain(admin_port).filter(|port| *port != 0).min(),
            tcp_servers: servers.filter(|server| is_tcp(&server.address)).count() as u64,
            pinned_bytes: config
                .relay
                .zero_copy_send
                .then(|| u64::from(config.buffers.size_bytes) * u64::from(config.buffers.per_core)),
            sessions: config
                .listeners
                .iter()
                .filter_map(|listener| listener.limits.connections)
                .map(u64::from)
                .sum(),
            fast_open: listen::fast_open_asked(config),
        }
    }

    /// Cores on a host with these CPUs.
    pub fn cores_on(&self, cpus: &[usize]) -> usize {
        self.cores.unwrap_or(cpus.len()).max(1)
    }
}

impl Default for Needs {
    /// Without a configuration: one TCP listener on an unprivileged port, one server.
    fn default() -> Self {
        Self {
            cpus: Vec::new(),
            cores: None,
            tcp_listeners: 1,
            unix_listeners: 0,
            backlog_max: 0,
            lowest_port: None,
            tcp_servers: 1,
            pinned_bytes: None,
            sessions: 0,
            fast_open: 0,
        }
    }
}

/// Looks, judges and prints to stdout; true if nothing fails.
pub fn run(config: Option<&Config>, json: bool) -> bool {
    let needs = config.map(Needs::of).unwrap_or_default();
    let facts = HostFacts::read(needs.cores_on(&affinity::allowed_cpus()));
    let mut findings = judge(&facts, &needs);
    findings.extend(config.map(sources).unwrap_or_default());
    let text = if json {
        format!("{:#}\n", as_json(&findings))
    } else {
        as_text(&findings)
    };
    // A reader that left does not change the verdict.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    worst(&findings) < Verdict::Fail
}

/// Whether the `source` of each upstream can be had: tried, as at a start.
fn sources(config: &Config) -> Vec<Finding> {
    let has_any = config.upstreams.iter().any(|it| it.source.is_some());
    let problems = source::problems(config);
    if has_any && problems.is_empty() {
        return vec![Finding {
            check: "source",
            verdict: Verdict::Ok,
            found: "options of the sockets towards servers can be had".to_owned(),
            remedy: None,
        }];
    }
    let finding = |problem: source::SourceError| Finding {
        check: "source",
        verdict: Verdict::Fail,
        found: format!("upstream {}: source.{}", problem.upstream, problem.problem),
        remedy: Some(problem.remedy),
    };
    problems.into_iter().map(finding).collect()
}

fn worst(findings: &[Finding]) -> Verdict {
    findings
        .iter()
        .map(|f| f.verdict)
        .max()
        .unwrap_or(Verdict::Ok)
}

/// Aligned columns, each remedy under its finding, and a summary.
pub fn as_text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (verdict, check) = (finding.verdict.as_str(), finding.check);
        text.push_str(&format!(
            "{verdict:<4}  {check:<width$}  {}\n",
            finding.found
        ));
        if let Some(remedy) = &finding.remedy {
            let indent = 4 + 2 + width + 2;
            text.push_str(&format!("{:indent$}-> {remedy}\n", ""));
        }
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let summary = match worst(findings) {
        Verdict::Ok => "Corelay can run here.".to_owned(),
        Verdict::Warn => format!(
            "Corelay can run here, with {} warning(s).",
            count(Verdict::Warn)
        ),
        Verdict::Fail => format!(
            "Corelay cannot run here: {} failure(s).",
            count(Verdict::Fail)
        ),
    };
    text.push_str(&format!("\n{summary}\n"));
    text
}

/// `{"verdict": …, "checks": [{"check", "verdict", "found", "remedy"}]}`.
pub fn as_json(findings: &[Finding]) -> Value {
    let checks: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "check": finding.check,
                "verdict": finding.verdict.as_str(),
                "found": finding.found,
                "remedy": finding.remedy,
            })
        })
        .collect();
    json!({ "verdict": worst(findings).as_str(), "checks": checks })
}
