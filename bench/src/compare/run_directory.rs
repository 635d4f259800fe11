//! What a run leaves behind: `bench/runs/<date>-<machine>/`, with what is needed to judge it and to
//! repeat it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::bars::Outcome;
use super::machine::Machine;
use super::process::Plan;
use super::results::Sample;

/// How often a name is tried with another number when the folder exists.
const MAX_RUNS_PER_DAY: usize = 1000;

/// More than this by other processes, and a run says more about them than about the proxies.
/// (The kernel's own threads are among them, a few percent.)
const MAX_FOREIGN_PERCENT: f64 = 15.0;

/// Everything that is not a table.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    pub(super) date: String,
    /// Of the sources, if they are a git repository here.
    pub(super) revision: Option<String>,
    pub(super) machine: Machine,
    pub(super) congestion_control: String,
    pub(super) proxy_cpus: Vec<usize>,
    pub(super) load_cpus: Vec<usize>,
    pub(super) command: String,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    pub(super) integrity_bytes: u64,
    /// What other processes took of one CPU meanwhile.
    pub(super) foreign_percent: f64,
    /// Requests per second of the open loop, if it ran.
    pub(super) open_rate: Option<f64>,
    /// What the paced streams were held to, all together, if they ran.
    pub(super) bulk_bytes_per_second: Option<f64>,
    pub(super) peers: Vec<PeerRecord>,
    pub(super) absent: Vec<String>,
    pub(super) bars: Vec<Outcome>,
    pub(super) samples: Vec<Sample>,
}

/// One proxy as it ran.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PeerRecord {
    pub(super) name: String,
    pub(super) what: String,
    pub(super) version: String,
    pub(super) command: Vec<String>,
    pub(super) configuration: Vec<String>,
}

impl PeerRecord {
    /// Folders of this machine say nothing to a reader: programs are shown by name, files of the
    /// run's own folder as if they lay here.
    pub(super) fn new(name: &str, what: &str, version: &str, plan: &Plan, folder: &Path) -> Self {
        let folder = format!("{}/", folder.display());
        let shown = |text: &str| {
            text.replace(&folder, "")
                .replace(folder.trim_end_matches('/'), ".")
        };
        let command = |words: &Vec<std::ffi::OsString>| {
            let environment = plan
                .environment
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            let words = words.iter().enumerate().map(|(index, word)| {
                let path = Path::new(word);
                match (index, path.file_name()) {
                    (0, Some(name)) => name.to_string_lossy().into_owned(),
                    _ => shown(&word.to_string_lossy()),
                }
            });
            environment.chain(words).collect::<Vec<_>>().join(" ")
        };
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            version: version.to_owned(),
            command: plan.commands.iter().map(command).collect(),
            configuration: plan.files.iter().map(|(_, text)| shown(text)).collect(),
        }
    }
}

/// What git calls the sources; `-dirty` if they differ from what is committed.
pub(super) fn revision() -> Option<String> {
    let mut git = std::process::Command::new("git");
    let output = git
        .args(["describe", "--always", "--dirty"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// A folder that does not exist yet: a second run of a day must not replace the first.
pub(super) fn create(wanted: Option<&Path>, date: &str, machine: &str) -> Result<PathBuf> {
    if let Some(wanted) = wanted {
        fs::create_dir_all(wanted).with_context(|| format!("making {}", wanted.display()))?;
        return Ok(wanted.to_owned());
    }
    let runs = Path::new("bench/runs");
    fs::create_dir_all(runs).with_context(|| format!("making {}", runs.display()))?;
    for number in 1..=MAX_RUNS_PER_DAY {
        let suffix = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        let path = runs.join(format!("{date}-{machine}{suffix}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
        }
    }
    anyhow::bail!(
        "{MAX_RUNS_PER_DAY} runs of {date} exist in {}",
        runs.display()
    )
}

/// Writes the record and the README.
pub(super) fn write(folder: &Path, record: &Record, tables: &str, plots: &[String]) -> Result<()> {
    let json = serde_json::to_string(record)?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("results.json", &format!("{json}\n"))?;
    write("README.md", &readme(record, tables, plots))
}

/// The head of every output, on the terminal as in the README.
pub(super) fn head(record: &Record) -> String {
    let machine = &record.machine;
    let mut text = format!(
        "{}; {} CPUs, {}, {}, {} GiB; congestion control {}\n\
         proxies on CPU {:?}, load and servers on CPU {:?}; {} rounds of {} s, interleaved, the first \
         (not counted) warms up\n",
        machine.kernel,
        machine.cpus,
        machine.cpu_model,
        machine.hypervisor,
        machine.memory_gib,
        record.congestion_control,
        record.proxy_cpus,
        record.load_cpus,
        record.rounds,
        record.seconds,
    );
    let _ = writeln!(
        text,
        "other processes took {:.0} % of one CPU meanwhile{}",
        record.foreign_percent,
        if record.foreign_percent > MAX_FOREIGN_PERCENT {
            ": DO NOT TRUST these figures, the machine was not quiet"
        } else {
            ""
        }
    );
    if let Some(revision) = &record.revision {
        let _ = writeln!(text, "sources at {revision}");
    }
    for peer in &record.peers {
        let version = match peer.version.as_str() {
            "" => String::new(),
            version => format!(" ({version})"),
        };
        let _ = writeln!(text, "{}: {}{version}", peer.name, peer.what);
    }
    for absent in &record.absent {
        let _ = writeln!(text, "absent: {absent}");
    }
    text
}

fn readme(record: &Record, tables: &str, plots: &[String]) -> String {
    let Record { date, command, .. } = record;
    let mut text = format!("# {date}, {}\n\n", record.machine.short_name());
    for line in head(record).lines() {
        let _ = writeln!(text, "- {line}");
    }
    let _ = writeln!(text, "\n```console\n$ {command}\n```\n");
    text.push_str(
        "CPU is that of the proxy alone, all threads and children, from `/proc`; *machine* is that of all CPUs, load \
         and servers included. Figures are medians over the rounds with the lowest and the highest; ratios are taken \
         round by round. Before the rounds every proxy carried ",
    );
    let mib = record.integrity_bytes / (1024 * 1024);
    let _ = writeln!(
        text,
        "{mib} MiB each way, compared byte by byte or by SHA-256."
    );
    if let Some(rate) = record.open_rate {
        let _ = writeln!(text, "The open loop sent {rate:.0} requests per second.");
    }
    if let Some(rate) = record.bulk_bytes_per_second {
        let _ = writeln!(
            text,
            "The paced streams were held to {:.0} MB per second together.",
            rate / 1e6
        );
    }
    text.push_str("\nEvery round: [results.json](results.json).\n\n");
    for plot in plots {
        let _ = writeln!(text, "![{plot}]({plot})\n");
    }
    text.push_str(tables);
    text.push_str("\n## Configurations\n");
    for peer in &record.peers {
        if peer.command.is_empty() {
            continue;
        }
        let _ = write!(text, "\n### {}\n\n```console\n", peer.name);
        for command in &peer.command {
            let _ = writeln!(text, "$ {command}");
        }
        text.push_str("```\n");
        for configuration in &peer.configuration {
            let _ = write!(text, "\n```text\n{configuration}```\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_of_the_machine_is_shown() {
        let folder = Path::new("/some/where");
        let plan = Plan {
            commands: vec![vec![
                "/usr/sbin/nginx".into(),
                "-p".into(),
                "/some/where".into(),
                "-c".into(),
                "/some/where/nginx.conf".into(),
            ]],
            environment: vec![("GOMAXPROCS", "1".into())],
            files: vec![(
                "/some/where/nginx.conf".into(),
                "pid /some/where/nginx.pid;\n".into(),
            )],
            listeners: Vec::new(),
        };
        let record = PeerRecord::new("nginx", "", "", &plan, folder);
        assert_eq!(record.command, ["GOMAXPROCS=1 nginx -p . -c nginx.conf"]);
        assert_eq!(record.configuration, ["pid nginx.pid;\n"]);
    }

    #[test]
    fn a_given_folder_is_taken_as_it_is() {
        let parent = tempfile::tempdir().unwrap();
        let wanted = parent.path().join("a/b");
        for _ in 0..2 {
            let folder = create(Some(&wanted), "2026-11-21", "2cpu").unwrap();
            assert_eq!(folder, wanted);
            assert!(folder.is_dir());
        }
    }
}
