//! Small requests beside bulk streams: what the neighbour's traffic does to latency.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{Control, Kind, Report, bulk, rr};

/// How long the streams may take to begin.
const BULK_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The requests; their duration is that of the run.
    pub rr: rr::Options,
    /// The streams, which last as long as the requests do; their duration and their number of bytes
    /// are not used.
    pub bulk: bulk::Options,
}

/// Runs both. Operations and latencies of the report are those of the requests, bytes those of the
/// streams; errors are named after the part that they belong to.
pub fn run(options: &Options, control: &Control) -> Result<Report> {
    let bulk_control = control.beside();
    // The control may have seen other runs: their bytes are not these streams'.
    let before = control.snapshot();
    let bulk_options = bulk::Options {
        // Long enough to be ended by the requests' end.
        duration: options.rr.duration + BULK_DEADLINE * 4,
        bytes: None,
        ..options.bulk.clone()
    };
    std::thread::scope(|scope| {
        let streams = scope.spawn(|| bulk::run(&bulk_options, &bulk_control));
        let deadline = Instant::now() + BULK_DEADLINE;
        let has_begun = || {
            let seen = control.snapshot();
            seen.bytes_sent + seen.bytes_received > before.bytes_sent + before.bytes_received
        };
        while !has_begun() && !streams.is_finished() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        let requests = rr::run(&options.rr, control);
        bulk_control.stop();
        let streams = streams
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread of the streams panicked")))?;
        Ok(combine(requests?, streams))
    })
}

fn combine(requests: Report, streams: Report) -> Report {
    let mut report = requests;
    report.kind = Kind::Mixed;
    report.bytes_sent = streams.bytes_sent;
    report.bytes_received = streams.bytes_received;
    report.rates.bytes_sent = streams.rates.bytes_sent;
    report.rates.bytes_received = streams.rates.bytes_received;
    let named = |part: &str, errors: std::collections::BTreeMap<String, u64>| {
        let part = part.to_owned();
        errors
            .into_iter()
            .map(move |(kind, times)| (format!("{part}: {kind}"), times))
    };
    report.errors = named("rr", report.errors)
        .chain(named("bulk", streams.errors))
        .collect();
    report
        .option("bulk_target", streams.target)
        .option("bulk", streams.options)
}
