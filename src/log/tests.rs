//! The access log as a whole: queues, thread and target. Every wait has a deadline.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::*;
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::units::{CoreId, ListenerId, UpstreamId};

const PATIENCE: Duration = Duration::from_secs(20);

fn record(core: u16, sequence: u64, cause: Cause) -> Record {
    Record {
        sequence,
        core: CoreId(core),
        listener: ListenerId(0),
        upstream: Some(UpstreamId(0)),
        server: None,
        downstream: None,
        via: None,
        ended_at: SystemTime::UNIX_EPOCH,
        connect_us: None,
        first_byte_us: None,
        duration_us: 1,
        bytes_to_upstream: 0,
        bytes_to_downstream: 0,
        attempts: 0,
        close_reason: CloseReason::new(Side::Local, Stage::Accept, cause),
        spliced_bytes: None,
        mover_switches: 0,
    }
}

fn start(path: PathBuf, cores: usize, filter: Filter) -> (LogWriter, Vec<Producer>) {
    LogWriter::start(Options {
        cores,
        queue_records: 64,
        filter,
        target: Target::File(path),
        names: Names {
            listeners: vec!["edge".into()],
            upstreams: vec!["app".into()],
            servers: vec![],
        },
        nonce: 0,
    })
    .unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // A reader may catch a write(2) half way; the writer's part is that the rest follows.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// A FIFO whose reader the test holds: the one target that can be blocked at will.
fn fifo(directory: &Path) -> (PathBuf, File) {
    let path = directory.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let reader = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    (path, reader)
}

#[test]
fn every_record_of_every_core_becomes_a_line_in_its_core_order() {
    const RECORDS: u64 = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let (writer, producers) = start(path.clone(), 3, Filter::All);
    std::thread::scope(|scope| {
        for (core, mut producer) in producers.into_iter().enumerate() {
            scope.spawn(move || {
                let deadline = Instant::now() + PATIENCE;
                for sequence in 0..RECORDS {
                    while !producer.push(record(core as u16, sequence, Cause::Finished)) {
                        assert!(Instant::now() < deadline, "the writer does not drain");
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    let report = writer.close(PATIENCE);
    assert_eq!(report.lines_written_total, 3 * RECORDS);
    assert_eq!(report.lines_abandoned, Some(0));
    let mut next = [0; 3];
    for line in lines(&path) {
        let core = line["core"].as_u64().unwrap() as usize;
        let sequence = next[core];
        let id = line["id"].as_str().unwrap();
        assert!(id.ends_with(&format!("-{core}-{sequence}")), "{id}");
        next[core] += 1;
    }
    assert_eq!(next, [RECORDS; 3]);
}

#[test]
fn a_sleeping_writer_is_woken_by_a_single_record() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let (writer, mut producers) = start(path.clone(), 2, Filter::All);
    for round in 0..20 {
        // Parked for good: nothing but the push can end it.
        until("the writer sleeps", || writer.shared.is_asleep());
        assert!(producers[round % 2].push(record(0, round as u64, Cause::Reset)));
        until("the line", || lines(&path).len() == round + 1);
    }
    writer.close(PATIENCE);
}

#[test]
fn filters() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let (writer, mut producers) = start(path.clone(), 1, Filter::Errors);
    for cause in Cause::ALL {
        assert!(producers[0].push(record(0, 0, cause)));
    }
    writer.close(PATIENCE);
    let unclean = Cause::ALL.iter().filter(|cause| !cause.is_clean());
    assert_eq!(lines(&path).len(), unclean.count());

    let never_made = directory.path().join("off.log");
    let (writer, mut producers) = start(never_made.clone(), 1, Filter::Off);
    for sequence in 0..1_000 {
        assert!(producers[0].push(record(0, sequence, Cause::Reset)));
    }
    assert_eq!(writer.close(PATIENCE).lines_written_total, 0);
    assert!(!never_made.exists());
}

#[test]
fn a_blocked_pipe_fills_the_queue_and_recovers_without_a_torn_line() {
    let directory = tempfile::tempdir().unwrap();
    let (path, reader) = fifo(directory.path());
    let (writer, mut producers) = start(path, 1, Filter::All);
    let deadline = Instant::now() + PATIENCE;
    let mut pushed = 0;
    // Full for good: pipe, buffer and queue.
    let mut refused_in_a_row = 0;
    while refused_in_a_row < 100 {
        assert!(Instant::now() < deadline);
        if producers[0].push(record(0, pushed, Cause::Reset)) {
            pushed += 1;
            refused_in_a_row = 0;
        } else {
            refused_in_a_row += 1;
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    until("the stall is seen", || writer.monitor().stats().stalled);
    let reading = std::thread::spawn(move || {
        let mut lines = BufReader::new(reader).lines();
        for sequence in 0..pushed {
            let line = lines.next().unwrap().unwrap();
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            let id = value["id"].as_str().unwrap();
            assert!(id.ends_with(&format!("-0-{sequence}")), "{id}");
        }
    });
    until("everything is written", || {
        writer.monitor().stats().lines_written_total == pushed
    });
    assert!(!writer.monitor().stats().stalled);
    reading.join().unwrap();
    assert_eq!(writer.close(PATIENCE).lines_abandoned, Some(0));
}

#[test]
fn a_new_file_begins_with_a_whole_line() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _reader) = fifo(directory.path());
    let (writer, mut producers) = start(path.clone(), 1, Filter::All);
    let mut pushed = 0;
    until("the pipe is full, in the middle of a line", || {
        while producers[0].push(record(0, pushed, Cause::Reset)) {
            pushed += 1;
        }
        writer.monitor().stats().stalled
    });
    std::fs::remove_file(&path).unwrap();
    writer.reopen();
    until("the new file is written", || !lines(&path).is_empty());
    let report = writer.close(PATIENCE);
    assert_eq!(report.lines_abandoned, Some(0));
    // `lines` parses each one.
    let first = lines(&path)[0]["id"].as_str().unwrap().to_owned();
    let first: u64 = first.rsplit('-').next().unwrap().parse().unwrap();
    assert_eq!(lines(&path).len() as u64, pushed - first);
}

#[test]
fn close_is_bounded_when_the_pipe_is_blocked() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _reader) = fifo(directory.path());
    let (writer, mut producers) = start(path, 1, Filter::All);
    let mut pushed = 0;
    until("the queue is full", || {
        while producers[0].push(record(0, pushed, Cause::Reset)) {
            pushed += 1;
        }
        writer.monitor().stats().stalled
    });
    let start = Instant::now();
    let report = writer.close(Duration::from_millis(50));
    assert!(start.elapsed() < PATIENCE);
    let abandoned = report.lines_abandoned.expect("the thread ended");
    assert!(abandoned > 0);
    assert_eq!(report.lines_written_total + abandoned, pushed);
}

#[test]
fn a_full_disk_and_a_lost_reader_do_not_end_the_writer() {
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: no /dev/full here");
        return;
    }
    let (writer, mut producers) = start(PathBuf::from("/dev/full"), 1, Filter::All);
    assert!(producers[0].push(record(0, 0, Cause::Reset)));
    until("the failure is seen", || writer.monitor().stats().stalled);
    until("the queue is full", || {
        !producers[0].push(record(0, 0, Cause::Reset))
    });
    let report = writer.close(Duration::from_millis(50));
    assert_eq!(report.lines_written_total, 0);
    assert!(report.lines_abandoned.unwrap() > 64);

    // EPIPE, then a reader again.
    let directory = tempfile::tempdir().unwrap();
    let (path, reader) = fifo(directory.path());
    let (writer, mut producers) = start(path.clone(), 1, Filter::All);
    drop(reader);
    assert!(producers[0].push(record(0, 0, Cause::Reset)));
    until("the failure is seen", || writer.monitor().stats().stalled);
    let reader = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert!(line.contains("-0-0\""), "{line}");
    assert_eq!(writer.close(PATIENCE).lines_abandoned, Some(0));
}

#[test]
fn reopen_follows_a_rename_and_keeps_the_old_file_when_it_cannot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let old = directory.path().join("access.log.1");
    let (writer, mut producers) = start(path.clone(), 1, Filter::All);
    assert!(producers[0].push(record(0, 0, Cause::Reset)));
    std::fs::rename(&path, &old).unwrap();
    writer.reopen();
    until("the new file", || path.exists());
    assert!(producers[0].push(record(0, 1, Cause::Reset)));
    until("the second line", || lines(&path).len() == 1);
    assert_eq!(lines(&old).len(), 1, "the first stays in the old file");

    std::fs::rename(&path, directory.path().join("access.log.2")).unwrap();
    std::fs::create_dir(&path).unwrap();
    writer.reopen();
    until("the request is taken", || {
        !writer.shared.reopen_is_requested()
    });
    assert!(producers[0].push(record(0, 2, Cause::Reset)));
    writer.close(PATIENCE);
    assert_eq!(lines(&directory.path().join("access.log.2")).len(), 2);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let error = LogWriter::start(Options {
        cores: 1,
        queue_records: 1,
        filter: Filter::All,
        target: Target::File(directory.path().join("missing/access.log")),
        names: Names::default(),
        nonce: 0,
    })
    .err()
    .unwrap()
    .to_string();
    assert!(error.contains("missing/access.log"), "{error}");
    assert!(error.contains("log.access_file"), "{error}");
}

#[test]
fn log_files_are_closed_on_exec() {
    let directory = tempfile::tempdir().unwrap();
    let sink = Sink::open(&Target::File(directory.path().join("access.log"))).unwrap();
    let Sink::File(file) = &sink else {
        panic!("a file is a file")
    };
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    assert_ne!(flags & libc::O_CLOEXEC, 0, "{info}");
}
