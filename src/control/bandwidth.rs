//! From the configuration to the limits of bandwidth that the cores share.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::config::Config;
use crate::config::model::{Bandwidth, Listener};
use crate::policy::bucket::Rate;
use crate::relay::bandwidth::{self, Way};
use crate::sys::clock;

/// Of a second: what may be moved at once after a pause, and at least a buffer.
const BURST_PARTS: u64 = 10;
/// Of a second: what a connection asks for at once of its own limit. Fewer and longer waits cost less …
const CONNECTION_TURN_PARTS: u64 = 20;
/// … and are not spent on less than a segment, in bytes.
const CONNECTION_TURN_MIN_BYTES: u64 = 1 << 10;
/// Of a second: the same of the limit of all, and at least a buffer. The longest wait is such a turn of
/// every other connection.
const LISTENER_TURN_PARTS: u64 = 500;

/// The limits, by listener; `None` for one without.
pub(super) fn limits(config: &Config) -> Vec<Option<Arc<bandwidth::Bandwidth>>> {
    let buffer_bytes = config.buffers.size_bytes.into();
    let of = |listener: &Listener| {
        let Bandwidth {
            connection,
            listener,
        } = listener.limits.bandwidth;
        let ways = [
            (connection.upload, listener.upload),
            (connection.download, listener.download),
        ];
        let is_limited = ways.iter().any(|it| it.0.is_some() || it.1.is_some());
        let ways = ways.map(|(connection, listener)| way(connection, listener, buffer_bytes));
        is_limited.then(|| Arc::new(bandwidth::Bandwidth { ways }))
    };
    config.listeners.iter().map(of).collect()
}

fn way(connection: Option<u64>, listener: Option<u64>, buffer_bytes: u64) -> Way {
    let rate = |per_second: u64| {
        let burst = (per_second / BURST_PARTS).max(buffer_bytes);
        let number = |it| NonZeroU64::new(it).unwrap_or(NonZeroU64::MIN);
        Rate::new(number(per_second), number(burst))
    };
    let own = connection.map(|it| (it / CONNECTION_TURN_PARTS).max(CONNECTION_TURN_MIN_BYTES));
    let of_all = listener.map(|it| (it / LISTENER_TURN_PARTS).max(buffer_bytes));
    let turn = own.into_iter().chain(of_all).min().unwrap_or(u64::MAX);
    Way::new(
        connection.map(rate),
        listener.map(rate),
        u32::try_from(turn).unwrap_or(u32::MAX),
        clock::now_us(),
    )
}
