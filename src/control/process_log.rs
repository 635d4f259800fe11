//! The process log: `tracing` events to stderr, as JSON or as readable lines.
//!
//! Not the access log. It has in common with it that a reader that stopped reading never blocks a thread: cores
//! log here too, rarely, and a stuck terminal or pipe behind stderr must not stall them. A line that
//! stderr does not take at once is dropped and counted ([`dropped_total`]).

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::model::{LogFormat, LogLevel};
use crate::log::Target;
use crate::log::sink::Sink;

pub use crate::log::RateLimit;

/// Lines that stderr did not take.
static DROPPED_TOTAL: AtomicU64 = AtomicU64::new(0);

/// Why the process log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ProcessLogError {
    /// stderr cannot be opened.
    #[error("stderr cannot be opened for the process log: {0}")]
    Stderr(io::Error),
    /// It was set up before.
    #[error("the process log is set up twice")]
    Twice,
}

/// Sets the process's log up; once.
///
/// # Errors
/// stderr is not usable, or the log is set up already.
pub fn init(level: LogLevel, format: LogFormat) -> Result<(), ProcessLogError> {
    let sink = Sink::open(&Target::Stderr).map_err(ProcessLogError::Stderr)?;
    let colors = io::stderr().is_terminal();
    let subscriber = subscriber(Lines::new(sink), level, format, colors);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| ProcessLogError::Twice)
}

/// Process-log lines dropped because stderr did not take them.
pub fn dropped_total() -> u64 {
    DROPPED_TOTAL.load(Ordering::Relaxed)
}

fn subscriber(
    lines: Lines,
    level: LogLevel,
    format: LogFormat,
    colors: bool,
) -> Box<dyn tracing::Subscriber + Send + Sync> {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level_filter(level))
        .with_thread_names(true)
        .with_target(false)
        .with_ansi(colors)
        .with_writer(lines);
    match format {
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
        LogFormat::Text => Box::new(builder.finish()),
    }
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Writes whole lines to a sink or drops them.
struct Lines {
    sink: Mutex<HalfLine>,
}

/// The sink, and whether it holds the beginning of a line whose end it did not take.
struct HalfLine {
    sink: Sink,
    is_open: bool,
}

impl Lines {
    fn new(sink: Sink) -> Self {
        let is_open = false;
        Self {
            sink: Mutex::new(HalfLine { sink, is_open }),
        }
    }

    fn write_line(&self, line: &[u8]) {
        let mut out = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if out.is_open {
            if !matches!(out.sink.write(b"\n"), Ok(1)) {
                DROPPED_TOTAL.fetch_add(1, Ordering::Relaxed);
                return;
            }
            out.is_open = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match out.sink.write(rest) {
                Ok(written @ 1..) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    DROPPED_TOTAL.fetch_add(1, Ordering::Relaxed);
                    out.is_open = rest.len() < line.len();
                    return;
                }
            }
        }
    }
}

/// One event's line on its way; `tracing` writes each line with one call.
struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_line(line);
        // An error would make `tracing` print about it on stderr, which may block.
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
    use std::os::fd::AsFd;

    /// A log whose other end the test holds.
    fn log(level: LogLevel, format: LogFormat) -> (PipeReader, tracing::subscriber::DefaultGuard) {
        let (reader, writer) = pipe().unwrap();
        let lines = Lines::new(Sink::from_inherited(writer.as_fd()).unwrap());
        let subscriber = subscriber(lines, level, format, false);
        (reader, tracing::subscriber::set_default(subscriber))
    }

    #[test]
    fn json_lines_carry_level_message_and_fields() {
        let (reader, guard) = log(LogLevel::Info, LogFormat::Json);
        tracing::debug!("not this one");
        tracing::warn!(suppressed = 3, "accept \"failed\"\nagain");
        drop(guard);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["level"], "WARN");
        assert_eq!(value["message"], "accept \"failed\"\nagain");
        assert_eq!(value["suppressed"], 3);
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn text_lines_are_plain() {
        let (reader, guard) = log(LogLevel::Error, LogFormat::Text);
        tracing::warn!("not this one");
        tracing::error!(core = 1, "stalled");
        drop(guard);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].contains("ERROR") && lines[0].contains("stalled core=1"),
            "{lines:?}"
        );
        assert!(!lines[0].contains('\u{1b}'), "no colour off a terminal");
    }

    #[test]
    fn a_blocked_stderr_drops_lines_and_blocks_nobody() {
        let (reader, guard) = log(LogLevel::Info, LogFormat::Text);
        let before = dropped_total();
        let filler = "x".repeat(10_000);
        // Three times what a pipe holds by default; without a reader, and without a hang.
        for _ in 0..20 {
            tracing::info!("{filler}");
        }
        assert!(dropped_total() > before);
        // Room again: the line that was cut is ended before the next.
        let mut reader = reader;
        reader.read_exact(&mut [0; 40_000]).unwrap();
        tracing::info!("after");
        drop(guard);
        let lines: Vec<_> = BufReader::new(reader).lines().collect();
        let last = lines.last().unwrap().as_ref().unwrap();
        assert!(last.ends_with("after") && !last.contains("xxxx"), "{last}");
        for line in lines {
            assert!(
                line.unwrap().len() < 2 * filler.len(),
                "two events in one line"
            );
        }
    }
}
