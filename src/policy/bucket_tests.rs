use super::*;
use proptest::prelude::*;
use std::sync::Barrier;
use std::thread;

fn rate(per_second: u64, burst: u64) -> Rate {
    Rate::new(
        NonZeroU64::new(per_second).expect("a rate"),
        NonZeroU64::new(burst).expect("a burst"),
    )
}

/// The bucket of the textbook, in parts of 1/1,000,000 token: slow to outgrow 128 bits, and exact.
struct Model {
    per_second: u128,
    full: u128,
    level: u128,
    last_us: u64,
}

impl Model {
    const TOKEN: u128 = SECOND_US as u128;

    fn new(per_second: u64, burst: u64, now_us: u64) -> Self {
        let full = u128::from(burst) * Self::TOKEN;
        Self {
            per_second: u128::from(per_second),
            full,
            level: full,
            last_us: now_us,
        }
    }

    fn advance(&mut self, now_us: u64) {
        let granted = self.per_second * u128::from(now_us - self.last_us);
        self.level = self.level.saturating_add(granted).min(self.full);
        self.last_us = now_us;
    }

    fn try_take(&mut self, now_us: u64, n: u64) -> bool {
        self.advance(now_us);
        let left = self.level.checked_sub(u128::from(n) * Self::TOKEN);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

#[test]
fn grants_the_burst_then_the_rate() {
    let mut bucket = Bucket::new(rate(10, 3), 5);
    assert!((0..3).all(|_| bucket.try_take(5, 1).is_ok()));
    assert_eq!(bucket.try_take(5, 1), Err(100_000));
    assert_eq!(bucket.try_take(100_004, 1), Err(1));
    assert_eq!(bucket.try_take(100_005, 1), Ok(()));
    assert_eq!(bucket.wait_us(100_005, 3), 300_000);
    assert_eq!(bucket.try_take(100_005, 4), Err(NEVER_US));
    assert_eq!(bucket.try_take(100_005, 0), Ok(()));
    // However long it waits, it holds the burst.
    assert_eq!(bucket.available(10_000_000), 3);
}

#[test]
fn takes_what_is_there_and_back_what_was_too_much() {
    let mut bucket = Bucket::new(rate(1_000_000, 1_000), 0);
    assert_eq!(bucket.take_up_to(0, 600), 600);
    assert_eq!(bucket.take_up_to(0, 600), 400);
    assert_eq!(bucket.take_up_to(0, 600), 0);
    assert_eq!(bucket.take_up_to(7, 600), 7);
    bucket.give_back(7, 5);
    assert_eq!(bucket.available(7), 5);
    bucket.give_back(7, u64::MAX);
    assert_eq!(bucket.available(7), 1_000);
}

#[test]
fn what_is_booked_comes_in_the_order_of_the_booking() {
    let mut bucket = Bucket::new(rate(1_000, 10), 0);
    let shared = SharedBucket::new(rate(1_000, 10), 0);
    // Ten are there, then one comes per millisecond.
    for (now_us, n, wait_us) in [
        (0, 10, 0),
        (0, 5, 5_000),
        (1_000, 1, 5_000),
        (1_000, 0, 5_000),
        (7_000, 1, 0),
    ] {
        assert_eq!(bucket.book(now_us, n), wait_us, "{n} at {now_us}");
        assert_eq!(shared.book(now_us, n), wait_us, "{n} at {now_us}");
    }
    // Who only takes waits behind those who booked.
    assert_eq!(shared.book(7_000, 3), 3_000);
    assert_eq!(
        (shared.available(7_000), shared.try_take(7_000, 1)),
        (0, Err(4_000))
    );
    shared.give_back(3);
    assert_eq!(shared.try_take(8_000, 1), Ok(()));
    // More than ever was taken: the bucket is full, and not fuller.
    shared.give_back(10);
    assert_eq!(shared.available(8_000), 10);
    assert_eq!(shared.book(8_000, 11), 0, "at most the burst");
    assert_eq!(shared.book(8_000, 1), 1_000);
}

/// What each thread booked counts from when it was told to.
#[test]
fn threads_book_what_the_rate_grants_and_nobody_waits_for_ever() {
    const THREADS: u64 = 4;
    const BOOKINGS: u64 = 20_000;
    const EACH: u64 = 100;
    let (per_second, burst) = (999_983, 5_000);
    let bucket = SharedBucket::new(rate(per_second, burst), 0);
    let start = Barrier::new(THREADS as usize);
    let waits = thread::scope(|scope| {
        let book = || {
            start.wait();
            (0..BOOKINGS).map(|_| bucket.book(0, EACH)).collect()
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(book)).collect();
        let waits = threads.into_iter().map(|it| it.join().expect("no panic"));
        waits.collect::<Vec<Vec<u64>>>()
    });
    for own in &waits {
        assert!(own.is_sorted(), "a later booking was served earlier");
    }
    let mut all: Vec<u64> = waits.into_iter().flatten().collect();
    all.sort_unstable();
    for (before, wait_us) in all.into_iter().enumerate() {
        let booked = (before as u64 + 1) * EACH;
        let exact_us = (booked.saturating_sub(burst) * SECOND_US).div_ceil(per_second);
        assert_eq!(wait_us, exact_us, "booking {before}");
    }
}

#[test]
fn a_clock_that_is_a_little_behind_finds_less_and_spoils_nothing() {
    let mut bucket = Bucket::new(rate(1_000_000, 10), 1_000);
    assert_eq!(bucket.try_take(1_000, 8), Ok(()));
    assert_eq!(bucket.try_take(995, 1), Err(4));
    assert_eq!((bucket.available(995), bucket.take_up_to(995, 1)), (0, 0));
    assert_eq!(bucket.available(1_000), 2);
    assert_eq!(bucket.try_take(999, 1), Ok(()));
    assert_eq!(bucket.available(1_000), 1);
}

/// 7 per second: no time between two tokens is a whole number of microseconds.
#[test]
fn does_not_drift() {
    const TOKENS: u64 = 100_000;
    for per_second in [7, 16_383, 999_983, 3_000_000] {
        let mut bucket = Bucket::new(rate(per_second, 64), 0);
        let mut now_us = 0;
        for _ in 0..TOKENS {
            if let Err(wait_us) = bucket.try_take(now_us, 1) {
                now_us += wait_us;
                assert_eq!(bucket.try_take(now_us, 1), Ok(()), "after the wait it told");
            }
        }
        let exact_us = ((TOKENS - 64) * SECOND_US).div_ceil(per_second);
        assert_eq!(now_us, exact_us, "at {per_second} per second");
    }
}

#[test]
fn the_longest_untouched_time_leaves_it_full() {
    for (per_second, burst) in [
        (1, 1),
        (16_384, 5),
        (16_384_000_000, 1 << 61),
        (u64::MAX, u64::MAX),
    ] {
        let mut bucket = Bucket::new(rate(per_second, burst), 17);
        bucket.try_take(17, burst).expect("begins full");
        assert_eq!(bucket.available(17), 0);
        let later_us = 17 + UNTOUCHED_MAX_US;
        assert_eq!(
            bucket.available(later_us),
            burst,
            "at {per_second} per second"
        );

        let mut bucket = Bucket::new(rate(per_second, burst), 17);
        bucket.give_back(17, burst);
        assert_eq!(bucket.available(later_us), burst, "given back to when full");
    }
}

/// Every taking is weighed against the one clock below: threads see it a little late, at random.
#[test]
fn threads_together_take_what_the_rate_grants() {
    const THREADS: u64 = 4;
    const UNTIL_US: u64 = 50_000;
    // A burst long enough that the threads run side by side while it lasts.
    let (per_second, burst) = (999_983, 400_000);
    let bucket = SharedBucket::new(rate(per_second, burst), 0);
    let clock_us = AtomicU64::new(0);
    let taken = AtomicU64::new(0);
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                loop {
                    let now_us = clock_us.load(Ordering::SeqCst);
                    match bucket.try_take(now_us, 1) {
                        Ok(()) => _ = taken.fetch_add(1, Ordering::SeqCst),
                        Err(_) if now_us >= UNTIL_US => break,
                        Err(_) => _ = clock_us.fetch_add(1, Ordering::SeqCst),
                    }
                }
            });
        }
    });
    let end_us = clock_us.into_inner();
    let taken = taken.into_inner();
    let granted = burst + per_second * end_us / SECOND_US;
    // Each thread stopped at an empty bucket, a few ticks before the end of the clock. No tick
    // passed with a full bucket, so that nothing was lost either.
    assert!(taken <= granted, "{taken} of {granted}");
    assert!(taken + 2 * THREADS >= granted, "{taken} of {granted}");
}

fn any_magnitude() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64_u32).prop_map(|(number, shift)| (number >> shift).max(1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn is_the_bucket_of_the_textbook_where_units_are_exact(
        per_second in prop_oneof![1..16_385_u64, (1..8_000_u64).prop_map(|k| k * 1_000_000)],
        burst in 1..1_000_000_u64,
        start_us in 0..1_u64 << 50,
        steps in prop::collection::vec((0..40_u32, 0..40_u32, any::<u64>()), 1..100),
    ) {
        let mut now_us = start_us;
        let mut model = Model::new(per_second, burst, now_us);
        let mut bucket = Bucket::new(rate(per_second, burst), now_us);
        let shared = SharedBucket::new(rate(per_second, burst), now_us);
        for (time_bits, count_bits, number) in steps {
            now_us += number & ((1 << time_bits) - 1);
            let n = (number.rotate_left(32) & ((1 << count_bits) - 1)).min(burst);
            let taken = model.try_take(now_us, n);
            prop_assert_eq!(bucket.try_take(now_us, n).is_ok(), taken);
            prop_assert_eq!(shared.try_take(now_us, n).is_ok(), taken);
            let available = (model.level / Model::TOKEN) as u64;
            prop_assert_eq!((bucket.available(now_us), shared.available(now_us)), (available, available));
        }
    }

    #[test]
    fn no_rate_or_time_overflows_or_grants_too_much(
        per_second in any_magnitude(),
        burst in any_magnitude(),
        start_us in any::<u64>(),
        steps in prop::collection::vec((any_magnitude(), any_magnitude(), any::<bool>()), 1..40),
    ) {
        let rate = rate(per_second, burst);
        let mut bucket = Bucket::new(rate, start_us);
        let mut now_us = start_us;
        // What an exact bucket with a burst of two more units would grant.
        let mut model = Model::new(per_second, burst, start_us);
        let slack = 2 * u128::from(rate.token_divisor) * Model::TOKEN / u128::from(rate.token_units);
        model.full = model.full.saturating_add(slack + 1);
        model.level = model.full;
        for (step_us, n, wait) in steps {
            now_us = now_us.saturating_add(step_us.min(UNTOUCHED_MAX_US));
            let n = n.min(burst);
            let told_us = bucket.wait_us(now_us, n);
            prop_assert!(told_us != NEVER_US);
            if wait && told_us > 0 && now_us.checked_add(told_us).is_some() {
                prop_assert_eq!(bucket.wait_us(now_us + told_us - 1, n), 1, "a wait too long");
                now_us += told_us;
                prop_assert_eq!(bucket.wait_us(now_us, n), 0, "a wait too short");
            }
            if bucket.try_take(now_us, n).is_ok() {
                prop_assert!(model.try_take(now_us, n), "{} too many", n);
            }
        }
    }

    #[test]
    fn no_time_panics(
        per_second in any_magnitude(),
        burst in any_magnitude(),
        steps in prop::collection::vec((any::<u64>(), any::<u64>()), 1..40),
    ) {
        let mut bucket = Bucket::new(rate(per_second, burst), 0);
        for (now_us, n) in steps {
            let available = bucket.available(now_us);
            prop_assert!(available <= burst);
            prop_assert_eq!(bucket.take_up_to(now_us, n), available.min(n));
            bucket.give_back(now_us, n);
            _ = bucket.try_take(now_us, n);
            prop_assert!(bucket.book(now_us, n) != NEVER_US);
        }
    }
}
