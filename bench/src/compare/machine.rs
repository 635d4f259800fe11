//! The machine that is measured on, and its congestion control for the time of the comparison.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;

/// The default of new sockets, for the whole machine.
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
/// BBR collapses on virtual machines that are short of CPU: it would measure itself.
const WANTED: &str = "cubic";
const SECONDS_PER_DAY: u64 = 86_400;

/// What a reader needs to know of the machine; nothing that names it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpu_model: String,
    pub(super) cpus: usize,
    pub(super) hypervisor: String,
    pub(super) memory_gib: u64,
}

impl Machine {
    pub(super) fn look() -> Self {
        let info = read("/proc/cpuinfo");
        let kib = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        Self {
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            cpu_model: cpu_model(&info),
            cpus: info
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            hypervisor: hypervisor(&info),
            memory_gib: kib.unwrap_or(0) / (1024 * 1024),
        }
    }

    /// A name for a folder, like `2cpu-xeon-kvm`: what it is, not which one.
    pub(super) fn short_name(&self) -> String {
        format!(
            "{}cpu-{}-{}",
            self.cpus,
            family(&self.cpu_model),
            self.hypervisor
        )
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model(info: &str) -> String {
    let line = info.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':'));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, model)| model.split_whitespace().collect::<Vec<_>>().join(" "),
    )
}

/// The word by which people call such a CPU.
fn family(model: &str) -> &'static str {
    let model = model.to_lowercase();
    let known = [
        "xeon", "epyc", "ryzen", "core", "graviton", "neoverse", "ampere",
    ];
    let found = known.into_iter().find(|word| model.contains(word));
    found.unwrap_or(std::env::consts::ARCH)
}

fn hypervisor(info: &str) -> String {
    let clocks = read("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    let known = [("kvm-clock", "kvm"), ("hyperv", "hyperv"), ("xen", "xen")];
    let found = known.into_iter().find(|(clock, _)| clocks.contains(clock));
    match found {
        Some((_, name)) => name.to_owned(),
        None if info.contains(" hypervisor") => "vm".to_owned(),
        None => "metal".to_owned(),
    }
}

/// CPUs that this thread may run on.
pub(super) fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return vec![0];
    };
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// Today's date in UTC, like `2026-11-21`.
pub(super) fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    date_of_day(now.map_or(0, |since| since.as_secs()) / SECONDS_PER_DAY)
}

/// The proleptic Gregorian date of a day since 1970-01-01; years begin in March, so that the leap
/// day comes last (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date_of_day(day: u64) -> String {
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day_of_month:02}")
}

/// The congestion control of the machine, changed for as long as this lives.
#[derive(Debug)]
pub(super) struct CongestionControl {
    /// In force now.
    pub(super) name: String,
    before: Option<String>,
}

impl CongestionControl {
    /// Switches to cubic if that is wanted and permitted; else the present one stays, and is named.
    pub(super) fn fix(keep: bool) -> Self {
        let before = read(CONGESTION_CONTROL).trim().to_owned();
        let changed = !keep && before != WANTED && fs::write(CONGESTION_CONTROL, WANTED).is_ok();
        Self {
            name: read(CONGESTION_CONTROL).trim().to_owned(),
            before: changed.then_some(before),
        }
    }
}

impl Drop for CongestionControl {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(CONGESTION_CONTROL, before)
        {
            eprintln!("the congestion control could not be set back to {before}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (day, date) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_778, "2026-11-21"),
        ] {
            assert_eq!(date_of_day(day), date);
        }
    }

    #[test]
    fn a_machine_is_called_by_what_it_is() {
        let machine = Machine {
            kernel: "Linux 6.18".into(),
            cpu_model: "Intel(R) Xeon(R) Processor @ 2.50GHz".into(),
            cpus: 2,
            hypervisor: "kvm".into(),
            memory_gib: 23,
        };
        assert_eq!(machine.short_name(), "2cpu-xeon-kvm");
        assert!(!allowed_cpus().is_empty());
    }
}
