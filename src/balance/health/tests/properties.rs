//! Random sequences of checks, traffic and changes of the list.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Check(u16, CheckOutcome),
    Observe(u16, Observation),
    Wait(u64),
    Servers(u16),
}

fn outcome() -> impl Strategy<Value = CheckOutcome> {
    prop_oneof![
        3 => Just(CheckOutcome::Passed),
        3 => Just(CheckOutcome::Failed(CheckFailure::Timeout)),
        1 => Just(CheckOutcome::NotMade(LocalFault::Ports)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let observation = prop_oneof![
        1 => Just(Observation::Connected),
        1 => Just(Observation::Served),
        6 => Just(Observation::Failed(ServerFault::Connect)),
        6 => Just(Observation::Failed(ServerFault::EarlyReset)),
    ];
    prop_oneof![
        4 => (0u16..12, outcome()).prop_map(|(server, outcome)| Step::Check(server, outcome)),
        24 => (0u16..12, observation).prop_map(|(server, seen)| Step::Observe(server, seen)),
        3 => (0u64..20 * SECOND_US).prop_map(Step::Wait),
        1 => (1u16..12).prop_map(Step::Servers),
    ]
}

fn apply(health: &mut UpstreamHealth, step: &Step, now_us: &mut u64) -> Vec<Transition> {
    match *step {
        Step::Check(server, outcome) => health
            .checked(ServerId(server), &result(outcome, *now_us))
            .into_iter()
            .collect(),
        Step::Observe(server, seen) => health
            .observed(ServerId(server), seen, *now_us)
            .into_iter()
            .collect(),
        Step::Wait(us) => {
            *now_us += us;
            health.expire(*now_us)
        }
        Step::Servers(count) => health.set_servers(&servers(count), *now_us),
    }
}

/// The documented limit, by another way of counting.
fn most_ejected(servers: usize, percent: usize) -> usize {
    match servers {
        0 | 1 => 0,
        _ if percent == 0 => 0,
        _ => (servers * percent / 100).max(1).min(servers - 1),
    }
}

proptest! {
    #[test]
    fn no_more_are_ejected_than_allowed_and_every_change_is_told_once(
        steps in prop::collection::vec(step(), 1..400),
        count in 1u16..12,
        percent in 0u8..=100,
        active in any::<bool>(),
    ) {
        let options = Options {
            active: active.then_some(ACTIVE),
            passive: Some(Passive { max_ejected_percent: percent, ..PASSIVE }),
        };
        let mut health = UpstreamHealth::new(&servers(count), options, 0);
        let mut now_us = 0;
        let mut told: HashMap<ServerId, Status> = HashMap::new();
        for step in &steps {
            let available = health.states().filter(|(_, state)| state.up).count();
            let transitions = apply(&mut health, step, &mut now_us);
            for transition in transitions {
                prop_assert_ne!(transition.from, transition.to);
                let before = told.insert(transition.server, transition.to);
                prop_assert!(before.is_none_or(|status| status == transition.from));
                let was_ejected = transition.to == Status::Ejected
                    && transition.from.takes_connections();
                prop_assert!(!was_ejected || available > 1, "the last one was ejected");
            }
            // Those that went away, and came back or not, begin anew.
            told.retain(|&server, _| health.state(server).is_some());
            for (server, state) in health.states() {
                let before = *told.entry(server).or_insert(state.status);
                prop_assert_eq!(before, state.status, "a change was not told");
                prop_assert_eq!(state.up, state.status.takes_connections());
                prop_assert!(!state.up || state.ejected_until_us.is_none());
                let until_us = state.ejected_until_us.unwrap_or(now_us);
                prop_assert!(until_us <= now_us + PASSIVE.eject_max_us);
            }
            let ejected = health.states().filter(|(_, s)| s.ejected_until_us.is_some()).count();
            let most = most_ejected(health.states().count(), usize::from(percent));
            prop_assert!(ejected <= most, "{ejected} ejected, {most} allowed");
            prop_assert_eq!(ejected, health.ejections().ejected());
        }
    }

    #[test]
    fn a_verdict_turns_only_after_rise_or_fall_checks_that_agree(
        outcomes in prop::collection::vec(outcome(), 1..200),
        rise in 1u32..5,
        fall in 1u32..5,
    ) {
        let options = Options { active: Some(Active { rise, fall }), passive: None };
        let mut health = UpstreamHealth::new(&[A], options, 0);
        let mut counted: Vec<bool> = Vec::new();
        let mut was_up = true;
        for (at_us, &outcome) in outcomes.iter().enumerate() {
            let transition = health.checked(A, &result(outcome, at_us as u64));
            match outcome {
                CheckOutcome::Passed => counted.push(true),
                CheckOutcome::Failed(_) => counted.push(false),
                CheckOutcome::NotMade(_) => prop_assert_eq!(transition, None),
            }
            let up = health.state(A).unwrap().up;
            let needed = if up { rise } else { fall } as usize;
            let agree = counted.iter().rev().take_while(|&&passed| passed == up).count();
            if up != was_up && counted.len() > 1 {
                prop_assert!(agree >= needed, "turned {up} after {agree} of {needed}");
            }
            // And as soon as that many agree, it has turned.
            let against = counted.iter().rev().take_while(|&&passed| passed != up).count();
            let bound = if up { fall } else { rise } as usize;
            prop_assert!(against < bound, "still {up} after {against} of {bound}");
            was_up = up;
        }
    }

    #[test]
    fn the_next_check_is_due_within_the_jitter(
        interval_us in 1u64..100_000_000,
        fast_interval_us in 1u64..100_000_000,
        jitter_percent in 0u8..=100,
        fast in any::<bool>(),
        draw in any::<u64>(),
    ) {
        let pace = Pace { interval_us, fast_interval_us, jitter_percent };
        let delay_us = pace.delay_us(fast, draw);
        let base_us = if fast { fast_interval_us } else { interval_us };
        let swing_us = base_us * u64::from(jitter_percent) / 100;
        prop_assert!(delay_us >= (base_us - swing_us).max(1));
        prop_assert!(delay_us <= base_us + swing_us);
    }
}

#[test]
fn the_jitter_reaches_both_ends_and_keeps_the_mean() {
    let pace = Pace {
        interval_us: 1_000,
        fast_interval_us: 100,
        jitter_percent: 20,
    };
    let delays: Vec<u64> = (0..401).map(|draw| pace.delay_us(false, draw)).collect();
    assert_eq!(delays.iter().min(), Some(&800));
    assert_eq!(delays.iter().max(), Some(&1_200));
    assert_eq!(delays.iter().sum::<u64>(), 401 * 1_000);
}

/// Case 43: a server that takes and refuses connections in turn, 100 ms each.
#[test]
fn a_server_that_flaps_every_100_ms_is_mostly_left_alone() {
    const RUN_US: u64 = 600 * SECOND_US;
    const EVENT_EVERY_US: u64 = 10_000;
    let mut health = UpstreamHealth::new(&[A, B], TRAFFIC_ONLY, 0);
    let mut ejections = 0u64;
    let mut served_us = 0;
    for now_us in (0..RUN_US).step_by(EVENT_EVERY_US as usize) {
        health.expire(now_us);
        // Only a server that takes connections is tried.
        if health.state(A).unwrap().up {
            served_us += EVENT_EVERY_US;
            let seen = match (now_us / 100_000) % 2 {
                0 => Observation::Connected,
                _ => Observation::Failed(ServerFault::Connect),
            };
            ejections += u64::from(health.observed(A, seen, now_us).is_some());
        }
        health.observed(B, Observation::Connected, now_us);
        assert!(health.ejections().ejected() <= 1);
        assert!(health.state(B).unwrap().up);
    }
    // 10 + 20 + 30 s, then 35 s each, with at most 230 ms of service in between.
    assert!((17..=19).contains(&ejections), "{ejections}");
    assert!(served_us <= 20 * 230_000, "{served_us} us in service");
}
