//! The rules one by one. Random sequences are in `properties`.

mod properties;

use std::collections::HashSet;

use super::*;
use crate::outcome::{Cause, CloseReason, Side, Stage};

const SECOND_US: u64 = 1_000_000;
const A: ServerId = ServerId(0);
const B: ServerId = ServerId(1);

const ACTIVE: Active = Active { rise: 2, fall: 3 };
const PASSIVE: Passive = Passive {
    failures: 3,
    eject_us: 10 * SECOND_US,
    eject_max_us: 35 * SECOND_US,
    max_ejected_percent: 50,
};
const BOTH: Options = Options {
    active: Some(ACTIVE),
    passive: Some(PASSIVE),
};
const TRAFFIC_ONLY: Options = Options {
    active: None,
    passive: Some(PASSIVE),
};

fn servers(count: u16) -> Vec<ServerId> {
    (0..count).map(ServerId).collect()
}

fn result(outcome: CheckOutcome, at_us: u64) -> CheckResult {
    CheckResult {
        outcome,
        latency_us: 100,
        at_us,
    }
}

fn pass(health: &mut UpstreamHealth, server: ServerId, at_us: u64) -> Option<Transition> {
    health.checked(server, &result(CheckOutcome::Passed, at_us))
}

fn fail(health: &mut UpstreamHealth, server: ServerId, at_us: u64) -> Option<Transition> {
    let outcome = CheckOutcome::Failed(CheckFailure::Refused);
    health.checked(server, &result(outcome, at_us))
}

fn fault(
    health: &mut UpstreamHealth,
    server: ServerId,
    fault: ServerFault,
    at_us: u64,
) -> Option<Transition> {
    health.observed(server, Observation::Failed(fault), at_us)
}

/// As many failures as eject; the transition of the last.
fn eject(health: &mut UpstreamHealth, server: ServerId, at_us: u64) -> Transition {
    for _ in 1..PASSIVE.failures {
        assert_eq!(fault(health, server, ServerFault::Connect, at_us), None);
    }
    fault(health, server, ServerFault::Connect, at_us).expect("ejected")
}

fn status(health: &UpstreamHealth, server: ServerId) -> Status {
    health.state(server).expect("known").status
}

#[test]
fn a_proven_server_falls_and_rises_step_by_step() {
    let mut health = UpstreamHealth::new(&[A], BOTH, 0);
    assert_eq!(pass(&mut health, A, 1), None, "it was up already");
    let down = fail(&mut health, A, 2).expect("going down");
    assert_eq!((down.from, down.to), (Status::Up, Status::GoingDown));
    assert!(health.wants_fast(A) && health.state(A).unwrap().up);
    assert_eq!(fail(&mut health, A, 3), None);
    let down = fail(&mut health, A, 4).expect("down");
    let expected = Transition {
        server: A,
        from: Status::GoingDown,
        to: Status::Down,
        reason: Reason::CheckFailed(CheckFailure::Refused),
        at_us: 4,
    };
    assert_eq!(down, expected);
    assert!(!health.wants_fast(A) && !health.state(A).unwrap().up);

    assert_eq!(pass(&mut health, A, 5).unwrap().to, Status::GoingUp);
    assert_eq!(fail(&mut health, A, 6).unwrap().to, Status::Down);
    assert_eq!(pass(&mut health, A, 7).unwrap().to, Status::GoingUp);
    assert!(health.wants_fast(A) && !health.state(A).unwrap().up);
    assert_eq!(pass(&mut health, A, 8).unwrap().to, Status::Up);
    let state = health.state(A).unwrap();
    assert_eq!((state.reason, state.since_us), (Reason::CheckPassed, 8));
    assert_eq!(state.last_check, Some(result(CheckOutcome::Passed, 8)));
}

#[test]
fn the_first_check_of_a_trusted_server_decides_alone() {
    let mut health = UpstreamHealth::new(&[A, B], BOTH, 7);
    let state = health.state(A).unwrap();
    assert!(state.up, "a restarted proxy refuses nobody");
    assert_eq!((state.reason, state.since_us), (Reason::Started, 7));
    assert_eq!(fail(&mut health, A, 8).unwrap().to, Status::Down);
    pass(&mut health, B, 8);
    assert_eq!(fail(&mut health, B, 9).unwrap().to, Status::GoingDown);
}

#[test]
fn a_server_that_appears_later_waits_for_its_first_pass() {
    let mut health = UpstreamHealth::new(&[A], BOTH, 0);
    assert_eq!(health.set_servers(&servers(3), 5), []);
    assert_eq!(status(&health, B), Status::GoingUp);
    assert!(health.wants_fast(B));
    assert_eq!(pass(&mut health, B, 6).unwrap().to, Status::Up);
    assert_eq!(fail(&mut health, ServerId(2), 6).unwrap().to, Status::Down);
    assert_eq!(
        pass(&mut health, ServerId(2), 7).unwrap().to,
        Status::GoingUp
    );
}

#[test]
fn with_nothing_to_wait_with_a_new_server_is_trusted() {
    let mut health = UpstreamHealth::new(&[A], BOTH, 0);
    fail(&mut health, A, 1);
    health.set_servers(&[A, B], 2);
    assert_eq!(status(&health, B), Status::Up);

    let mut replaced = UpstreamHealth::new(&[A], BOTH, 0);
    replaced.set_servers(&[B], 1);
    assert_eq!(status(&replaced, B), Status::Up);
    assert_eq!(replaced.state(A), None);

    let mut unchecked = UpstreamHealth::new(&[A], TRAFFIC_ONLY, 0);
    unchecked.set_servers(&[A, B], 1);
    assert_eq!(status(&unchecked, B), Status::Up);
}

#[test]
fn failures_in_a_row_eject_and_time_brings_back() {
    let mut health = UpstreamHealth::new(&[A, B], TRAFFIC_ONLY, 0);
    let ejected = eject(&mut health, A, SECOND_US);
    assert_eq!((ejected.from, ejected.to), (Status::Up, Status::Ejected));
    assert_eq!(ejected.reason, Reason::ConnectFailures);
    let state = health.state(A).unwrap();
    assert!(!state.up);
    assert_eq!(state.ejected_until_us, Some(11 * SECOND_US));
    assert_eq!(health.next_expiry_us(), Some(11 * SECOND_US));
    assert_eq!(health.expire(11 * SECOND_US - 1), []);
    let back = health.expire(11 * SECOND_US);
    assert_eq!(back.len(), 1);
    assert_eq!(
        (back[0].to, back[0].reason),
        (Status::Up, Reason::EjectionOver)
    );
    assert_eq!(health.next_expiry_us(), None);
}

#[test]
fn a_success_between_breaks_the_row_of_its_kind() {
    let mut health = UpstreamHealth::new(&[A, B], TRAFFIC_ONLY, 0);
    for _ in 0..10 {
        fault(&mut health, A, ServerFault::Connect, 1);
        fault(&mut health, A, ServerFault::Connect, 1);
        health.observed(A, Observation::Connected, 1);
    }
    assert_eq!(status(&health, A), Status::Up);
    for _ in 0..10 {
        fault(&mut health, A, ServerFault::EarlyReset, 1);
        fault(&mut health, A, ServerFault::EarlyReset, 1);
        health.observed(A, Observation::Served, 1);
    }
    assert_eq!(status(&health, A), Status::Up);
    // It takes every connection, and resets it.
    let mut last = None;
    for _ in 0..3 {
        health.observed(A, Observation::Connected, 1);
        last = fault(&mut health, A, ServerFault::EarlyReset, 1);
    }
    assert_eq!(last.expect("ejected").reason, Reason::EarlyResets);
}

#[test]
fn ejections_grow_to_their_longest_and_good_service_takes_them_off() {
    let mut health = UpstreamHealth::new(&[A, B], TRAFFIC_ONLY, 0);
    let mut now_us = 0;
    let mut lengths = Vec::new();
    let mut once = |health: &mut UpstreamHealth, good_us: u64| {
        now_us += good_us;
        eject(health, A, now_us);
        let until_us = health.state(A).unwrap().ejected_until_us.unwrap();
        lengths.push((until_us - now_us) / SECOND_US);
        now_us = until_us;
        assert_eq!(health.expire(now_us).len(), 1);
    };
    for _ in 0..6 {
        once(&mut health, SECOND_US);
    }
    // The last one was 35 s: as long in service takes one off, one second less does not.
    once(&mut health, 34 * SECOND_US);
    once(&mut health, 35 * SECOND_US);
    // 35 and 30 s: two are off, so that it is the third in a row.
    once(&mut health, 65 * SECOND_US);
    once(&mut health, 1_000 * SECOND_US);
    assert_eq!(lengths, [10, 20, 30, 35, 35, 35, 35, 35, 30, 10]);
}

#[test]
fn time_that_a_server_was_down_is_no_good_service() {
    let mut health = UpstreamHealth::new(&[A, B], BOTH, 0);
    eject(&mut health, A, 0);
    health.expire(10 * SECOND_US);
    fail(&mut health, A, 11 * SECOND_US);
    for second in [500, 501] {
        pass(&mut health, A, second * SECOND_US);
    }
    eject(&mut health, A, 505 * SECOND_US);
    let until_us = health.state(A).unwrap().ejected_until_us;
    assert_eq!(until_us, Some(525 * SECOND_US), "the second in a row");
}

#[test]
fn a_passed_check_ends_an_ejection_for_connects_only_and_not_at_once() {
    let mut health = UpstreamHealth::new(&[A, B], BOTH, 0);
    pass(&mut health, A, 1);
    eject(&mut health, A, 2);
    assert_eq!(pass(&mut health, A, 3), None);
    let back = pass(&mut health, A, 4).expect("rise × 1 passes");
    assert_eq!(back.reason, Reason::EjectionEndedByChecks);
    assert_eq!(back.to, Status::Up);
    // The second in a row asks for twice as many, without a failure among them.
    eject(&mut health, A, 5);
    for at_us in [6, 7, 8] {
        assert_eq!(pass(&mut health, A, at_us), None);
    }
    assert_eq!(fail(&mut health, A, 9), None, "one of three, and ejected");
    for at_us in [10, 11, 12] {
        assert_eq!(pass(&mut health, A, at_us), None);
    }
    assert_eq!(pass(&mut health, A, 13).unwrap().to, Status::Up);

    for _ in 0..PASSIVE.failures {
        fault(&mut health, A, ServerFault::EarlyReset, 14);
    }
    for at_us in 15..100 {
        assert_eq!(
            pass(&mut health, A, at_us),
            None,
            "its checks always passed"
        );
    }
    assert_eq!(status(&health, A), Status::Ejected);
}

#[test]
fn checks_and_ejections_are_independent_and_checks_are_shown() {
    let mut health = UpstreamHealth::new(&[A, B], BOTH, 0);
    eject(&mut health, A, 1);
    let down = fail(&mut health, A, 2).expect("the first check decides");
    assert_eq!((down.from, down.to), (Status::Ejected, Status::Down));
    assert_eq!(pass(&mut health, A, 3).unwrap().to, Status::GoingUp);
    let until_us = health.state(A).unwrap().ejected_until_us.unwrap();
    assert_eq!(health.expire(until_us), [], "no change to show");
    assert_eq!(health.ejections().ejected(), 0);
    assert_eq!(pass(&mut health, A, until_us + 1).unwrap().to, Status::Up);
}

#[test]
fn what_is_ours_never_counts() {
    assert_eq!(ServerFault::of_attempt(Cause::LocalPorts), None);
    assert_eq!(ServerFault::of_attempt(Cause::LocalResources), None);
    let counted: HashSet<_> = Cause::ALL
        .into_iter()
        .filter(|&cause| ServerFault::of_attempt(cause).is_some())
        .map(Cause::as_str)
        .collect();
    let expected = [
        "refused",
        "connect_timeout",
        "unreachable",
        "reset",
        "peer_timeout",
        "socket_error",
    ];
    assert_eq!(counted, HashSet::from(expected));

    let mut health = UpstreamHealth::new(&[A], BOTH, 0);
    for local in [LocalFault::Ports, LocalFault::Resources] {
        for at_us in 0..100 {
            let outcome = CheckOutcome::NotMade(local);
            assert_eq!(health.checked(A, &result(outcome, at_us)), None);
        }
    }
    let state = health.state(A).unwrap();
    assert_eq!(state.status, Status::Up);
    assert!(state.last_check.is_some(), "but it is shown");
}

#[test]
fn only_a_reset_before_any_byte_of_an_established_connection_is_early() {
    let reset = CloseReason::new(Side::Upstream, Stage::Relay, Cause::Reset);
    assert_eq!(
        ServerFault::of_session(reset, 0),
        Some(ServerFault::EarlyReset)
    );
    assert_eq!(ServerFault::of_session(reset, 1), None);
    for (side, stage, cause) in [
        (Side::Downstream, Stage::Relay, Cause::Reset),
        (Side::Upstream, Stage::Connect, Cause::Reset),
        (Side::Upstream, Stage::Relay, Cause::Finished),
        (Side::Local, Stage::Relay, Cause::LocalResources),
    ] {
        let reason = CloseReason::new(side, stage, cause);
        assert_eq!(ServerFault::of_session(reason, 0), None, "{reason}");
    }
}

#[test]
fn the_share_is_rounded_as_documented() {
    let table = [
        (1, [0, 0, 0]),
        (2, [1, 1, 1]),
        (3, [1, 1, 2]),
        (30, [3, 15, 29]),
    ];
    for (servers, expected) in table {
        let found = [10, 50, 100].map(|percent| ejections::Ejections::new(servers, percent));
        assert_eq!(found.map(|e| e.allowed()), expected, "{servers} servers");
        assert_eq!(ejections::Ejections::new(servers, 0).allowed(), 0);
    }
    assert_eq!(ejections::Ejections::new(0, 50).allowed(), 0);
}

#[test]
fn the_last_server_that_takes_connections_stays() {
    let mut alone = UpstreamHealth::new(&[A], TRAFFIC_ONLY, 0);
    for _ in 0..100 {
        assert_eq!(fault(&mut alone, A, ServerFault::Connect, 1), None);
    }
    assert!(alone.state(A).unwrap().up);
    assert_eq!(alone.ejections().denied_total(), 98);

    let mut health = UpstreamHealth::new(&[A, B], BOTH, 0);
    fail(&mut health, A, 1);
    for _ in 0..100 {
        assert_eq!(fault(&mut health, B, ServerFault::Connect, 2), None);
    }
    // With the other one back, the next failure ejects it.
    pass(&mut health, A, 3);
    pass(&mut health, A, 4);
    assert!(fault(&mut health, B, ServerFault::Connect, 5).is_some());
}

#[test]
fn with_fewer_servers_the_ejections_that_are_too_many_end() {
    let mut health = UpstreamHealth::new(&servers(4), TRAFFIC_ONLY, 0);
    eject(&mut health, A, 10);
    eject(&mut health, B, 20);
    let back = health.set_servers(&servers(3), 30);
    assert_eq!(back.len(), 1);
    assert_eq!((back[0].server, back[0].reason), (A, Reason::FewerServers));
    assert_eq!(status(&health, B), Status::Ejected);
    // A server that goes takes its ejection along.
    assert_eq!(health.set_servers(&[A, ServerId(2)], 40), []);
    assert_eq!(health.ejections().ejected(), 0);
    // The last one is never left ejected.
    eject(&mut health, A, 50);
    assert_eq!(health.set_servers(&[A], 60).len(), 1);
}

#[test]
fn every_word_is_distinct() {
    for (index, status) in Status::ALL.iter().enumerate() {
        assert_eq!(*status as usize, index);
    }
    let words: HashSet<_> = Status::ALL.iter().map(|status| status.as_str()).collect();
    assert_eq!(words.len(), Status::ALL.len());
    let reason = Reason::CheckFailed(CheckFailure::BadStatus(503));
    assert_eq!(reason.as_str(), "check_failed");
    let failure = reason.failure().expect("a failed check");
    assert_eq!(
        (failure.as_str(), failure.status()),
        ("bad_status", Some(503))
    );
    assert_eq!(LocalFault::Ports.as_str(), Cause::LocalPorts.as_str());
    assert_eq!(
        LocalFault::Resources.as_str(),
        Cause::LocalResources.as_str()
    );
}
