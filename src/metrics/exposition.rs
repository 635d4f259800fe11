//! The Prometheus text format, version 0.0.4, from the cores' numbers.
//!
//! Every family is listed in `docs/metrics.md`, and a test holds the two together. Counters carry a
//! `core` label: which core did the work is a question people ask of this program. Histograms are merged over
//! cores, since thousands of bucket series per core would answer none.
//!
//! Pure text: it asks no core and reads no file. See
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::time::Duration;

use super::{ClosedKey, CoreMetrics, LatencyHistogram, MoverMetrics, Names, Scrape};
use crate::outcome::{Cause, MoverKind};

/// The `Content-Type` of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the histogram buckets, in microseconds, and as written in `le`, in seconds. From
/// below a loopback round trip to an hour, the order of magnitude of a long-lived session; about three per decade.
const BUCKETS: [(u64, &str); 25] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
    (60_000_000, "60"),
    (120_000_000, "120"),
    (300_000_000, "300"),
    (600_000_000, "600"),
    (1_200_000_000, "1200"),
    (1_800_000_000, "1800"),
    (3_600_000_000, "3600"),
];

/// Renders everything that a scrape shows.
pub fn render(scrape: &Scrape<'_>) -> String {
    let labels = Labels::new(scrape.names);
    let mut page = Page::default();
    process(&mut page, scrape);
    sessions(&mut page, scrape, &labels);
    listeners(&mut page, scrape, &labels);
    servers(&mut page, scrape, &labels);
    latencies(&mut page, scrape, &labels);
    buffers(&mut page, scrape);
    movers(&mut page, scrape);
    ring(&mut page, scrape);
    page.text
}

/// Label pairs, escaped once per scrape, by index.
struct Labels {
    listeners: Vec<String>,
    upstreams: Vec<String>,
    servers: Vec<String>,
    /// By listener: the upstream's pair.
    listener_upstreams: Vec<String>,
}

impl Labels {
    fn new(names: &Names) -> Self {
        let upstreams: Vec<String> = names
            .upstreams
            .iter()
            .map(|name| format!("upstream=\"{}\"", escaped(name)))
            .collect();
        let upstream = |id: crate::units::UpstreamId| upstreams[usize::from(id.0)].clone();
        let listeners = names
            .listeners
            .iter()
            .map(|listener| format!("listener=\"{}\"", escaped(&listener.name)));
        // One address may serve twice in a group, by two DNS names for example. Two series with equal
        // labels would make the whole page invalid.
        let mut seen: HashMap<String, u32> = HashMap::new();
        let servers = names.servers.iter().map(|server| {
            let group = upstream(server.upstream);
            let address = escaped(&server.address);
            let times = seen.entry(format!("{group},{address}")).or_default();
            *times += 1;
            match *times {
                1 => format!("{group},server=\"{address}\""),
                n => format!("{group},server=\"{address}#{n}\""),
            }
        });
        Self {
            listeners: listeners.collect(),
            servers: servers.collect(),
            listener_upstreams: names
                .listeners
                .iter()
                .map(|listener| upstream(listener.upstream))
                .collect(),
            upstreams,
        }
    }

    /// `upstream` and `server` of a session: those of the server, or the listener's upstream and an
    /// empty server if none took it.
    fn server_of(&self, key: &ClosedKey) -> String {
        match key.server {
            Some(server) => self.servers[usize::from(server.0)].clone(),
            None => {
                let upstream = &self.listener_upstreams[usize::from(key.listener.0)];
                format!("{upstream},server=\"\"")
            }
        }
    }
}

/// As the format wants label values: backslash, double quote and line feed escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The text, family by family.
#[derive(Default)]
struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn counter(&mut self, name: &'static str, help: &str) {
        debug_assert!(name.ends_with("_total"));
        self.family(name, "counter", help);
    }

    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    /// One series of the present family. `labels` is empty or `a="b",c="d"`.
    fn sample(&mut self, labels: &str, value: impl std::fmt::Display) {
        let family = self.family;
        if labels.is_empty() {
            self.line(format_args!("{family} {value}"));
        } else {
            self.line(format_args!("{family}{{{labels}}} {value}"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to memory does not fail");
    }

    /// A whole family with one series per core.
    fn per_core(&mut self, scrape: &Scrape<'_>, value: impl Fn(&CoreMetrics) -> u64) {
        for core in scrape.cores {
            self.sample(&format!("core=\"{}\"", core.core), value(core));
        }
    }

    /// A whole family with one series per core and entry of a list.
    fn per_core_and<T>(
        &mut self,
        scrape: &Scrape<'_>,
        labels: &[String],
        list: impl Fn(&CoreMetrics) -> &[T],
        value: impl Fn(&T) -> u64,
    ) {
        for core in scrape.cores {
            for (entry, label) in list(core).iter().zip(labels) {
                self.sample(&format!("core=\"{}\",{label}", core.core), value(entry));
            }
        }
    }

    fn histogram(&mut self, label: &str, merged: &LatencyHistogram) {
        let family = self.family;
        let counts = cumulative_counts(merged);
        for ((_, le), count) in BUCKETS.iter().zip(counts) {
            self.line(format_args!(
                "{family}_bucket{{{label},le=\"{le}\"}} {count}"
            ));
        }
        let total = merged.histogram().len();
        self.line(format_args!(
            "{family}_bucket{{{label},le=\"+Inf\"}} {total}"
        ));
        let sum = seconds(Duration::from_micros(merged.sum_us()));
        self.line(format_args!("{family}_sum{{{label}}} {sum}"));
        self.line(format_args!("{family}_count{{{label}}} {total}"));
    }
}

/// How many values are at most each bucket's bound. The histogram keeps two digits, so that a value up to
/// 1 % above a bound may count as within it.
fn cumulative_counts(merged: &LatencyHistogram) -> [u64; BUCKETS.len()] {
    let histogram = merged.histogram();
    let mut counts = [0; BUCKETS.len()];
    for step in histogram.iter_recorded() {
        let value_us = histogram.lowest_equivalent(step.value_iterated_to());
        let first = BUCKETS.partition_point(|(bound_us, _)| *bound_us < value_us);
        if let Some(count) = counts.get_mut(first) {
            *count += step.count_at_value();
        }
    }
    let mut sum = 0;
    for count in &mut counts {
        sum += *count;
        *count = sum;
    }
    counts
}

/// Seconds with six decimals, exact for a whole number of microseconds.
fn seconds(duration: Duration) -> String {
    format!("{}.{:06}", duration.as_secs(), duration.subsec_micros())
}

fn process(page: &mut Page, scrape: &Scrape<'_>) {
    let process = &scrape.process;
    page.gauge("corelay_build_info", "The running version; always 1.");
    page.sample(&format!("version=\"{}\"", escaped(scrape.version)), 1);
    page.gauge("corelay_uptime_seconds", "Time since start.");
    page.sample("", seconds(process.uptime));
    page.gauge("corelay_process_open_fds", "Open file descriptors.");
    page.sample("", process.open_fds);
    page.gauge("corelay_process_max_fds", "Limit on open file descriptors.");
    page.sample("", process.max_fds);
    page.gauge("corelay_process_resident_memory_bytes", "Resident memory.");
    page.sample("", process.resident_memory_bytes);
    page.gauge("corelay_process_threads", "Threads.");
    page.sample("", process.threads);
    page.counter(
        "corelay_process_cpu_seconds_total",
        "User and system CPU time.",
    );
    page.sample("", seconds(process.cpu));
    page.gauge(
        "corelay_ring_feature",
        "1 if this feature of io_uring is in use, 0 if the kernel lacks it.",
    );
    for (feature, present) in scrape.ring_features {
        page.sample(
            &format!("feature=\"{}\"", escaped(feature)),
            u8::from(*present),
        );
    }
    page.gauge(
        "corelay_core_stale",
        "1 if the core did not answer this scrape in time and its series are from an earlier one.",
    );
    for (index, core) in scrape.cores.iter().enumerate() {
        page.sample(
            &format!("core=\"{}\"", core.core),
            u8::from(scrape.is_stale(index)),
        );
    }
    page.counter(
        "corelay_access_log_lines_written_total",
        "Access-log lines that the kernel took.",
    );
    page.sample("", process.access_log_lines_written_total);
    page.gauge(
        "corelay_access_log_stalled",
        "1 while the access log's target takes nothing (disk full, pipe closed or blocked).",
    );
    page.sample("", u8::from(process.access_log_stalled));
    page.counter(
        "corelay_access_log_dropped_total",
        "Access-log lines dropped because the core's queue was full.",
    );
    page.per_core(scrape, |core| core.access_log_dropped_total);
}

fn sessions(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    page.counter(
        "corelay_connections_closed_total",
        "Sessions that ended, by who is to blame, how far they had come, and why.",
    );
    for core in scrape.cores {
        // Sorted, so that two scrapes can be compared by eye.
        let closed: BTreeMap<_, _> = core.closed.iter().collect();
        for (key, count) in closed {
            let pairs = format!(
                "core=\"{}\",{},{},side=\"{}\",stage=\"{}\",cause=\"{}\"",
                core.core,
                labels.listeners[usize::from(key.listener.0)],
                labels.server_of(key),
                key.reason.side.as_str(),
                key.reason.stage.as_str(),
                key.reason.cause.as_str()
            );
            page.sample(&pairs, count);
        }
    }
}

fn listeners(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    let names = &labels.listeners;
    page.counter(
        "corelay_connections_accepted_total",
        "Connections accepted.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.accepted_total);
    page.gauge(
        "corelay_connections_active",
        "Sessions alive, dialling or relaying.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.active);
    page.counter(
        "corelay_downstream_received_bytes_total",
        "Bytes received from clients.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.received_bytes_total);
    page.counter(
        "corelay_downstream_sent_bytes_total",
        "Bytes sent to clients.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.sent_bytes_total);
    page.counter(
        "corelay_accept_exhausted_total",
        "accept4 failures for want of file descriptors or memory.",
    );
    page.per_core_and(
        scrape,
        names,
        |c| &c.listeners,
        |l| l.accept_exhausted_total,
    );
    page.counter(
        "corelay_accept_aborted_total",
        "accept4 failures of a connection that was gone already.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.accept_aborted_total);
    page.counter(
        "corelay_accept_paused_total",
        "Times that accepting paused because too few file descriptors were free.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.accept_paused_total);
}

fn servers(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    let names = &labels.servers;
    page.counter(
        "corelay_upstream_connections_total",
        "Connections established to servers.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.connected_total);
    page.gauge(
        "corelay_upstream_connections_active",
        "Connections to servers, alive.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.active);
    page.counter(
        "corelay_upstream_sent_bytes_total",
        "Bytes sent to servers.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.sent_bytes_total);
    page.counter(
        "corelay_upstream_received_bytes_total",
        "Bytes received from servers.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.received_bytes_total);
    page.counter(
        "corelay_upstream_connect_failures_total",
        "Connection attempts that failed, by cause.",
    );
    for core in scrape.cores {
        for (server, name) in core.servers.iter().zip(names) {
            let causes: BTreeMap<&Cause, &u64> = server.connect_failed_total.iter().collect();
            for (cause, count) in causes {
                let cause = cause.as_str();
                let pairs = format!("core=\"{}\",{name},cause=\"{cause}\"", core.core);
                page.sample(&pairs, count);
            }
        }
    }
}

fn latencies(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    page.family(
        "corelay_first_byte_seconds",
        "histogram",
        "From accept to the first byte from the server.",
    );
    for (index, label) in labels.listeners.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.listeners[index].first_byte),
        );
    }
    page.family(
        "corelay_session_duration_seconds",
        "histogram",
        "From accept to the end of the session.",
    );
    for (index, label) in labels.listeners.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.listeners[index].duration),
        );
    }
    page.family(
        "corelay_upstream_connect_seconds",
        "histogram",
        "One successful connection attempt.",
    );
    for (index, label) in labels.upstreams.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.upstreams[index].connect),
        );
    }
}

/// One histogram over all cores.
pub(super) fn merged(
    scrape: &Scrape<'_>,
    pick: impl Fn(&CoreMetrics) -> &LatencyHistogram,
) -> LatencyHistogram {
    let mut all = LatencyHistogram::default();
    for core in scrape.cores {
        all.merge(pick(core));
    }
    all
}

fn buffers(page: &mut Page, scrape: &Scrape<'_>) {
    page.gauge(
        "corelay_buffer_size_bytes",
        "Size of one buffer of the slab.",
    );
    page.per_core(scrape, |core| core.buffers.size_bytes);
    page.gauge("corelay_buffers", "Buffers of the slab.");
    page.per_core(scrape, |core| core.buffers.total);
    page.gauge("corelay_buffers_in_ring", "Buffers offered to the kernel.");
    page.per_core(scrape, |core| core.buffers.in_ring);
    page.gauge(
        "corelay_buffers_held",
        "Buffers with bytes that are not sent yet.",
    );
    page.per_core(scrape, |core| core.buffers.held);
    page.gauge(
        "corelay_buffers_set_aside",
        "Pieces of at most a buffer that wait on the heap for a peer's room.",
    );
    page.per_core(scrape, |core| core.buffers.set_aside);
    page.counter(
        "corelay_buffers_set_aside_refused_total",
        "Pieces that kept their buffer, because as much as may be was set aside.",
    );
    page.per_core(scrape, |core| core.buffers.aside_refused_total);
    page.gauge(
        "corelay_buffers_waiting",
        "Directions that wait for a buffer.",
    );
    page.per_core(scrape, |core| core.buffers.waiting);
    page.counter(
        "corelay_buffers_exhausted_total",
        "Receives that found their group of buffers empty.",
    );
    page.per_core(scrape, |core| core.buffers.exhausted_total);
}

fn movers(page: &mut Page, scrape: &Scrape<'_>) {
    let each = |page: &mut Page, read: fn(&MoverMetrics) -> u64| {
        for core in scrape.cores {
            for mover in MoverKind::ALL {
                let labels = format!("core=\"{}\",mover=\"{}\"", core.core, mover.as_str());
                page.sample(&labels, read(&core.movers.kinds[mover as usize]));
            }
        }
    };
    page.counter("corelay_relayed_bytes_total", "Bytes delivered.");
    each(page, |mover| mover.bytes_total);
    page.counter(
        "corelay_mover_switches_total",
        "Directions of sessions that changed to this mover.",
    );
    each(page, |mover| mover.switches_total);
    page.gauge("corelay_pipes", "Open pipes.");
    page.per_core(scrape, |core| core.movers.pipes);
    page.gauge(
        "corelay_pipes_held",
        "Pipes that hold bytes until their destination has room.",
    );
    page.per_core(scrape, |core| core.movers.pipes_held);
    page.counter(
        "corelay_low_water_guards_total",
        "Low-water marks lowered because too few bytes came within a millisecond.",
    );
    page.per_core(scrape, |core| core.movers.low_water_guards_total);
    page.gauge(
        "corelay_zero_copy_send",
        "1 while large sends are zero-copy, 0 if that is off or switched itself off.",
    );
    page.per_core(scrape, |core| core.movers.zero_copy_is_on.into());
    page.counter(
        "corelay_zero_copy_sends_total",
        "Zero-copy sends that are over, and whether the kernel copied them after all.",
    );
    for core in scrape.cores {
        let movers = &core.movers;
        let id = core.core;
        page.sample(
            &format!("core=\"{id}\",result=\"zero_copy\""),
            movers.zero_copy_sends_total,
        );
        page.sample(
            &format!("core=\"{id}\",result=\"copied\""),
            movers.copied_sends_total,
        );
    }
}

fn ring(page: &mut Page, scrape: &Scrape<'_>) {
    page.counter("corelay_ring_enters_total", "io_uring_enter calls.");
    page.per_core(scrape, |core| core.ring.enters_total);
    page.counter("corelay_ring_submissions_total", "Operations submitted.");
    page.per_core(scrape, |core| core.ring.submitted_total);
    page.counter("corelay_ring_completions_total", "Completions reaped.");
    page.per_core(scrape, |core| core.ring.completed_total);
    page.counter(
        "corelay_ring_cq_overflow_total",
        "Enters after which completions did not fit the completion queue; above 0 is a bug.",
    );
    page.per_core(scrape, |core| core.ring.cq_overflow_total);
    page.gauge(
        "corelay_multishot_receive",
        "1 where receives may have several shots, 0 where the kernel may lose the end of a stream then.",
    );
    page.per_core(scrape, |core| core.ring.is_multishot.into());
    page.gauge("corelay_ring_operations_in_flight", "Operations in flight.");
    page.per_core(scrape, |core| core.ring.in_flight);
    page.counter(
        "corelay_ring_sends_total",
        "Sends that completed without the ring.",
    );
    page.per_core(scrape, |core| core.ring.sends_total);
    page.counter(
        "corelay_ring_blocked_sends_total",
        "Sends that had to wait for the peer.",
    );
    page.per_core(scrape, |core| core.ring.blocked_sends_total);
    page.counter(
        "corelay_pump_turns_total",
        "Turns given to the accept and dial runtime.",
    );
    page.per_core(scrape, |core| core.pump.turns_total);
    page.counter("corelay_pump_timers_fired_total", "Timers that fired.");
    page.per_core(scrape, |core| core.pump.timers_fired_total);
    page.counter(
        "corelay_busy_polls_total",
        "Looks for more work before a sleep, by whether there was some.",
    );
    for core in scrape.cores {
        for (result, count) in ["found", "vain"]
            .into_iter()
            .zip(core.pump.busy_polls_total)
        {
            let labels = format!("core=\"{}\",result=\"{result}\"", core.core);
            page.sample(&labels, count);
        }
    }
    page.gauge(
        "corelay_pump_longest_gap_seconds",
        "Longest time between two passes of the relay ring while work was pending.",
    );
    for core in scrape.cores {
        let gap = seconds(Duration::from_micros(core.pump.longest_gap_us));
        page.sample(&format!("core=\"{}\"", core.core), gap);
    }
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
