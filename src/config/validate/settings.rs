//! The sections that stand by themselves: workers, buffers, timeouts, tcp, log, a listener's accept.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::limits::{
    ACCEPT_DEFER, BUFFER_SIZE_BYTES, BUFFER_SIZE_STEP_BYTES, BUFFERS_PER_CORE, BUSY_POLL, CPUS_MAX,
    DEFAULT_ACCEPT, DEFAULT_BUFFERS, DEFAULT_KEEPALIVE, DEFAULT_LOG, DEFAULT_RELAY, DEFAULT_TCP,
    DEFAULT_TIMEOUTS, FAST_OPEN, KEEPALIVE_COUNT, KEEPALIVE_TIME, SLAB_MAX_BYTES, TIMEOUT,
    USER_TIMEOUT,
};
use crate::config::model::{
    Accept, AccessLog, Buffers, Handoff, Keepalive, Log, LogFormat, LogLevel, Mover, Relay, Steer,
    TcpOptions, Timeouts, Workers,
};
use crate::config::raw::Value;
use crate::config::read::{Cursor, OFF, Report};
use crate::units::{ByteSize, format_duration, shorten};

pub(super) const BUFFERS_KEYS: [&str; 2] = ["size", "per_core"];
pub(super) const TIMEOUTS_KEYS: [&str; 5] = ["connect", "idle", "half_close", "max_age", "drain"];
pub(super) const RELAY_KEYS: [&str; 3] = ["mover", "zero_copy_send", "busy_poll"];
pub(super) const TCP_KEYS: [&str; 3] = ["nodelay", "keepalive", "user_timeout"];
pub(super) const KEEPALIVE_KEYS: [&str; 3] = ["idle", "interval", "count"];
pub(super) const ACCEPT_KEYS: [&str; 4] = ["steer", "defer", "fast_open", "handoff"];
pub(super) const LOG_KEYS: [&str; 4] = ["level", "format", "access", "access_file"];

/// The word for one worker on each CPU.
pub(in crate::config) const WORKERS_AUTO: &str = "auto";

/// The word for the access log on standard output.
pub(in crate::config) const ACCESS_TO_STDOUT: &str = "stdout";

/// `auto`, a number, or a list of CPU numbers.
pub(super) fn workers(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Workers> {
    let cpus_max = u64::try_from(CPUS_MAX).expect("a small constant");
    if matches!(at.node.value, Value::List(_)) {
        return worker_cpus(report, at, cpus_max);
    }
    let text = report.text(at)?;
    if text == WORKERS_AUTO {
        return Some(Workers::Auto);
    }
    match text.parse::<usize>() {
        Ok(count) if (1..=CPUS_MAX).contains(&count) => Some(Workers::Count(count)),
        parsed => {
            let what = if parsed.is_ok() {
                "is out of range"
            } else {
                "is not a number of workers"
            };
            let remedy =
                format!("write auto, a number from 1 to {CPUS_MAX}, or a list of CPUs like [0, 2]");
            report.add(at.place(), format!("`{}` {what}", shorten(&text)), remedy);
            None
        }
    }
}

fn worker_cpus(report: &mut Report<'_>, at: &Cursor<'_>, cpus_max: u64) -> Option<Workers> {
    let items = report.list(at)?;
    if items.is_empty() {
        report.add(
            at.place(),
            "the list of CPUs is empty",
            "name at least one CPU, or write auto",
        );
        return None;
    }
    let mut cpus = Vec::with_capacity(items.len());
    for item in &items {
        let Some(cpu) = report.number(item, &(0..=cpus_max - 1)) else {
            continue;
        };
        if cpus.contains(&cpu) {
            report.add(
                item.place(),
                format!("CPU {cpu} stands here a second time"),
                "name each CPU once",
            );
        } else {
            cpus.push(cpu);
        }
    }
    Some(Workers::Cpus(cpus))
}

pub(super) fn buffers(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Buffers> {
    let section = report.section(at, &BUFFERS_KEYS)?;
    let size = section
        .get("size")
        .map(|at| report.byte_size(at, &BUFFER_SIZE_BYTES, BUFFER_SIZE_STEP_BYTES));
    let per_core = section
        .get("per_core")
        .map(|at| report.number(at, &BUFFERS_PER_CORE));
    let size = size.unwrap_or(Some(u64::from(DEFAULT_BUFFERS.size_bytes)))?;
    let per_core = per_core.unwrap_or(Some(DEFAULT_BUFFERS.per_core))?;
    let slab = ByteSize(size * u64::from(per_core));
    if slab.0 > SLAB_MAX_BYTES {
        let problem = format!("size × per_core is {slab} for each core");
        report.add(
            at.place(),
            problem,
            format!("keep it within {}", ByteSize(SLAB_MAX_BYTES)),
        );
        return None;
    }
    Some(Buffers {
        size_bytes: u32::try_from(size).expect("within BUFFER_SIZE_BYTES"),
        per_core,
    })
}

pub(super) fn timeouts(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Timeouts> {
    let section = report.section(at, &TIMEOUTS_KEYS)?;
    let mut get = |key, default| {
        section
            .get(key)
            .and_then(|at| report.duration(at, &TIMEOUT))
            .unwrap_or(default)
    };
    let connect = get("connect", DEFAULT_TIMEOUTS.connect);
    let idle = get("idle", DEFAULT_TIMEOUTS.idle);
    let half_close = get("half_close", DEFAULT_TIMEOUTS.half_close);
    let drain = get("drain", DEFAULT_TIMEOUTS.drain);
    let max_age = section
        .get("max_age")
        .and_then(|at| report.duration_or_off(at, &TIMEOUT));
    Some(Timeouts {
        connect,
        idle,
        half_close,
        max_age: max_age.unwrap_or(DEFAULT_TIMEOUTS.max_age),
        drain,
    })
}

pub(super) fn relay(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Relay> {
    let section = report.section(at, &RELAY_KEYS)?;
    let mover = section
        .get("mover")
        .and_then(|at| report.choice(at, &MOVERS));
    let zero_copy_send = section
        .get("zero_copy_send")
        .and_then(|at| report.boolean(at));
    let busy_poll = section
        .get("busy_poll")
        .and_then(|at| report.duration_or_off(at, &BUSY_POLL));
    Some(Relay {
        mover: mover.unwrap_or(DEFAULT_RELAY.mover),
        zero_copy_send: zero_copy_send.unwrap_or(DEFAULT_RELAY.zero_copy_send),
        busy_poll: busy_poll.unwrap_or(DEFAULT_RELAY.busy_poll),
    })
}

/// The words of `relay.mover`.
pub(in crate::config) const MOVERS: [(&str, Mover); 3] = [
    ("auto", Mover::Auto),
    ("copy", Mover::Copy),
    ("splice", Mover::Splice),
];

pub(super) fn tcp(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<TcpOptions> {
    let section = report.section(at, &TCP_KEYS)?;
    let nodelay = section.get("nodelay").and_then(|at| report.boolean(at));
    let keepalive = section
        .get("keepalive")
        .and_then(|at| keepalive(report, at));
    let user_timeout = section
        .get("user_timeout")
        .and_then(|at| report.duration_or_off(at, &USER_TIMEOUT));
    Some(TcpOptions {
        nodelay: nodelay.unwrap_or(DEFAULT_TCP.nodelay),
        keepalive: keepalive.unwrap_or(DEFAULT_TCP.keepalive),
        user_timeout: user_timeout.unwrap_or(DEFAULT_TCP.user_timeout),
    })
}

/// `off`, or a mapping.
fn keepalive(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<Keepalive>> {
    if matches!(at.node.value, Value::Scalar(_)) {
        let text = report.text(at)?;
        if text == OFF {
            return Some(None);
        }
        let problem = format!("`{}` is not a choice", shorten(&text));
        report.add(
            at.place(),
            problem,
            "write off, or { idle: 60s, interval: 10s, count: 3 }",
        );
        return None;
    }
    let section = report.section(at, &KEEPALIVE_KEYS)?;
    let mut get = |key| {
        let duration = report.duration(section.get(key)?, &KEEPALIVE_TIME);
        whole_seconds(report, section.get(key)?, duration)
    };
    let idle = get("idle");
    let interval = get("interval");
    let count = section
        .get("count")
        .and_then(|at| report.number(at, &KEEPALIVE_COUNT));
    Some(Some(Keepalive {
        idle: idle.unwrap_or(DEFAULT_KEEPALIVE.idle),
        interval: interval.unwrap_or(DEFAULT_KEEPALIVE.interval),
        count: count.unwrap_or(DEFAULT_KEEPALIVE.count),
    }))
}

/// The kernel counts in whole seconds.
fn whole_seconds(
    report: &mut Report<'_>,
    at: &Cursor<'_>,
    duration: Option<Duration>,
) -> Option<Duration> {
    let duration = duration?;
    if duration.subsec_nanos() != 0 {
        report.add(
            at.place(),
            format!(
                "`{}` is not a whole number of seconds",
                format_duration(duration)
            ),
            "the kernel counts this in seconds: write 1s or more",
        );
        return None;
    }
    Some(duration)
}

/// The words of `accept.steer`.
pub(in crate::config) const STEERS: [(&str, Steer); 2] =
    [("hash", Steer::Hash), ("cpu", Steer::Cpu)];

/// The words of `accept.handoff`.
pub(in crate::config) const HANDOFFS: [(&str, Handoff); 2] =
    [("auto", Handoff::Auto), ("off", Handoff::Off)];

pub(super) fn accept(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Accept> {
    let section = report.section(at, &ACCEPT_KEYS)?;
    let steer = section
        .get("steer")
        .and_then(|at| report.choice(at, &STEERS));
    let defer = section.get("defer").and_then(|at| {
        let duration = report.duration_or_off(at, &ACCEPT_DEFER)?;
        whole_seconds(report, at, duration)
    });
    let fast_open = section
        .get("fast_open")
        .and_then(|at| report.number_or_off(at, &FAST_OPEN))
        .flatten();
    let handoff = section
        .get("handoff")
        .and_then(|at| report.choice(at, &HANDOFFS));
    Some(Accept {
        steer: steer.unwrap_or(DEFAULT_ACCEPT.steer),
        defer,
        fast_open,
        handoff: handoff.unwrap_or(DEFAULT_ACCEPT.handoff),
    })
}

pub(super) fn log(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Log> {
    let section = report.section(at, &LOG_KEYS)?;
    let level = section
        .get("level")
        .and_then(|at| report.choice(at, &LOG_LEVELS));
    let format = section
        .get("format")
        .and_then(|at| report.choice(at, &LOG_FORMATS));
    let access = section
        .get("access")
        .and_then(|at| report.choice(at, &ACCESS_LOGS));
    let access_file = section
        .get("access_file")
        .and_then(|at| access_file(report, at));
    Some(Log {
        level: level.unwrap_or(DEFAULT_LOG.level),
        format: format.unwrap_or(DEFAULT_LOG.format),
        access: access.unwrap_or(DEFAULT_LOG.access),
        access_file: access_file.unwrap_or(DEFAULT_LOG.access_file),
    })
}

/// The words of `log.level`.
pub(in crate::config) const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

/// The words of `log.format`.
pub(in crate::config) const LOG_FORMATS: [(&str, LogFormat); 2] =
    [("json", LogFormat::Json), ("text", LogFormat::Text)];

/// The words of `log.access`.
pub(in crate::config) const ACCESS_LOGS: [(&str, AccessLog); 3] = [
    ("all", AccessLog::All),
    ("errors", AccessLog::Errors),
    ("off", AccessLog::Off),
];

/// `stdout`, or a path.
fn access_file(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<PathBuf>> {
    let text = report.text(at)?;
    if text == ACCESS_TO_STDOUT {
        return Some(None);
    }
    if text.ends_with('/') || text.chars().any(char::is_control) {
        let problem = format!("`{}` is not the path of a file", shorten(&text));
        report.add(
            at.place(),
            problem,
            "write stdout or a path, like /var/log/corelay/access.log",
        );
        return None;
    }
    Some(Some(PathBuf::from(text)))
}
