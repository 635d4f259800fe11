//! Whether this host can do what the configuration asks for, and how it is told where it cannot.

use super::RunError;
use crate::config::Config;
use crate::config::model::Workers;
use crate::ring::RingError;
use crate::ring::zero_copy::ZERO_COPY_MIN_BYTES;
use crate::sys::limits::KernelVersion;
use crate::sys::{affinity, limits, probe};
use crate::units::CoreId;
use crate::worker::StartError;

/// The features of this host's io_uring, or why it cannot be used.
pub(super) fn check_host() -> Result<Vec<(&'static str, bool)>, RunError> {
    let features = probe::io_uring().map_err(|blocked| RunError::HostUnfit(blocked.to_string()))?;
    if let Some(missing) = features
        .iter()
        .find(|feature| feature.needed && !feature.present)
    {
        return Err(RunError::HostUnfit(format!(
            "io_uring lacks {} ({}), which Linux has since {}; nothing was started; run Linux {} or newer",
            missing.name,
            missing.purpose,
            missing.since,
            KernelVersion::MINIMUM
        )));
    }
    Ok(features
        .iter()
        .map(|feature| (feature.name, feature.present))
        .collect())
}

const _: () = assert!(ZERO_COPY_MIN_BYTES == crate::config::limits::ZERO_COPY_MIN_BYTES);

/// Zero-copy sends need what no other part does; the message says how to do without.
pub(super) fn check_zero_copy(
    config: &Config,
    features: &[(&'static str, bool)],
) -> Result<(), RunError> {
    if config.relay.zero_copy_send && !features.contains(&("send_zc", true)) {
        return Err(RunError::HostUnfit(
            "relay.zero_copy_send needs SEND_ZC with usage reports, which Linux has since 6.2; nothing was started; run Linux 6.2 or newer, or set it to false".to_owned(),
        ));
    }
    Ok(())
}

/// A core that could not start, in the words of the probe where the kernel refused a ring.
pub(super) fn core_failed(core: CoreId, error: StartError) -> RunError {
    if let StartError::Ring(
        RingError::Setup(source) | RingError::BufferRing(source) | RingError::Slab(source),
    )
    | StartError::Runtime(source) = &error
        && let Some(errno) = source.raw_os_error()
    {
        let blocked = probe::classify(errno, &probe::Surroundings::read());
        return RunError::HostUnfit(format!("core {core}: {blocked}"));
    }
    if let StartError::Ring(error @ RingError::FixedBuffers { bytes, .. }) = &error {
        let limit = limits::locked_memory().map_or(0, |limit| limit.soft);
        return RunError::HostUnfit(format!(
            "core {core}: {error} (RLIMIT_MEMLOCK is {limit} bytes); relay.zero_copy_send pins that much memory on each core; nothing was started; set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited` (at least {} KiB per core), lower buffers.per_core, or set relay.zero_copy_send to false",
            bytes / 1024
        ));
    }
    RunError::Core { core, error }
}

pub(super) fn out_of_fds(error: std::io::Error) -> RunError {
    RunError::HostUnfit(format!(
        "{error}; nothing was started; raise the limit on open files (LimitNOFILE, ulimit -n)"
    ))
}

pub(super) fn choose_cpus(workers: &Workers) -> Result<Vec<usize>, RunError> {
    let allowed = affinity::allowed_cpus();
    if allowed.is_empty() {
        return Err(RunError::HostUnfit(
            "the affinity mask of this process cannot be read; nothing was started; run it without a seccomp filter on sched_getaffinity".to_owned(),
        ));
    }
    let listed = |cpus: &[usize]| {
        let text: Vec<_> = cpus.iter().map(usize::to_string).collect();
        text.join(", ")
    };
    match workers {
        Workers::Auto => Ok(allowed),
        Workers::Count(count) if *count <= allowed.len() => Ok(allowed[..*count].to_vec()),
        Workers::Count(count) => Err(RunError::HostUnfit(format!(
            "workers: {count} cores are asked for and this process may use {} (CPUs {}); nothing was started; lower `workers` or widen the affinity mask (CPUAffinity, taskset)",
            allowed.len(),
            listed(&allowed)
        ))),
        Workers::Cpus(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            None => Ok(cpus.clone()),
            Some(missing) => Err(RunError::HostUnfit(format!(
                "workers: CPU {missing} is not among those this process may use ({}); nothing was started; change `workers` or widen the affinity mask (CPUAffinity, taskset)",
                listed(&allowed)
            ))),
        },
    }
}
