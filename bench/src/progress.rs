//! The line on the terminal while a load runs: rate, throughput, errors, latency of the last moment.
//!
//! It only reads the run's counters; without a terminal it is not there at all.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::{Control, Snapshot};
use crate::report::microseconds;

/// How often the line is written anew.
const REFRESH: Duration = Duration::from_millis(500);
/// How often the thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The line; dropping it takes it away.
#[derive(Debug)]
pub struct Progress {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows the progress of a run of this length, if standard error is a terminal. To be called
    /// before the run starts.
    pub fn show(control: &Control, duration: Duration) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::io::stderr().is_terminal().then(|| {
            // From the first call on the run collects latencies.
            control.take_latency_ns();
            let (control, ended) = (control.clone(), Arc::clone(&ended));
            std::thread::spawn(move || draw(&control, duration, &ended))
        });
        Self { ended, thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A line that could not be drawn is no reason to fail.
            let _ = thread.join();
        }
    }
}

fn draw(control: &Control, duration: Duration, ended: &AtomicBool) {
    let length_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let bar = ProgressBar::new(length_ms);
    let style = ProgressStyle::with_template("{bar:20} {elapsed:>4} {msg}")
        .expect("a constant template is valid");
    bar.set_style(style);
    let began = Instant::now();
    let mut seen = (Snapshot::default(), began);
    while !ended.load(Ordering::Acquire) {
        std::thread::sleep(LOOK_EVERY);
        let now = Instant::now();
        let passed = now.duration_since(seen.1);
        if passed >= REFRESH {
            let snapshot = control.snapshot();
            bar.set_message(line(control, &seen.0, &snapshot, passed));
            let elapsed_ms = now.duration_since(began).as_millis();
            bar.set_position(u64::try_from(elapsed_ms).unwrap_or(u64::MAX).min(length_ms));
            seen = (snapshot, now);
        }
    }
    bar.finish_and_clear();
}

fn line(control: &Control, before: &Snapshot, now: &Snapshot, passed: Duration) -> String {
    let seconds = passed.as_secs_f64();
    let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    let bytes = now.bytes_sent + now.bytes_received;
    let bytes_before = before.bytes_sent + before.bytes_received;
    let mut line = format!(
        "{:.0}/s  {:.1} MB/s  {} open  {} errors",
        per_second(now.operations, before.operations),
        per_second(bytes, bytes_before) / 1e6,
        now.open,
        now.errors
    );
    let latency_ns = control.take_latency_ns();
    if !latency_ns.is_empty() {
        line += &format!(
            "  p50 {:.0} us  p99 {:.0} us",
            microseconds(&latency_ns, 0.5),
            microseconds(&latency_ns, 0.99)
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_happened_since_the_last_one() {
        let before = Snapshot {
            operations: 100,
            ..Snapshot::default()
        };
        let now = Snapshot {
            operations: 300,
            errors: 7,
            bytes_sent: 3_000_000,
            bytes_received: 1_000_000,
            open: 5,
        };
        let text = line(&Control::new(), &before, &now, Duration::from_secs(2));
        assert_eq!(text, "100/s  2.0 MB/s  5 open  7 errors");
    }
}
