//! A rate with a burst: so many tokens per second, and so many at once.
//!
//! ```text
//! granted(t)   tokens of the rate from the start of time to t, less the burst at first
//!      │            ╱
//!      │          ╱  } level: what may be taken now, at most the burst
//!      │        ╱────── used   ──> used only grows, by what is taken;
//!      │      ╱                    a full bucket lifts it to granted - burst
//!      └──────────────────> t
//! ```
//!
//! The state is one number, `used`: how far along the rate the owner has come. What was granted is
//! computed from the time itself and not added up, so that no rounding is ever added to another:
//! nothing drifts, however small the steps. One number also is what a compare-exchange can replace,
//! so that cores share a bucket without a lock.
//!
//! Both count in *units* of a token, as fine as 64 bits allow, and in a circle of 2^64 units: only
//! their difference counts. See [`Rate::new`] for what that promises.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// The wait for more tokens than the burst: they will never be there at once.
pub const NEVER_US: u64 = u64::MAX;

/// How long a bucket may stay untouched, in microseconds: 8.9 years. After it, it may refuse for as
/// long again.
pub const UNTOUCHED_MAX_US: u64 = 1 << 48;

const SECOND_US: u64 = 1_000_000;
/// Units granted in [`UNTOUCHED_MAX_US`] at most; with those of the burst, a difference in units
/// fits in an `i64`.
const UNITS_UNTOUCHED_MAX: u64 = 1 << 62;
/// Units in the largest burst.
const UNITS_BURST_MAX: u64 = 1 << 61;
/// Largest product of rate and units per token that keeps to the above.
const UNITS_PER_SECOND_MAX: u64 = UNITS_UNTOUCHED_MAX / UNTOUCHED_MAX_US * SECOND_US;

/// Tokens per second, and the most that may be taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units per second times `token_divisor`: units granted in a time are
    /// `time_us * units_per_second / unit_us`.
    units_per_second: u64,
    /// 10^6 times `token_divisor`.
    unit_us: u64,
    /// A token is `token_units / token_divisor` units; one of the two is 1.
    token_units: u64,
    token_divisor: u64,
    burst_units: u64,
    burst: u64,
}

impl Rate {
    /// `per_second` tokens in every second, at most `burst` at once.
    ///
    /// From any microsecond to any later one, at most `burst + per_second * seconds` tokens are
    /// taken, and two units. The unit is so small that each microsecond brings a whole number of
    /// them, and then nothing is rounded at all, for any rate up to 16,384 per second and for round
    /// ones far above. Otherwise it is a fraction of a token, or one; above 1.6 * 10^10 per second
    /// (131 Gbit/s of bytes) or a burst of 2^61 it is more than one token, and takings are rounded
    /// up to it.
    pub fn new(per_second: NonZeroU64, burst: NonZeroU64) -> Self {
        let (per_second, burst) = (per_second.get(), burst.get());
        let exact = SECOND_US / greatest_common_divisor(per_second, SECOND_US);
        let fitting = (UNITS_PER_SECOND_MAX / per_second).min(UNITS_BURST_MAX / burst);
        let token_divisor = per_second
            .div_ceil(UNITS_PER_SECOND_MAX)
            .max(burst.div_ceil(UNITS_BURST_MAX));
        let token_units = exact.min(fitting).max(1);
        Self {
            units_per_second: per_second * token_units,
            unit_us: SECOND_US * token_divisor,
            token_units,
            token_divisor,
            burst_units: burst.div_ceil(token_divisor) * token_units,
            burst,
        }
    }

    /// Most tokens that may be taken at once.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// `used` of a bucket that is full at `now_us`.
    pub(super) fn full(&self, now_us: u64) -> u64 {
        self.granted(now_us).0.wrapping_sub(self.burst_units)
    }

    /// Takes `n` tokens: `used` after it, or the microseconds until they are there.
    pub(super) fn take(&self, used: u64, now_us: u64, n: u64) -> Result<u64, u64> {
        if n > self.burst {
            return Err(NEVER_US);
        }
        if n == 0 {
            return Ok(used);
        }
        let cost = self.cost(n);
        let level = self.level(used, now_us);
        if level < cost {
            return Err(self.wait_us(now_us, level.abs_diff(cost)));
        }
        let left = level.abs_diff(cost);
        Ok(self.granted(now_us).0.wrapping_sub(left))
    }

    /// Takes `n` tokens whether they are there or not: `used` after it, and the microseconds until
    /// they and all that were taken before them are there.
    fn book(&self, used: u64, now_us: u64, n: u64) -> (u64, u64) {
        let level = self.level(used, now_us);
        let left = level.saturating_sub(self.cost(n));
        let next = self.granted(now_us).0.wrapping_sub(left.cast_unsigned());
        let wait_us = if left < 0 {
            self.wait_us(now_us, left.unsigned_abs())
        } else {
            0
        };
        (next, wait_us)
    }

    /// Units of `n` tokens, at most the burst, rounded up.
    fn cost(&self, n: u64) -> i64 {
        let units = n.min(self.burst).div_ceil(self.token_divisor) * self.token_units;
        i64::try_from(units).expect("at most UNITS_BURST_MAX")
    }

    /// Units of `n` tokens, at most the burst, that are given back, rounded down.
    fn refund(&self, n: u64) -> u64 {
        n.min(self.burst) / self.token_divisor * self.token_units
    }

    /// Whole tokens that can be taken now.
    fn available(&self, used: u64, now_us: u64) -> u64 {
        let level = u64::try_from(self.level(used, now_us)).unwrap_or(0);
        let tokens = level / self.token_units;
        tokens.saturating_mul(self.token_divisor).min(self.burst)
    }

    /// Microseconds until a bucket is full if nobody takes from it; 0 if it is.
    pub(super) fn full_in_us(&self, used: u64, now_us: u64) -> u64 {
        let missing = self.level(used, now_us).abs_diff(self.burst_units_i64());
        match missing {
            0 => 0,
            _ => self.wait_us(now_us, missing),
        }
    }

    /// Units that can be taken now, at most the burst. Negative where `now_us` lies before the last
    /// taking: the clocks of two cores.
    fn level(&self, used: u64, now_us: u64) -> i64 {
        let ahead = self.granted(now_us).0.wrapping_sub(used).cast_signed();
        ahead.min(self.burst_units_i64())
    }

    fn burst_units_i64(&self) -> i64 {
        i64::try_from(self.burst_units).expect("at most UNITS_BURST_MAX")
    }

    /// Units granted up to `now_us`, modulo 2^64, and what of the next one is there, in parts of
    /// `unit_us`.
    fn granted(&self, now_us: u64) -> (u64, u64) {
        let parts = u128::from(self.units_per_second) * u128::from(now_us);
        let unit = u128::from(self.unit_us);
        // The circle is meant to be cut off here.
        ((parts / unit) as u64, (parts % unit) as u64)
    }

    /// Microseconds until `missing` more units are granted.
    fn wait_us(&self, now_us: u64, missing: u64) -> u64 {
        let parts = u128::from(missing) * u128::from(self.unit_us);
        let parts = parts - u128::from(self.granted(now_us).1);
        let wait_us = parts.div_ceil(u128::from(self.units_per_second));
        // NEVER_US is for what no wait will bring.
        u64::try_from(wait_us).unwrap_or(NEVER_US).min(NEVER_US - 1)
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// A bucket of one owner: one core, one connection. It begins full.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    used: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now_us: u64) -> Self {
        let used = rate.full(now_us);
        Self { rate, used }
    }

    /// Takes `n` tokens, or none.
    ///
    /// # Errors
    /// The microseconds until `n` tokens will be there, if none is taken before;
    /// [`NEVER_US`] for more than the burst.
    pub fn try_take(&mut self, now_us: u64, n: u64) -> Result<(), u64> {
        self.used = self.rate.take(self.used, now_us, n)?;
        Ok(())
    }

    /// Takes `n` tokens, at most the burst, of now or of later: the microseconds until they are there.
    /// What is booked after them comes after them.
    pub fn book(&mut self, now_us: u64, n: u64) -> u64 {
        let (next, wait_us) = self.rate.book(self.used, now_us, n);
        self.used = next;
        wait_us
    }

    /// Takes what is there, at most `most` tokens: how many, perhaps 0.
    pub fn take_up_to(&mut self, now_us: u64, most: u64) -> u64 {
        let n = self.available(now_us).min(most);
        let taken = self.try_take(now_us, n);
        debug_assert!(taken.is_ok(), "what is available can be taken");
        n
    }

    /// Gives back tokens that were taken and not used: fewer bytes came than there was room for. The
    /// bucket holds at most its burst after it.
    pub fn give_back(&mut self, now_us: u64, n: u64) {
        let units = i64::try_from(self.rate.refund(n)).expect("at most the burst");
        let level = self.rate.level(self.used, now_us) + units;
        let level = level.min(self.rate.burst_units_i64());
        let granted = self.rate.granted(now_us).0;
        self.used = granted.wrapping_sub(level.cast_unsigned());
    }

    /// Whole tokens that could be taken now, at most the burst.
    pub fn available(&self, now_us: u64) -> u64 {
        self.rate.available(self.used, now_us)
    }

    /// Microseconds until `n` tokens are there; 0 if they are, [`NEVER_US`] for more than the burst.
    pub fn wait_us(&self, now_us: u64, n: u64) -> u64 {
        self.rate.take(self.used, now_us, n).err().unwrap_or(0)
    }
}

/// A bucket that all cores take from, without a lock. It begins full.
///
/// Exact: whatever the threads do at once, together they take no more than [`Rate::new`] promises;
/// what is booked counts when its wait is over.
/// A core whose clock is a little behind finds a little less in it, and takes nothing from later.
#[derive(Debug)]
pub struct SharedBucket {
    rate: Rate,
    used: AtomicU64,
}

impl SharedBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now_us: u64) -> Self {
        let used = AtomicU64::new(rate.full(now_us));
        Self { rate, used }
    }

    /// Takes `n` tokens, or none.
    ///
    /// # Errors
    /// The microseconds until `n` tokens will be there, if none is taken before;
    /// [`NEVER_US`] for more than the burst.
    pub fn try_take(&self, now_us: u64, n: u64) -> Result<(), u64> {
        // Relaxed: the bucket protects no other memory.
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let next = self.rate.take(used, now_us, n)?;
            match self
                .used
                .compare_exchange_weak(used, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(now) => used = now,
            }
        }
    }

    /// Takes `n` tokens, at most the burst, of now or of later: the microseconds until they are there.
    ///
    /// First come, first served over all cores: what is booked after them comes after them, whoever
    /// books it, so that nobody waits for more than what others had booked before.
    pub fn book(&self, now_us: u64, n: u64) -> u64 {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let (next, wait_us) = self.rate.book(used, now_us, n);
            match self
                .used
                .compare_exchange_weak(used, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return wait_us,
                Err(now) => used = now,
            }
        }
    }

    /// Gives back tokens that were taken or booked and are not used. Who booked behind them still comes
    /// when it was told; the next to book comes earlier. A full bucket holds its burst after it.
    pub fn give_back(&self, n: u64) {
        self.used.fetch_sub(self.rate.refund(n), Ordering::Relaxed);
    }

    /// Whole tokens that could be taken now, at most the burst.
    pub fn available(&self, now_us: u64) -> u64 {
        let used = self.used.load(Ordering::Relaxed);
        self.rate.available(used, now_us)
    }
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
