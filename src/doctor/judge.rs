//! The judgement: facts and needs in, findings out. No I/O.

use super::{Finding, HostFacts, Needs, Verdict};
use crate::sys::limits::{KernelVersion, Limit};

/// Descriptors of a core beside its listeners: two rings, two eventfds, a timer, room for monoio's own.
const FDS_PER_CORE: u64 = 8;
/// Of the process: standard streams, admin and its connections, logs, signals, locks.
const FDS_OF_PROCESS: u64 = 40;
/// Of a session: the client's and the server's.
const FDS_PER_SESSION: u64 = 2;
/// Fewer sessions than this are worth a warning: the most modest of loads reaches it.
const SESSIONS_MIN: u64 = 4_000;
/// Below this an accept queue overflows at a burst that one core could well serve.
const SOMAXCONN_MIN: i64 = 1_024;
/// Local ports: each server takes at most this many connections at once. Linux's default gives 28,232.
const LOCAL_PORTS_MIN: usize = 20_000;
/// Pages that a user's pipes may have before new ones shrink; the kernel's default.
const PIPE_PAGES_MIN: i64 = 16_384;

/// Judges every fact, in the order in which a person would mend things.
pub fn judge(facts: &HostFacts, needs: &Needs) -> Vec<Finding> {
    let mut findings = vec![kernel(facts), io_uring(facts)];
    findings.extend(ring_features(facts, needs));
    findings.push(rings(facts, needs));
    findings.push(locked_memory(facts, needs));
    findings.push(open_files(facts, needs));
    findings.push(cpus(facts, needs));
    findings.push(low_ports(facts, needs));
    findings.push(somaxconn(facts, needs));
    findings.push(local_ports(facts, needs));
    findings.push(pipe_pages(facts));
    findings.extend(fast_open(facts, needs));
    findings
}

fn ok(check: &'static str, found: String) -> Finding {
    Finding {
        check,
        verdict: Verdict::Ok,
        found,
        remedy: None,
    }
}

fn bad(check: &'static str, verdict: Verdict, found: String, remedy: String) -> Finding {
    Finding {
        check,
        verdict,
        found,
        remedy: Some(remedy),
    }
}

fn kernel(facts: &HostFacts) -> Finding {
    let release = &facts.kernel_release;
    let minimum = KernelVersion::MINIMUM;
    match release.parse::<KernelVersion>() {
        Ok(version) if version >= minimum => ok("kernel", format!("Linux {release}")),
        Ok(_) => bad(
            "kernel",
            Verdict::Fail,
            format!("Linux {release} is older than {minimum}"),
            format!("boot Linux {minimum} or newer"),
        ),
        // What counts is what the rings can do, and that is asked below.
        Err(error) => bad(
            "kernel",
            Verdict::Warn,
            format!("unknown version: {error}"),
            "mount /proc; the checks of io_uring below decide".to_owned(),
        ),
    }
}

fn io_uring(facts: &HostFacts) -> Finding {
    match &facts.io_uring {
        Ok(_) => ok("io_uring", "allowed".to_owned()),
        Err(blocked) => bad(
            "io_uring",
            Verdict::Fail,
            format!("{}; {}", blocked.cause(), blocked.consequence()),
            blocked.remedy(),
        ),
    }
}

fn ring_features(facts: &HostFacts, needs: &Needs) -> Vec<Finding> {
    let features = facts.io_uring.as_deref().unwrap_or_default();
    let judge = |feature: &crate::sys::probe::Feature| {
        let (since, purpose) = (feature.since, feature.purpose);
        if feature.present {
            return ok(feature.name, purpose.to_owned());
        }
        let wanted = feature.name == "send_zc" && needs.pinned_bytes.is_some();
        let (verdict, remedy) = if wanted {
            (
                Verdict::Fail,
                format!("boot Linux {since} or newer, or set relay.zero_copy_send to false"),
            )
        } else if feature.needed {
            (
                Verdict::Fail,
                format!("boot Linux {since} or newer; Corelay needs it"),
            )
        } else {
            (
                Verdict::Warn,
                format!("Linux {since} has it; Corelay does without"),
            )
        };
        bad(feature.name, verdict, format!("missing: {purpose}"), remedy)
    };
    features.iter().map(judge).collect()
}

fn rings(facts: &HostFacts, needs: &Needs) -> Finding {
    let cores = needs.cores_on(&facts.cpus);
    match &facts.rings_fit {
        _ if facts.io_uring.is_err() => bad(
            "rings",
            Verdict::Warn,
            "not tried, since io_uring cannot be used".to_owned(),
            "see io_uring above".to_owned(),
        ),
        Ok(()) => ok("rings", format!("the rings of {cores} core(s) fit")),
        Err(blocked) => bad(
            "rings",
            Verdict::Fail,
            format!(
                "the rings of {cores} core(s) do not fit: {}",
                blocked.cause()
            ),
            blocked.remedy(),
        ),
    }
}

fn locked_memory(facts: &HostFacts, needs: &Needs) -> Finding {
    let limit = facts.locked_memory.soft;
    if facts.may_lock_all {
        return ok(
            "memlock",
            format!("{}; CAP_IPC_LOCK lifts it", bytes(limit)),
        );
    }
    if limit == Limit::UNLIMITED {
        return ok("memlock", "unlimited".to_owned());
    }
    let pinned = needs.pinned_bytes.unwrap_or(0) * needs.cores_on(&facts.cpus) as u64;
    if pinned > limit {
        return bad(
            "memlock",
            Verdict::Fail,
            format!(
                "{}, and relay.zero_copy_send pins {}",
                bytes(limit),
                bytes(pinned)
            ),
            "set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`; or lower buffers.per_core, or set relay.zero_copy_send to false".to_owned(),
        );
    }
    bad(
        "memlock",
        Verdict::Warn,
        format!(
            "{}, shared with every other process of this user",
            bytes(limit)
        ),
        "set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`".to_owned(),
    )
}

fn open_files(facts: &HostFacts, needs: &Needs) -> Finding {
    // The process raises its soft limit to the hard one when it starts.
    let limit = facts.open_files.hard;
    let cores = needs.cores_on(&facts.cpus) as u64;
    let fixed = FDS_OF_PROCESS
        + cores * (FDS_PER_CORE + needs.tcp_listeners)
        + needs.unix_listeners
        + facts.open_files_used;
    let sessions = limit.saturating_sub(fixed) / FDS_PER_SESSION;
    let found = format!(
        "{} descriptors, enough for about {sessions} sessions",
        count(limit)
    );
    let wanted = needs.sessions.max(SESSIONS_MIN);
    let remedy = format!(
        "set LimitNOFILE in the systemd unit, or `ulimit -n`; {} sessions need {}",
        count(wanted),
        count(fixed + wanted * FDS_PER_SESSION)
    );
    if sessions == 0 {
        return bad("nofile", Verdict::Fail, found, remedy);
    }
    if sessions < needs.sessions {
        let allowed = format!(
            "{found}, and limits.connections allow {}",
            count(needs.sessions)
        );
        return bad("nofile", Verdict::Warn, allowed, remedy);
    }
    if sessions < SESSIONS_MIN {
        return bad("nofile", Verdict::Warn, found, remedy);
    }
    ok("nofile", found)
}

fn cpus(facts: &HostFacts, needs: &Needs) -> Finding {
    let available = facts.cpus.len();
    let missing: Vec<String> = needs
        .cpus
        .iter()
        .filter(|cpu| !facts.cpus.contains(cpu))
        .map(usize::to_string)
        .collect();
    let found = format!("{available} in the affinity mask: {}", ranges(&facts.cpus));
    if available == 0 {
        return bad(
            "cpus",
            Verdict::Fail,
            "the affinity mask cannot be read".to_owned(),
            "allow sched_getaffinity".to_owned(),
        );
    }
    if !missing.is_empty() {
        return bad(
            "cpus",
            Verdict::Fail,
            format!("{found}; workers names {} too", missing.join(", ")),
            "widen the cpuset or AllowedCPUs= of the unit, or take these CPUs out of workers"
                .to_owned(),
        );
    }
    if needs.cores_on(&facts.cpus) > available {
        return bad(
            "cpus",
            Verdict::Fail,
            format!("{found}; workers asks for {}", needs.cores_on(&facts.cpus)),
            format!("set workers to auto, or to {available} at most"),
        );
    }
    ok("cpus", found)
}

fn low_ports(facts: &HostFacts, needs: &Needs) -> Finding {
    let start = facts.unprivileged_port_start;
    match needs.lowest_port {
        Some(port) if i64::from(port) < start && !facts.may_bind_low_ports => bad(
            "low_ports",
            Verdict::Fail,
            format!("port {port} is below {start}, and this process has no right to it"),
            format!(
                "give CAP_NET_BIND_SERVICE (the systemd unit does), or `sysctl net.ipv4.ip_unprivileged_port_start={port}`"
            ),
        ),
        _ if facts.may_bind_low_ports => ok("low_ports", "any port may be bound".to_owned()),
        _ => ok("low_ports", format!("ports from {start} on may be bound")),
    }
}

fn somaxconn(facts: &HostFacts, needs: &Needs) -> Finding {
    let Some(limit) = facts.somaxconn else {
        return unreadable("somaxconn");
    };
    let wanted = SOMAXCONN_MIN.max(i64::from(needs.backlog_max));
    if limit >= wanted {
        return ok("somaxconn", format!("{limit} per listener and core"));
    }
    bad(
        "somaxconn",
        Verdict::Warn,
        format!("{limit}: the kernel cuts every longer backlog to it"),
        format!("run `sysctl net.core.somaxconn={wanted}`"),
    )
}

fn local_ports(facts: &HostFacts, needs: &Needs) -> Finding {
    let Some(range) = &facts.local_ports else {
        return unreadable("local_ports");
    };
    let ports = range.len();
    let found = format!(
        "{}-{}: at most {ports} connections to each TCP server at once",
        range.start(),
        range.end()
    );
    if ports >= LOCAL_PORTS_MIN || needs.tcp_servers == 0 {
        return ok("local_ports", found);
    }
    bad(
        "local_ports",
        Verdict::Warn,
        found,
        "run `sysctl net.ipv4.ip_local_port_range=\"10240 65535\"`, or add servers".to_owned(),
    )
}

fn pipe_pages(facts: &HostFacts) -> Finding {
    match facts.pipe_pages_soft {
        None => unreadable("pipe_pages"),
        // 0 is no limit.
        Some(pages) if pages == 0 || pages >= PIPE_PAGES_MIN => {
            ok("pipe_pages", format!("fs.pipe-user-pages-soft is {pages}"))
        }
        Some(pages) => bad(
            "pipe_pages",
            Verdict::Warn,
            format!("fs.pipe-user-pages-soft is {pages}: bulk streams get small pipes early"),
            format!("run `sysctl fs.pipe-user-pages-soft={PIPE_PAGES_MIN}`"),
        ),
    }
}

/// Nothing is said of what nobody asks for.
fn fast_open(facts: &HostFacts, needs: &Needs) -> Option<Finding> {
    const CHECK: &str = "fast_open";
    if needs.fast_open == 0 {
        return None;
    }
    let Some(allowed) = facts.fast_open else {
        return Some(unreadable(CHECK));
    };
    let found = format!("net.ipv4.tcp_fastopen is {allowed}");
    if allowed & needs.fast_open == needs.fast_open {
        return Some(ok(CHECK, found));
    }
    Some(bad(
        CHECK,
        Verdict::Warn,
        format!("{found}: connections are made without Fast Open"),
        format!(
            "run `sysctl net.ipv4.tcp_fastopen={}`",
            allowed | needs.fast_open
        ),
    ))
}

fn unreadable(check: &'static str) -> Finding {
    bad(
        check,
        Verdict::Warn,
        "not shown by this kernel".to_owned(),
        "mount /proc with its sysctls (ProcSubset=all)".to_owned(),
    )
}

fn count(limit: u64) -> String {
    if limit == Limit::UNLIMITED {
        "unlimited".to_owned()
    } else {
        limit.to_string()
    }
}

fn bytes(limit: u64) -> String {
    if limit == Limit::UNLIMITED {
        "unlimited".to_owned()
    } else {
        format!("{} KiB", limit / 1024)
    }
}

/// `0-3, 8`; the input is ascending.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}
