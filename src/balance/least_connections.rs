//! Least connections: the server that would have the fewest for its share with one more.

use super::Session;
use super::pool::Pool;
use crate::units::ServerId;

/// Where the next comparison begins, so that equally loaded servers take turns.
#[derive(Clone, Debug)]
pub(super) struct LeastConnections {
    next: usize,
}

impl LeastConnections {
    pub(super) fn new(offset: usize) -> Self {
        Self { next: offset }
    }

    /// The position of the server with the least (load + 1) / share among those not tried.
    ///
    /// With one more than its load: else all idle servers were equal, whatever their weights.
    pub(super) fn pick(
        &mut self,
        pool: &Pool,
        session: &Session<'_>,
        load: impl Fn(ServerId) -> u32,
    ) -> Option<usize> {
        let count = pool.len();
        let start = self.next % count;
        let mut best: Option<(usize, u64, u64)> = None;
        for at in (start..count).chain(0..start) {
            let server = &pool.servers()[at];
            if session.tried.contains(&server.id) {
                continue;
            }
            let load = u64::from(load(server.id)) + 1;
            let share = server.share(session.now_us);
            // a / b < c / d without a division; the factors have 33 and 17 bits.
            if best.is_none_or(|(_, least, of)| load * of < least * share) {
                best = Some((at, load, share));
            }
        }
        let (at, ..) = best?;
        self.next = at + 1;
        Some(at)
    }
}
