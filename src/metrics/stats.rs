//! `/stats`: the same numbers as the Prometheus page, as a person would want them: summed over
//! cores first, latencies as percentiles in milliseconds, close reasons by how often they happen.
//!
//! A JSON document for eyes and scripts at a terminal. Dashboards use [`super::exposition`].

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::exposition::merged;
use super::{CoreMetrics, LatencyHistogram, ListenerMetrics, Scrape, ServerMetrics};
use crate::outcome::{CloseReason, FastOpen, MoverKind};

const US_PER_MS: f64 = 1000.0;

/// The document, indented.
pub fn render(scrape: &Scrape<'_>) -> String {
    let mut text = format!("{:#}", document(scrape));
    text.push('\n');
    text
}

/// `/upstreams`: how the servers stand, indented.
pub fn render_upstreams(scrape: &Scrape<'_>) -> String {
    let group = |(index, name): (usize, &String)| {
        let servers = servers_of(scrape, index);
        let servers: Vec<Value> = servers
            .map(|(id, address)| standing(scrape, id, address))
            .collect();
        (name.clone(), Value::from(servers))
    };
    let groups: Map<String, Value> = scrape
        .names
        .upstreams
        .iter()
        .enumerate()
        .map(group)
        .collect();
    format!("{:#}\n", Value::from(groups))
}

/// The id and the address of each server of an upstream.
fn servers_of<'a>(
    scrape: &Scrape<'a>,
    upstream: usize,
) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
    let servers = scrape.names.servers.iter().enumerate();
    servers.filter_map(move |(id, server)| {
        let server = server.as_ref()?;
        (usize::from(server.upstream.0) == upstream).then_some((id, server.address.as_str()))
    })
}

/// Three decimals are what anybody reads.
fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

fn standing(scrape: &Scrape<'_>, id: usize, address: &str) -> Value {
    const US_PER_SECOND: f64 = 1_000_000.0;
    let unknown = super::ServerStanding::default();
    let standing = scrape.standings.get(id).unwrap_or(&unknown);
    let ago = |at_us: u64| scrape.now_us.saturating_sub(at_us) as f64 / US_PER_SECOND;
    let since = match standing.since_us {
        0 => scrape.process.uptime.as_secs_f64(),
        since_us => ago(since_us),
    };
    let last_check = standing.last_check.as_ref().map(|check| {
        json!({
            "outcome": check.outcome,
            "latency_ms": thousandths(check.latency.as_secs_f64() * 1_000.0),
            "seconds_ago": thousandths(ago(check.at_us)),
        })
    });
    json!({
        "server": address,
        "up": standing.is_up,
        "weight": standing.weight,
        "backup": standing.is_backup,
        "status": standing.status,
        "reason": standing.reason,
        "for_seconds": thousandths(since),
        "last_check": last_check,
        "active": sum(scrape, |core| core.servers.get(id).map_or(0, |server| server.active)),
        "downs": standing.downs_total,
    })
}

/// The document.
pub fn document(scrape: &Scrape<'_>) -> Value {
    let process = &scrape.process;
    let features: Map<String, Value> = scrape
        .ring_features
        .iter()
        .map(|(name, present)| ((*name).to_owned(), json!(present)))
        .collect();
    let cores: Vec<Value> = scrape
        .cores
        .iter()
        .enumerate()
        .map(|(index, core)| core_object(core, scrape.is_stale(index)))
        .collect();
    json!({
        "version": scrape.version,
        "uptime_seconds": process.uptime.as_secs_f64(),
        "process": {
            "open_fds": process.open_fds,
            "max_fds": process.max_fds,
            "resident_memory_bytes": process.resident_memory_bytes,
            "threads": process.threads,
            "cpu_seconds": process.cpu.as_secs_f64(),
        },
        "access_log": {
            "lines_written": process.access_log_lines_written_total,
            "lines_dropped": sum(scrape, |core| core.access_log_dropped_total),
            "stalled": process.access_log_stalled,
        },
        "listeners": listeners(scrape),
        "upstreams": upstreams(scrape),
        "close_reasons": close_reasons(scrape),
        "buffers": buffers_total(scrape),
        "ring": ring_total(scrape),
        "ring_features": features,
        "cores": cores,
    })
}

fn sum(scrape: &Scrape<'_>, pick: impl Fn(&CoreMetrics) -> u64) -> u64 {
    scrape.cores.iter().map(pick).sum()
}

fn listeners(scrape: &Scrape<'_>) -> Map<String, Value> {
    let object = |(index, listener): (usize, &super::ListenerName)| {
        let total =
            |pick: fn(&ListenerMetrics) -> u64| sum(scrape, |core| pick(&core.listeners[index]));
        let names = listener
            .upstreams
            .iter()
            .map(|id| &scrape.names.upstreams[usize::from(id.0)]);
        let names: Vec<_> = names.collect();
        let value = json!({
            "upstreams": names,
            "listening": scrape.listening[index],
            "accepted": total(|l| l.accepted_total),
            "handoffs": total(|l| l.handoffs_total),
            "active": total(|l| l.active),
            "received_bytes": total(|l| l.received_bytes_total),
            "sent_bytes": total(|l| l.sent_bytes_total),
            "accept_exhausted": total(|l| l.accept_exhausted_total),
            "accept_aborted": total(|l| l.accept_aborted_total),
            "accept_paused": total(|l| l.accept_paused_total),
            "sources_uncounted": total(|l| l.sources_uncounted_total),
            "bandwidth_pauses": {
                "upload": total(|l| l.bandwidth_pauses_total[0]),
                "download": total(|l| l.bandwidth_pauses_total[1]),
            },
            "first_byte": latency(&merged(scrape, |core| &core.listeners[index].first_byte)),
            "duration": latency(&merged(scrape, |core| &core.listeners[index].duration)),
        });
        (listener.name.clone(), value)
    };
    let listeners = scrape.names.listeners.iter().enumerate();
    listeners.map(object).collect()
}

fn upstreams(scrape: &Scrape<'_>) -> Map<String, Value> {
    let object = |(index, name): (usize, &String)| {
        let servers: Vec<Value> = servers_of(scrape, index)
            .map(|(server, address)| server_object(scrape, server, address))
            .collect();
        let connect = merged(scrape, |core| &core.upstreams[index].connect);
        let total = |pick: fn(&super::UpstreamMetrics) -> u64| {
            sum(scrape, |core| pick(&core.upstreams[index]))
        };
        let value = json!({
            "connect": latency(&connect),
            "first_byte": latency(&merged(scrape, |core| &core.upstreams[index].first_byte)),
            "retries": total(|u| u.retries_total),
            "retries_denied": total(|u| u.retries_denied_total),
            "fast_open": fast_open(scrape, index),
            "queued": total(|u| u.queued),
            "queued_total": total(|u| u.queued_total),
            "servers": servers,
        });
        (name.clone(), value)
    };
    let upstreams = scrape.names.upstreams.iter().enumerate();
    upstreams.map(object).collect()
}

fn fast_open(scrape: &Scrape<'_>, upstream: usize) -> Map<String, Value> {
    let count = |outcome: FastOpen| {
        let count = sum(scrape, |core| {
            core.upstreams[upstream].fast_open_total[outcome as usize]
        });
        (outcome.as_str().to_owned(), count.into())
    };
    FastOpen::ALL.into_iter().map(count).collect()
}

fn server_object(scrape: &Scrape<'_>, index: usize, address: &str) -> Value {
    // A core that has not answered since the server came does not know it.
    let total = |pick: fn(&ServerMetrics) -> u64| {
        sum(scrape, |core| core.servers.get(index).map_or(0, pick))
    };
    let mut failures: Map<String, Value> = Map::new();
    for cause in crate::outcome::Cause::ALL {
        let count = sum(scrape, |core| {
            let failed = core.servers.get(index).map(|it| &it.connect_failed_total);
            let count = failed.and_then(|failed| failed.get(&cause));
            count.copied().unwrap_or(0)
        });
        if count > 0 {
            failures.insert(cause.as_str().to_owned(), json!(count));
        }
    }
    json!({
        "address": address,
        "connected": total(|s| s.connected_total),
        "active": total(|s| s.active),
        "sent_bytes": total(|s| s.sent_bytes_total),
        "received_bytes": total(|s| s.received_bytes_total),
        "connect_failures": failures,
    })
}

/// Over all cores, listeners and servers; the most frequent first.
fn close_reasons(scrape: &Scrape<'_>) -> Vec<Value> {
    let mut counts: HashMap<CloseReason, u64> = HashMap::new();
    for core in scrape.cores {
        for (key, count) in &core.closed {
            *counts.entry(key.reason).or_default() += count;
        }
        for (reason, count) in &core.closed_before {
            *counts.entry(*reason).or_default() += count;
        }
    }
    let mut sorted: Vec<(CloseReason, u64)> = counts.into_iter().collect();
    sorted.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
    let object = |(reason, count): (CloseReason, u64)| {
        json!({
            "side": reason.side.as_str(),
            "stage": reason.stage.as_str(),
            "cause": reason.cause.as_str(),
            "count": count,
        })
    };
    sorted.into_iter().map(object).collect()
}

fn latency(histogram: &LatencyHistogram) -> Value {
    let values = histogram.histogram();
    if values.is_empty() {
        return json!({ "count": 0 });
    }
    let at = |quantile: f64| values.value_at_quantile(quantile) as f64 / US_PER_MS;
    json!({
        "count": values.len(),
        "mean_ms": histogram.sum_us() as f64 / values.len() as f64 / US_PER_MS,
        "p50_ms": at(0.50),
        "p90_ms": at(0.90),
        "p99_ms": at(0.99),
        "p999_ms": at(0.999),
        "max_ms": values.max() as f64 / US_PER_MS,
    })
}

fn buffers_total(scrape: &Scrape<'_>) -> Value {
    json!({
        "total": sum(scrape, |core| core.buffers.total),
        "total_bytes": sum(scrape, |core| core.buffers.total * core.buffers.size_bytes),
        "in_ring": sum(scrape, |core| core.buffers.in_ring),
        "held": sum(scrape, |core| core.buffers.held),
        "waiting": sum(scrape, |core| core.buffers.waiting),
        "exhausted": sum(scrape, |core| core.buffers.exhausted_total),
    })
}

fn ring_total(scrape: &Scrape<'_>) -> Value {
    let enters = sum(scrape, |core| core.ring.enters_total);
    let submitted = sum(scrape, |core| core.ring.submitted_total);
    json!({
        "enters": enters,
        "submitted": submitted,
        "completed": sum(scrape, |core| core.ring.completed_total),
        "submissions_per_enter": ratio(submitted, enters),
        "cq_overflow": sum(scrape, |core| core.ring.cq_overflow_total),
        "in_flight": sum(scrape, |core| core.ring.in_flight),
        "sends": sum(scrape, |core| core.ring.sends_total),
        "blocked_sends": sum(scrape, |core| core.ring.blocked_sends_total),
    })
}

/// `null` instead of a division by zero.
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn movers(core: &CoreMetrics) -> Value {
    let mut movers = Map::new();
    for mover in MoverKind::ALL {
        let numbers = &core.movers.kinds[mover as usize];
        movers.insert(
            mover.as_str().to_owned(),
            json!({ "bytes": numbers.bytes_total, "switches": numbers.switches_total }),
        );
    }
    movers.insert("pipes".to_owned(), core.movers.pipes.into());
    movers.insert("pipes_held".to_owned(), core.movers.pipes_held.into());
    movers.insert(
        "low_water_guards".to_owned(),
        core.movers.low_water_guards_total.into(),
    );
    movers.insert(
        "zero_copy".to_owned(),
        json!({
            "on": core.movers.zero_copy_is_on,
            "sends": core.movers.zero_copy_sends_total,
            "copied_sends": core.movers.copied_sends_total,
        }),
    );
    Value::Object(movers)
}

fn core_object(core: &CoreMetrics, stale: bool) -> Value {
    let listeners =
        |pick: fn(&ListenerMetrics) -> u64| core.listeners.iter().map(pick).sum::<u64>();
    let ring = &core.ring;
    json!({
        "core": core.core.0,
        "stale": stale,
        "accepted": listeners(|l| l.accepted_total),
        "active": listeners(|l| l.active),
        "closed": core.closed.values().chain(core.closed_before.values()).sum::<u64>(),
        "received_bytes": listeners(|l| l.received_bytes_total),
        "sent_bytes": listeners(|l| l.sent_bytes_total),
        "buffers": {
            "total": core.buffers.total,
            "in_ring": core.buffers.in_ring,
            "held": core.buffers.held,
            "waiting": core.buffers.waiting,
            "exhausted": core.buffers.exhausted_total,
        },
        "ring": {
            "enters": ring.enters_total,
            "submitted": ring.submitted_total,
            "completed": ring.completed_total,
            "submissions_per_enter": ratio(ring.submitted_total, ring.enters_total),
            "cq_overflow": ring.cq_overflow_total,
            "in_flight": ring.in_flight,
            "sends": ring.sends_total,
            "blocked_sends": ring.blocked_sends_total,
        },
        "movers": movers(core),
        "turns": core.pump.turns_total,
        "timers_fired": core.pump.timers_fired_total,
        "longest_gap_ms": core.pump.longest_gap_us as f64 / US_PER_MS,
        "access_log_dropped": core.access_log_dropped_total,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::*;
    use super::*;
    use crate::outcome::{Cause, Side, Stage};

    #[test]
    fn totals_percentiles_and_order() {
        let names = Names {
            listeners: vec![ListenerName {
                name: "edge".into(),
                upstreams: vec![UpstreamId(0)],
            }],
            upstreams: vec!["app".into()],
            servers: vec![Some(ServerName {
                address: "127.0.0.1:1".into(),
                upstream: UpstreamId(0),
            })],
        };
        let mut cores = Vec::new();
        for core in 0..2_u16 {
            let mut metrics = CoreMetrics::new(CoreId(core), 1, 1, 1);
            metrics.listeners[0].accepted_total = 5;
            for ms in 1..=100 {
                metrics.listeners[0]
                    .duration
                    .record(Duration::from_millis(ms));
            }
            for (cause, count) in [(Cause::Empty, 1), (Cause::Finished, 9), (Cause::Reset, 3)] {
                let key = ClosedKey {
                    listener: ListenerId(0),
                    upstream: Some(UpstreamId(0)),
                    server: None,
                    reason: CloseReason::new(Side::Downstream, Stage::Relay, cause),
                };
                metrics.closed.insert(key, count);
            }
            metrics.servers[0]
                .connect_failed_total
                .insert(Cause::Refused, 4);
            metrics.ring.enters_total = 4;
            metrics.ring.submitted_total = 10;
            cores.push(metrics);
        }
        cores[1].ring.enters_total = 0;
        let scrape = Scrape {
            names: &names,
            cores: &cores,
            stale: &[true],
            process: ProcessMetrics::default(),
            version: "0.1.0",
            ring_features: &[("SEND_ZC", true)],
            standings: &[],
            lookups: &[],
            ejections_denied_total: &[],
            listening: &[true],
            checker: CheckerMetrics::default(),
            now_us: 0,
        };
        let value: Value = serde_json::from_str(&render(&scrape)).unwrap();
        let edge = &value["listeners"]["edge"];
        assert_eq!(edge["accepted"], 10);
        assert_eq!(edge["duration"]["count"], 200);
        assert_eq!(edge["duration"]["mean_ms"], 50.5);
        let p50 = edge["duration"]["p50_ms"].as_f64().unwrap();
        assert!((49.5..=50.6).contains(&p50), "{p50}");
        assert_eq!(edge["first_byte"]["count"], 0);
        let server = &value["upstreams"]["app"]["servers"][0];
        assert_eq!(server["connect_failures"]["refused"], 8);
        let causes: Vec<_> = value["close_reasons"]
            .as_array()
            .unwrap()
            .iter()
            .map(|reason| {
                (
                    reason["cause"].as_str().unwrap(),
                    reason["count"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(causes, [("finished", 18), ("reset", 6), ("empty", 2)]);
        assert_eq!(value["ring"]["submissions_per_enter"], 5.0);
        assert_eq!(value["cores"][0]["stale"], true);
        assert_eq!(value["cores"][1]["stale"], false);
        assert!(value["cores"][1]["ring"]["submissions_per_enter"].is_null());
    }
}
