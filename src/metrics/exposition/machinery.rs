//! What moves the bytes: buffers, movers, the ring, the core's loop.

use std::time::Duration;

use super::page::{Page, seconds};
use crate::metrics::{MoverMetrics, Scrape};
use crate::outcome::MoverKind;

pub(super) fn buffers(page: &mut Page, scrape: &Scrape<'_>) {
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

pub(super) fn movers(page: &mut Page, scrape: &Scrape<'_>) {
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

pub(super) fn ring(page: &mut Page, scrape: &Scrape<'_>) {
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
