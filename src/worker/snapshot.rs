//! A copy of one core's numbers, for a scrape.

use super::Core;
use crate::metrics::CoreMetrics;

impl Core {
    pub(super) fn snapshot(&self) -> CoreMetrics {
        let mut metrics = self.ledger.metrics.borrow().clone();
        for (upstream, group) in metrics.upstreams.iter_mut().zip(&self.groups) {
            upstream.queued = group.queue.len() as u64;
        }
        let mut engine = self.engine.borrow_mut();
        let waiting = engine.waiting();
        let blocked_sends_total = engine.blocked_sends_total();
        metrics.movers.pipes = engine.pipes() as u64;
        metrics.movers.pipes_held = engine.pipes_lent() as u64;
        metrics.movers.low_water_guards_total = engine.low_water_guards_total();
        let ring = engine.io();
        metrics.ring.is_multishot = ring.is_multishot();
        let zero_copy = ring.zero_copy_stats();
        metrics.movers.zero_copy_is_on = zero_copy.is_on;
        metrics.movers.zero_copy_sends_total = zero_copy.zero_copy_total;
        metrics.movers.copied_sends_total = zero_copy.copied_total;
        let stats = ring.stats();
        metrics.ring.enters_total = stats.enters_total;
        metrics.ring.submitted_total = stats.submitted_total;
        metrics.ring.completed_total = stats.completed_total;
        metrics.ring.in_flight = stats.in_flight;
        metrics.ring.sends_total = stats.sends_total;
        metrics.ring.blocked_sends_total = blocked_sends_total;
        metrics.ring.cq_overflow_total = stats.cq_overflow_total;
        let buffers = ring.buffers();
        metrics.buffers.size_bytes = u64::from(buffers.size_bytes());
        metrics.buffers.total = buffers.total() as u64;
        metrics.buffers.in_ring = buffers.in_ring() as u64;
        metrics.buffers.held = buffers.held() as u64;
        metrics.buffers.set_aside = buffers.set_aside_now() as u64;
        metrics.buffers.aside_refused_total = buffers.aside_refused_total();
        metrics.buffers.exhausted_total = buffers.exhausted_total();
        metrics.buffers.waiting = waiting as u64;
        let pump = self.pump_stats.get();
        metrics.pump.turns_total = pump.turns_total;
        metrics.pump.longest_gap_us = pump.longest_gap_us;
        metrics.pump.timers_fired_total = pump.timers_fired_total;
        metrics.pump.busy_polls_total = pump.busy_polls_total;
        metrics
    }
}
