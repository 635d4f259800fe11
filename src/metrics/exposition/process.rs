//! The process as a whole.

use super::page::{Page, escaped, seconds};
use crate::metrics::Scrape;

pub(super) fn process(page: &mut Page, scrape: &Scrape<'_>) {
    let process = &scrape.process;
    page.gauge("corelay_build_info", "The running version; always 1.");
    page.sample(&format!("version=\"{}\"", escaped(scrape.version)), 1);
    page.gauge("corelay_uptime_seconds", "Time since start.");
    page.sample("", seconds(process.uptime));
    page.gauge("corelay_process_open_fds", "Open file descriptors.");
    page.sample("", process.open_fds);
    page.gauge("corelay_process_max_fds", "Limit on open file descriptors.");
    page.sample("", process.max_fds);
    page.gauge("corelay_process_resident_memory_bytes", "Resident memory.");
    page.sample("", process.resident_memory_bytes);
    page.gauge("corelay_process_threads", "Threads.");
    page.sample("", process.threads);
    page.counter(
        "corelay_process_cpu_seconds_total",
        "User and system CPU time.",
    );
    page.sample("", seconds(process.cpu));
    page.counter(
        "corelay_listen_overflows_total",
        "Connections that an accept queue had no room for, in the whole network namespace.",
    );
    page.sample("", process.listen_overflows_total);
    page.gauge(
        "corelay_ring_feature",
        "1 if this feature of io_uring is in use, 0 if the kernel lacks it.",
    );
    for (feature, present) in scrape.ring_features {
        page.sample(
            &format!("feature=\"{}\"", escaped(feature)),
            u8::from(*present),
        );
    }
    page.gauge(
        "corelay_core_stale",
        "1 if the core did not answer this scrape in time and its series are from an earlier one.",
    );
    for (index, core) in scrape.cores.iter().enumerate() {
        page.sample(
            &format!("core=\"{}\"", core.core),
            u8::from(scrape.is_stale(index)),
        );
    }
    page.counter(
        "corelay_access_log_lines_written_total",
        "Access-log lines that the kernel took.",
    );
    page.sample("", process.access_log_lines_written_total);
    page.gauge(
        "corelay_access_log_stalled",
        "1 while the access log's target takes nothing (disk full, pipe closed or blocked).",
    );
    page.sample("", u8::from(process.access_log_stalled));
    page.counter(
        "corelay_access_log_dropped_total",
        "Access-log lines dropped because the core's queue was full.",
    );
    page.per_core(scrape, |core| core.access_log_dropped_total);
}
