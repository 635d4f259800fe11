//! What a process tree and the whole machine have used, read from `/proc`.
//!
//! CPU time of a thread comes from `/proc/PID/task/TID/schedstat` in nanoseconds. `/proc/PID/stat`
//! counts in ticks of 10 ms, and is used for the split into user and system, for children that have
//! ended, and where `schedstat` is absent. See proc(5).

use std::fs;
use std::ops::Sub;

/// Nanoseconds in a second.
const NS_PER_SECOND: u64 = 1_000_000_000;
/// A process tree deeper or larger than this is cut: no proxy here has one.
const MAX_PROCESSES: usize = 20_000;
/// Threads that io_uring starts when an operation cannot be done without blocking.
const IO_WORKER_PREFIX: &str = "iou-wrk";

/// CPU time and context switches of some processes with all their children, since each started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// All threads, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// Time in user space, in nanoseconds; exact to a tick.
    pub(super) user_ns: u64,
    /// Time in the kernel, in nanoseconds; exact to a tick.
    pub(super) system_ns: u64,
    /// Times a thread gave up its CPU to wait.
    pub(super) switches_voluntary: u64,
    /// Times a thread was made to give up its CPU.
    pub(super) switches_involuntary: u64,
}

/// Threads and memory of some processes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// All threads, those of the kernel's io_uring workers among them.
    pub(super) threads: u64,
    /// Threads named `iou-wrk`.
    pub(super) io_workers: u64,
    /// Resident memory, in bytes; pages that processes share count once for each.
    pub(super) resident_bytes: u64,
}

/// User-space memory of some processes, from `smaps_rollup`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UserMemory {
    /// Anonymous pages: heap, stacks, private mappings.
    pub(super) anonymous_bytes: u64,
    /// Pages that no other process shares.
    pub(super) private_bytes: u64,
}

/// What all CPUs together have done since the start of the machine, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SystemTime {
    /// Neither idle, nor waiting for a disk, nor taken away by the hypervisor.
    pub(super) busy_ns: u64,
    /// Taken away by the hypervisor.
    pub(super) steal_ns: u64,
}

impl Usage {
    /// Of these processes and all their children, also those that have ended and were waited for.
    pub(super) fn of(roots: &[u32]) -> Self {
        let mut sum = Self::default();
        for process in tree(roots) {
            let one = Self::of_process(process);
            sum.cpu_ns += one.cpu_ns;
            sum.user_ns += one.user_ns;
            sum.system_ns += one.system_ns;
            sum.switches_voluntary += one.switches_voluntary;
            sum.switches_involuntary += one.switches_involuntary;
        }
        sum
    }

    fn of_process(process: u32) -> Self {
        let stat = read(&format!("/proc/{process}/stat"));
        let ticks = parse_stat(&stat).unwrap_or_default();
        let mut usage = Self {
            user_ns: ticks_to_ns(ticks.user + ticks.children_user),
            system_ns: ticks_to_ns(ticks.system + ticks.children_system),
            ..Self::default()
        };
        let mut threads_ns = 0;
        for thread in threads(process) {
            let folder = format!("/proc/{process}/task/{thread}");
            threads_ns += parse_schedstat(&read(&format!("{folder}/schedstat"))).unwrap_or(0);
            let status = read(&format!("{folder}/status"));
            usage.switches_voluntary += field(&status, "voluntary_ctxt_switches:");
            usage.switches_involuntary += field(&status, "nonvoluntary_ctxt_switches:");
        }
        // The ticks hold more than the threads only if threads have ended, or schedstat is absent.
        usage.cpu_ns = threads_ns.max(ticks_to_ns(ticks.user + ticks.system))
            + ticks_to_ns(ticks.children_user + ticks.children_system);
        usage
    }
}

impl Sub for Usage {
    type Output = Usage;

    /// What was used between two moments. A child that ended without being waited for is missing
    /// in the later one, so nothing here may go below zero.
    fn sub(self, earlier: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            user_ns: self.user_ns.saturating_sub(earlier.user_ns),
            system_ns: self.system_ns.saturating_sub(earlier.system_ns),
            switches_voluntary: self
                .switches_voluntary
                .saturating_sub(earlier.switches_voluntary),
            switches_involuntary: self
                .switches_involuntary
                .saturating_sub(earlier.switches_involuntary),
        }
    }
}

impl Footprint {
    /// Of these processes and all their children.
    pub(super) fn of(roots: &[u32]) -> Self {
        let mut sum = Self::default();
        for process in tree(roots) {
            let status = read(&format!("/proc/{process}/status"));
            sum.resident_bytes += field(&status, "VmRSS:") * 1024;
            for thread in threads(process) {
                let name = read(&format!("/proc/{process}/task/{thread}/comm"));
                sum.threads += 1;
                sum.io_workers += u64::from(name.starts_with(IO_WORKER_PREFIX));
            }
        }
        sum
    }

    /// The larger of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            threads: self.threads.max(other.threads),
            io_workers: self.io_workers.max(other.io_workers),
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
        }
    }
}

impl UserMemory {
    /// Of these processes and all their children. Zero where the kernel has no `smaps_rollup`.
    pub(super) fn of(roots: &[u32]) -> Self {
        let mut sum = Self::default();
        for process in tree(roots) {
            let rollup = read(&format!("/proc/{process}/smaps_rollup"));
            sum.anonymous_bytes += field(&rollup, "Anonymous:") * 1024;
            sum.private_bytes +=
                (field(&rollup, "Private_Clean:") + field(&rollup, "Private_Dirty:")) * 1024;
        }
        sum
    }
}

impl SystemTime {
    /// Until now.
    pub(super) fn now() -> Self {
        parse_system(&read("/proc/stat")).unwrap_or_default()
    }
}

impl Sub for SystemTime {
    type Output = SystemTime;

    fn sub(self, earlier: SystemTime) -> SystemTime {
        SystemTime {
            busy_ns: self.busy_ns.saturating_sub(earlier.busy_ns),
            steal_ns: self.steal_ns.saturating_sub(earlier.steal_ns),
        }
    }
}

/// What is gone reads as nothing: a process may end between listing and reading it.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// These processes and all below them.
fn tree(roots: &[u32]) -> Vec<u32> {
    let mut found = roots.to_vec();
    let mut next = 0;
    while next < found.len() && found.len() < MAX_PROCESSES {
        let process = found[next];
        next += 1;
        for thread in threads(process) {
            let children = read(&format!("/proc/{process}/task/{thread}/children"));
            found.extend(
                children
                    .split_ascii_whitespace()
                    .flat_map(str::parse::<u32>),
            );
        }
    }
    found
}

fn threads(process: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str().and_then(|name| name.parse().ok()))
        .collect()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    user: u64,
    system: u64,
    children_user: u64,
    children_system: u64,
}

/// Fields 14 to 17 of `/proc/PID/stat`; the name before them may hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<Ticks> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u64>().ok();
    Some(Ticks {
        user: number()?,
        system: number()?,
        children_user: number()?,
        children_system: number()?,
    })
}

/// Nanoseconds on a CPU: the first number.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The number after this name in `status` and `smaps_rollup`; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_ascii_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// The line `cpu` of `/proc/stat`: user nice system idle iowait irq softirq steal …
fn parse_system(text: &str) -> Option<SystemTime> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else {
        return None;
    };
    Some(SystemTime {
        busy_ns: ticks_to_ns(user + nice + system + irq + softirq),
        steal_ns: ticks_to_ns(steal),
    })
}

fn ticks_to_ns(ticks: u64) -> u64 {
    ticks * (NS_PER_SECOND / rustix::param::clock_ticks_per_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "42 (a ) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 7 8 9 10 20 0 1 0 5 6 7";
        let expected = Ticks {
            user: 7,
            system: 8,
            children_user: 9,
            children_system: 10,
        };
        assert_eq!(parse_stat(text), Some(expected));
        assert_eq!(parse_stat("42 (cut) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "Threads:\t3\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t6\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), 5);
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), 6);
        assert_eq!(field("Anonymous:        984 kB\n", "Anonymous:"), 984);
        assert_eq!(field(status, "VmRSS:"), 0);
    }

    #[test]
    fn busy_is_neither_idle_nor_stolen() {
        let text = "cpu  1 2 4 1000 2000 8 16 32 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        let time = parse_system(text).unwrap();
        assert_eq!(time.busy_ns, ticks_to_ns(1 + 2 + 4 + 8 + 16));
        assert_eq!(time.steal_ns, ticks_to_ns(32));
        assert_eq!(parse_system("cpu  1 2\n"), None);
    }

    #[test]
    fn schedstat_is_nanoseconds_on_a_cpu() {
        assert_eq!(parse_schedstat("45790571 119423 4\n"), Some(45_790_571));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn the_work_of_this_process_and_of_its_ended_children_is_seen() {
        let own = [std::process::id()];
        let before = Usage::of(&own);
        let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh")
            .args(["-c", burn])
            .status()
            .unwrap();
        assert!(status.success());
        let used = Usage::of(&own) - before;
        assert!(used.cpu_ns >= 10_000_000, "{used:?}");
        let footprint = Footprint::of(&own);
        assert!(footprint.threads >= 1 && footprint.resident_bytes > 0);
        assert!(UserMemory::of(&own).anonymous_bytes > 0);
    }

    #[test]
    fn a_running_child_belongs_to_the_tree_and_a_dead_process_has_used_nothing() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let seen = tree(&[std::process::id()]).contains(&child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen);
        assert_eq!(Usage::of(&[child.id()]), Usage::default());
    }
}
