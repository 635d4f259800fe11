//! A [`Record`] as one line of JSON. Pure: bytes out, no I/O, no clock.
//!
//! The fields, their units and their order are those of `docs/access-log.md`.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Names, Record, SessionId};
use crate::units::ServerId;

const SECONDS_PER_DAY: u64 = 86_400;
/// What an id without a name is rendered as. It cannot happen; a line with a hole is still better
/// than a dead log.
const UNKNOWN: &str = "\"?\"";

/// Renders records; holds the names, already quoted, and the last second's date.
pub struct Renderer {
    listeners: Vec<String>,
    upstreams: Vec<String>,
    servers: Vec<String>,
    nonce: u32,
    /// Unix time in seconds, and its text up to the seconds. Most lines share it with the line before.
    date: (u64, String),
}

impl Renderer {
    /// `nonce` is the first part of every line's `id`.
    pub fn new(names: &Names, nonce: u32) -> Self {
        let quote = |names: &Vec<String>| names.iter().map(|name| quoted(name)).collect();
        Self {
            listeners: quote(&names.listeners),
            upstreams: quote(&names.upstreams),
            servers: quote(&names.servers),
            nonce,
            date: (0, date_text(0)),
        }
    }

    /// A server has this id from now on.
    pub fn name_server(&mut self, id: ServerId, address: &str) {
        let index = usize::from(id.0);
        if self.servers.len() <= index {
            self.servers.resize(index + 1, UNKNOWN.to_owned());
        }
        self.servers[index] = quoted(address);
    }

    /// Appends one line, with its line feed.
    pub fn render(&mut self, record: &Record, out: &mut Vec<u8>) {
        self.render_identity(record, out);
        render_measures(record, out);
    }

    /// When, which one, from where to where.
    fn render_identity(&mut self, record: &Record, out: &mut Vec<u8>) {
        let core = record.core.0;
        put(out, format_args!("{{\"time\":\""));
        self.render_time(record.ended_at, out);
        let id = SessionId {
            nonce: self.nonce,
            core: record.core,
            sequence: record.sequence,
        };
        put(out, format_args!("\",\"id\":\"{id}\""));
        let listener = name(&self.listeners, record.listener.0);
        let upstream = record
            .upstream
            .map_or("null", |upstream| name(&self.upstreams, upstream.0));
        put(
            out,
            format_args!(",\"listener\":{listener},\"upstream\":{upstream},\"core\":{core}"),
        );
        match record.downstream {
            Some(address) => put(out, format_args!(",\"downstream\":\"{address}\"")),
            None => put(out, format_args!(",\"downstream\":\"unix\"")),
        }
        if let Some(proxy) = record.via {
            put(out, format_args!(",\"via\":\"{proxy}\""));
        }
        let server = record
            .server
            .map_or("null", |server| name(&self.servers, server.0));
        put(out, format_args!(",\"server\":{server}"));
    }

    /// RFC 3339, UTC, microseconds.
    fn render_time(&mut self, time: SystemTime, out: &mut Vec<u8>) {
        // A clock before 1970 is not worth more than a wrong date.
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since_epoch.as_secs() != self.date.0 {
            self.date = (since_epoch.as_secs(), date_text(since_epoch.as_secs()));
        }
        let micros = since_epoch.subsec_micros();
        put(out, format_args!("{}.{micros:06}Z", self.date.1));
    }
}

/// How long, how much, why.
fn render_measures(record: &Record, out: &mut Vec<u8>) {
    put(out, format_args!(",\"attempts\":{}", record.attempts));
    render_ms("connect_ms", record.connect_us, out);
    render_ms("first_byte_ms", record.first_byte_us, out);
    render_ms("duration_ms", Some(record.duration_us), out);
    put(
        out,
        format_args!(
            ",\"bytes_to_upstream\":{},\"bytes_to_downstream\":{}",
            record.bytes_to_upstream, record.bytes_to_downstream
        ),
    );
    let reason = record.close_reason;
    put(
        out,
        format_args!(
            ",\"close_reason\":{{\"side\":\"{}\",\"stage\":\"{}\",\"cause\":\"{}\"}}",
            reason.side.as_str(),
            reason.stage.as_str(),
            reason.cause.as_str()
        ),
    );
    match record.mover() {
        Some(mover) => put(out, format_args!(",\"mover\":\"{}\"", mover.as_str())),
        None => put(out, format_args!(",\"mover\":null")),
    }
    put(
        out,
        format_args!(
            ",\"spliced_bytes\":{},\"mover_switches\":{}}}\n",
            record.spliced_bytes.unwrap_or(0),
            record.mover_switches
        ),
    );
}

/// Milliseconds with three decimals: exactly the microseconds that were measured.
fn render_ms(key: &str, value_us: Option<u64>, out: &mut Vec<u8>) {
    match value_us {
        Some(us) => put(
            out,
            format_args!(",\"{key}\":{}.{:03}", us / 1000, us % 1000),
        ),
        None => put(out, format_args!(",\"{key}\":null")),
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text)
        .expect("writing to memory does not fail");
}

fn name(names: &[String], index: u16) -> &str {
    names
        .get(usize::from(index))
        .map_or(UNKNOWN, String::as_str)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `YYYY-MM-DDThh:mm:ss` of a Unix time, in the proleptic Gregorian calendar, without leap seconds.
fn date_text(unix_seconds: u64) -> String {
    let mut day = unix_seconds / SECONDS_PER_DAY;
    let second = unix_seconds % SECONDS_PER_DAY;
    // Counting up is plain to read, and it runs at most once a second.
    let mut year = 1970;
    while day >= days_in_year(year) {
        day -= days_in_year(year);
        year += 1;
    }
    let mut month = 1;
    while day >= days_in_month(year, month) {
        day -= days_in_month(year, month);
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{:02}",
        day + 1,
        second % 60
    )
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u32) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Cause, CloseReason, MoverKind, Side, Stage};
    use crate::units::{CoreId, ListenerId, ServerId, UpstreamId};
    use std::time::Duration;

    fn names() -> Names {
        Names {
            listeners: vec!["edge".into(), "we\"ird\\ \n\u{1}name\u{2028}é".into()],
            upstreams: vec!["app".into()],
            servers: vec!["127.0.0.1:9090".into(), "unix:/run/a b.sock".into()],
        }
    }

    fn record() -> Record {
        Record {
            sequence: 42,
            core: CoreId(3),
            listener: ListenerId(0),
            upstream: Some(UpstreamId(0)),
            server: Some(ServerId(1)),
            downstream: Some("[::1]:5000".parse().unwrap()),
            via: None,
            ended_at: UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
            connect_us: Some(1_250),
            first_byte_us: None,
            duration_us: 61_000_007,
            bytes_to_upstream: u64::MAX,
            bytes_to_downstream: 0,
            attempts: 2,
            close_reason: CloseReason::new(Side::Upstream, Stage::Relay, Cause::Reset),
            spliced_bytes: Some(4_000_000),
            mover_switches: 1,
        }
    }

    fn render(record: &Record) -> String {
        let mut out = Vec::new();
        Renderer::new(&names(), 0xab).render(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_exactly_this() {
        assert_eq!(
            render(&record()),
            concat!(
                r#"{"time":"2023-11-14T22:13:20.123456Z","id":"000000ab-3-42","listener":"edge","#,
                r#""upstream":"app","core":3,"downstream":"[::1]:5000","server":"unix:/run/a b.sock","#,
                r#""attempts":2,"connect_ms":1.250,"first_byte_ms":null,"duration_ms":61000.007,"#,
                r#""bytes_to_upstream":18446744073709551615,"bytes_to_downstream":0,"#,
                r#""close_reason":{"side":"upstream","stage":"relay","cause":"reset"},"mover":"copy","spliced_bytes":4000000,"mover_switches":1}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_mover_is_the_one_that_moved_the_most() {
        let mover = |spliced_bytes, bytes_to_upstream| {
            let record = Record {
                spliced_bytes,
                bytes_to_upstream,
                bytes_to_downstream: 10,
                ..record()
            };
            record.mover().map(MoverKind::as_str)
        };
        assert_eq!(mover(None, 0), None);
        assert_eq!(mover(Some(0), 0), Some("copy"));
        assert_eq!(mover(Some(50), 100), Some("copy"));
        assert_eq!(mover(Some(60), 100), Some("splice"));
    }

    #[test]
    fn absent_values_are_null_and_names_survive_escaping() {
        let line = render(&Record {
            listener: ListenerId(1),
            server: None,
            downstream: None,
            connect_us: None,
            spliced_bytes: None,
            mover_switches: 0,
            ..record()
        });
        assert_eq!(
            line.matches('\n').count(),
            1,
            "one record is one line: {line:?}"
        );
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["listener"], names().listeners[1].as_str());
        assert_eq!(value["downstream"], "unix");
        for key in ["server", "connect_ms", "mover"] {
            assert!(value[key].is_null(), "{key} in {line}");
        }
    }

    #[test]
    fn an_id_without_a_name_does_not_stop_the_log() {
        let line = render(&Record {
            server: Some(ServerId(99)),
            ..record()
        });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["server"], "?");
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(date_text(seconds), text);
        }
    }
}
