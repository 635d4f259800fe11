//! The exposition against a strict reading of the format, and its sums against the cores' numbers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::page::BUCKETS;
use super::render;
use crate::metrics::*;
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::units::{CoreId, ListenerId, ServerId, UpstreamId};

const AWKWARD: &str = "we\"ird\\name\nwith}{=,é";

fn names() -> Names {
    let server = |address: &str, upstream| {
        Some(ServerName {
            address: address.to_owned(),
            upstream: UpstreamId(upstream),
        })
    };
    Names {
        listeners: vec![
            ListenerName {
                name: "edge".into(),
                upstreams: vec![UpstreamId(0)],
            },
            ListenerName {
                name: AWKWARD.into(),
                upstreams: vec![UpstreamId(0), UpstreamId(1)],
            },
        ],
        upstreams: vec!["app".into(), "db".into()],
        servers: vec![
            server("127.0.0.1:9090", 0),
            server("127.0.0.1:9090", 0),
            server("127.0.0.1:9090", 1),
            // Its server is gone.
            None,
        ],
    }
}

fn cores() -> Vec<CoreMetrics> {
    (0..3)
        .map(|core| {
            let mut metrics = CoreMetrics::new(CoreId(core), 2, 2, 4);
            let n = u64::from(core) + 1;
            for listener in &mut metrics.listeners {
                listener.accepted_total = 10 * n;
                listener.active = n;
                listener.received_bytes_total = u64::MAX / 4;
                listener.first_byte.record(Duration::from_micros(50 * n));
                listener.duration.record(Duration::from_secs(7200));
            }
            metrics.upstreams[0]
                .connect
                .record(Duration::from_millis(n));
            metrics.servers[2]
                .connect_failed_total
                .insert(Cause::Refused, n);
            for (server, cause) in [
                (Some(ServerId(1)), Cause::Finished),
                (None, Cause::Refused),
                // A core that has not heard yet that it is gone.
                (Some(ServerId(3)), Cause::Reset),
            ] {
                metrics.closed.insert(
                    ClosedKey {
                        listener: ListenerId(1),
                        upstream: Some(UpstreamId(1)),
                        server,
                        reason: CloseReason::new(Side::Upstream, Stage::Connect, cause),
                    },
                    n,
                );
            }
            metrics.ring.cq_overflow_total = n;
            metrics
        })
        .collect()
}

fn page() -> (String, Parsed) {
    let (names, cores) = (names(), cores());
    let text = render(&Scrape {
        names: &names,
        cores: &cores,
        stale: &[false, true],
        process: ProcessMetrics {
            uptime: Duration::from_micros(1_500_000),
            open_fds: 12,
            ..ProcessMetrics::default()
        },
        version: "0.1.0",
        ring_features: &[("DEFER_TASKRUN", true), ("SEND_ZC", false)],
        standings: &vec![ServerStanding::default(); names.servers.len()],
        lookups: &[
            None,
            Some(Lookups {
                answered_total: 3,
                failed_total: 1,
            }),
        ],
        now_us: 0,
    });
    let parsed = parse(&text);
    (text, parsed)
}

/// Label pairs in order, and the value.
type Series = (BTreeMap<String, String>, f64);

#[derive(Default)]
struct Parsed {
    kinds: HashMap<String, String>,
    series: HashMap<String, Vec<Series>>,
}

impl Parsed {
    fn sum(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let all = self
            .series
            .get(name)
            .unwrap_or_else(|| panic!("no {name} on the page"));
        all.iter()
            .filter(|(labels, _)| {
                wanted
                    .iter()
                    .all(|(k, v)| labels.get(*k).is_some_and(|l| l == v))
            })
            .map(|(_, value)| value)
            .sum()
    }
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Parses `{a="b",...}` after its brace and returns the rest behind the closing one.
fn parse_labels(mut rest: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (key, after) = rest.split_once("=\"").expect("a label has a quoted value");
        assert!(is_name(key), "label name {key:?}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("an open quote") {
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("bad escape \\{c}"),
                },
                (at, '"') => break at + 1,
                (_, c) => value.push(c),
            }
        };
        assert!(
            labels.insert(key.to_owned(), value).is_none(),
            "twice {key}"
        );
        rest = &after[end..];
        match rest.as_bytes()[0] {
            b',' => rest = &rest[1..],
            b'}' => return (labels, &rest[1..]),
            other => panic!("{other} after a label"),
        }
    }
}

/// The format, read strictly: HELP, then TYPE, then all series of the family, each once; every
/// series belongs to the family above it.
fn parse(text: &str) -> Parsed {
    assert!(text.ends_with('\n'));
    let mut parsed = Parsed::default();
    let mut family = String::new();
    let mut help_for = String::new();
    let mut seen = HashSet::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a help text");
            assert!(!text.trim().is_empty() && !text.contains('\\'));
            help_for = name.to_owned();
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(name.starts_with("corelay_") && is_name(name), "{name}");
            assert_eq!(name, help_for, "HELP right before TYPE");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} {kind}");
            let known = parsed.kinds.insert(name.to_owned(), kind.to_owned());
            assert!(known.is_none(), "{name} twice");
            family = name.to_owned();
            continue;
        }
        let end = line.find(['{', ' ']).expect("a value");
        let name = &line[..end];
        let (labels, rest) = if line[end..].starts_with('{') {
            parse_labels(&line[end + 1..])
        } else {
            (BTreeMap::new(), &line[end..])
        };
        let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
        let suffix = name.strip_prefix(family.as_str()).expect("its own family");
        let allowed: &[&str] = match parsed.kinds[&family].as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(allowed.contains(&suffix), "{name} in {family}");
        assert!(
            seen.insert((name.to_owned(), labels.clone())),
            "twice: {line}"
        );
        parsed
            .series
            .entry(name.to_owned())
            .or_default()
            .push((labels, value));
    }
    parsed
}

#[test]
fn the_page_parses_and_labels_survive_escaping() {
    let (_, parsed) = page();
    let accepted = "corelay_connections_accepted_total";
    assert_eq!(parsed.sum(accepted, &[("listener", AWKWARD)]), 60.0);
    assert_eq!(parsed.sum(accepted, &[]), 120.0);
    assert_eq!(
        parsed.sum(accepted, &[("core", "2"), ("listener", "edge")]),
        30.0
    );
}

#[test]
fn sums_are_those_of_the_cores() {
    let (_, parsed) = page();
    let closed = "corelay_connections_closed_total";
    let nobody = [("server", ""), ("upstream", "db"), ("cause", "refused")];
    assert_eq!(parsed.sum(closed, &nobody), 6.0);
    let twin = [
        ("server", "127.0.0.1:9090#2"),
        ("upstream", "app"),
        ("cause", "finished"),
    ];
    assert_eq!(parsed.sum(closed, &twin), 6.0);
    assert_eq!(
        parsed.sum(closed, &[("side", "upstream"), ("stage", "connect")]),
        12.0
    );
    let failures = "corelay_upstream_connect_failures_total";
    assert_eq!(
        parsed.sum(failures, &[("upstream", "db"), ("cause", "refused")]),
        6.0
    );
    assert_eq!(parsed.sum("corelay_ring_cq_overflow_total", &[]), 6.0);
    assert_eq!(parsed.sum("corelay_core_stale", &[]), 1.0);
    assert_eq!(parsed.sum("corelay_core_stale", &[("core", "1")]), 1.0);
    assert_eq!(
        parsed.sum("corelay_ring_feature", &[("feature", "SEND_ZC")]),
        0.0
    );
    assert_eq!(
        parsed.sum("corelay_build_info", &[("version", "0.1.0")]),
        1.0
    );
    assert_eq!(parsed.sum("corelay_process_open_fds", &[]), 12.0);
    assert_eq!(parsed.sum("corelay_uptime_seconds", &[]), 1.5);
}

#[test]
fn a_server_that_is_gone_has_no_series_and_its_sessions_stay_in_the_sums() {
    let (_, parsed) = page();
    let servers = &parsed.series["corelay_upstream_connections_total"];
    assert_eq!(servers.len(), 3 * 3, "a core and a server each");
    let closed = "corelay_connections_closed_total";
    assert_eq!(parsed.sum(closed, &[("cause", "reset")]), 0.0);

    let mut core = cores().remove(0);
    core.server(ServerId(1)).connected_total = 7;
    let before: u64 = core.closed.values().sum();
    core.forget_servers(&[ServerId(1), ServerId(3)]);
    assert_eq!(core.server(ServerId(1)).connected_total, 0);
    let after = core.closed.values().chain(core.closed_before.values());
    assert_eq!(after.sum::<u64>(), before);
    let finished = CloseReason::new(Side::Upstream, Stage::Connect, Cause::Finished);
    assert_eq!(core.closed_before[&finished], 1);
    assert!(
        core.closed
            .keys()
            .all(|key| key.server != Some(ServerId(1)))
    );
}

#[test]
fn lookups_are_shown_where_there_are_names() {
    let (_, parsed) = page();
    let lookups = &parsed.series["corelay_dns_lookups_total"];
    assert_eq!(lookups.len(), 2);
    let sum = |result| {
        parsed.sum(
            "corelay_dns_lookups_total",
            &[("upstream", "db"), ("result", result)],
        )
    };
    assert_eq!((sum("answered"), sum("failed")), (3.0, 1.0));
}

#[test]
fn histograms_are_cumulative_and_their_sum_and_count_exact() {
    let (text, parsed) = page();
    let family = "corelay_first_byte_seconds";
    let bucket = format!("{family}_bucket");
    let at = |le: &str| parsed.sum(&bucket, &[("listener", "edge"), ("le", le)]);
    assert_eq!(
        at("0.00005"),
        1.0,
        "a value equal to the bound is within it"
    );
    assert_eq!(at("0.0001"), 2.0);
    assert_eq!(at("0.00025"), 3.0);
    assert_eq!(at("+Inf"), 3.0);
    assert!(text.contains("corelay_first_byte_seconds_sum{listener=\"edge\"} 0.000300\n"));
    for (name, kind) in &parsed.kinds {
        if kind != "histogram" {
            continue;
        }
        let mut last: HashMap<Vec<String>, (f64, f64)> = HashMap::new();
        for (labels, count) in &parsed.series[&format!("{name}_bucket")] {
            let mut others = labels.clone();
            let le: f64 = others.remove("le").unwrap().parse().unwrap();
            let key: Vec<String> = others.into_values().collect();
            if let Some((last_le, last_count)) = last.insert(key, (le, *count)) {
                assert!(le > last_le && *count >= last_count, "{name} {labels:?}");
            }
        }
        for (_, (le, _)) in last {
            assert_eq!(le, f64::INFINITY);
        }
    }
    // Two hours are beyond the last bound.
    let longest = [("listener", "edge"), ("le", "3600")];
    assert_eq!(
        parsed.sum("corelay_session_duration_seconds_bucket", &longest),
        0.0
    );
    let count = parsed.sum(
        "corelay_session_duration_seconds_count",
        &[("listener", "edge")],
    );
    assert_eq!(count, 3.0);
}

#[test]
fn bucket_texts_are_their_bounds() {
    for (bound_us, text) in BUCKETS {
        let seconds: f64 = text.parse().unwrap();
        assert_eq!((seconds * 1e6).round() as u64, bound_us);
    }
    assert!(BUCKETS.is_sorted());
}

#[test]
fn the_documentation_lists_exactly_these_families() {
    let (_, parsed) = page();
    let document = include_str!("../../../docs/metrics.md");
    let documented: HashSet<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `corelay_"))
        .map(|line| format!("corelay_{}", line.split('`').next().unwrap()))
        .collect();
    let rendered: HashSet<String> = parsed.kinds.keys().cloned().collect();
    assert_eq!(documented, rendered);
}

#[test]
fn promtool_agrees() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: promtool is not installed");
        return;
    };
    let text = page().0;
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}
