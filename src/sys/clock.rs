//! The monotonic clock, in microseconds. The only wall clock in the program is the one that the
//! access log prints.

use std::time::Duration;

/// A duration in the unit of [`now_us`]; what is too long for it is longer than any process lives.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}

/// Microseconds of `CLOCK_MONOTONIC`; the origin is arbitrary, the same for all threads.
pub fn now_us() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that outlives the call, and CLOCK_MONOTONIC always exists.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(
        result, 0,
        "clock_gettime(CLOCK_MONOTONIC) cannot fail with valid arguments"
    );
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
