//! `limits.bandwidth` of a listener: how fast bytes may go through, each direction by itself.

use crate::config::limits::{BANDWIDTH_BYTES, DEFAULT_LIMITS};
use crate::config::model::{Bandwidth, Throughput};
use crate::config::raw::Value;
use crate::config::read::{Cursor, Report};

pub(super) const BANDWIDTH_KEYS: [&str; 2] = ["connection", "listener"];
pub(super) const THROUGHPUT_KEYS: [&str; 2] = ["upload", "download"];

pub(super) fn read(report: &mut Report<'_>, at: &Cursor<'_>) -> Bandwidth {
    let default = DEFAULT_LIMITS.bandwidth;
    if report.is_off(at) {
        return default;
    }
    if let Value::Scalar(_) = at.node.value {
        report.add(
            at.place(),
            "does not say whose bandwidth it is",
            "write { connection: SIZE } for each connection, { listener: SIZE } for all together, or off",
        );
        return default;
    }
    let Some(section) = report.section(at, &BANDWIDTH_KEYS) else {
        return default;
    };
    let mut part = |key, default| {
        let at = section.get(key);
        at.map_or(default, |at| throughput(report, at))
    };
    Bandwidth {
        connection: part("connection", default.connection),
        listener: part("listener", default.listener),
    }
}

/// One size for each direction, or a section that tells them apart.
fn throughput(report: &mut Report<'_>, at: &Cursor<'_>) -> Throughput {
    if let Value::Scalar(_) = at.node.value {
        let both = report.size_or_off(at, &BANDWIDTH_BYTES);
        return Throughput {
            upload: both,
            download: both,
        };
    }
    let section = report.section(at, &THROUGHPUT_KEYS);
    let mut way = |key| {
        let at = section.as_ref()?.get(key)?;
        report.size_or_off(at, &BANDWIDTH_BYTES)
    };
    Throughput {
        upload: way("upload"),
        download: way("download"),
    }
}
