//! Hosts that this machine is not.

use super::*;
use crate::sys::limits::KernelVersion;

fn feature(name: &'static str, needed: bool, present: bool) -> Feature {
    Feature {
        name,
        purpose: "a purpose",
        since: KernelVersion::new(6, 10),
        needed,
        present,
    }
}

/// A host on which nothing is to be said.
fn good() -> HostFacts {
    HostFacts {
        kernel_release: "6.12.9-amd64".into(),
        io_uring: Ok(vec![feature("defer_taskrun", true, true)]),
        rings_fit: Ok(()),
        open_files: Limit {
            soft: 1024,
            hard: 524_288,
        },
        open_files_used: 4,
        locked_memory: Limit {
            soft: Limit::UNLIMITED,
            hard: Limit::UNLIMITED,
        },
        may_lock_all: false,
        may_bind_low_ports: false,
        unprivileged_port_start: 1024,
        cpus: vec![0, 1, 2, 3],
        somaxconn: Some(4096),
        local_ports: Some(32_768..=60_999),
        pipe_pages_soft: Some(16_384),
        fast_open: Some(1),
    }
}

/// The verdict on one check, its text, and that no other check complains.
#[track_caller]
fn only(facts: &HostFacts, needs: &Needs, check: &str) -> (Verdict, String) {
    let findings = judge(facts, needs);
    for finding in &findings {
        let complains = finding.verdict != Verdict::Ok;
        assert_eq!(complains, finding.remedy.is_some(), "{finding:?}");
        assert_eq!(complains, finding.check == check, "{finding:?}");
    }
    let finding = findings
        .iter()
        .find(|finding| finding.check == check)
        .unwrap();
    let remedy = finding.remedy.clone().unwrap();
    (finding.verdict, format!("{} -> {remedy}", finding.found))
}

#[test]
fn a_good_host_has_only_ok_lines() {
    let findings = judge(&good(), &Needs::default());
    assert!(
        findings
            .iter()
            .all(|f| f.verdict == Verdict::Ok && f.remedy.is_none())
    );
    assert!(as_text(&findings).ends_with("\nCorelay can run here.\n"));
}

#[test]
fn an_old_kernel_fails_and_an_unknown_one_warns() {
    let with = |release: &str| HostFacts {
        kernel_release: release.into(),
        ..good()
    };
    let (verdict, text) = only(&with("5.15.0"), &Needs::default(), "kernel");
    assert_eq!(verdict, Verdict::Fail);
    assert!(text.contains("older than 6.1"), "{text}");
    assert_eq!(
        only(&with(""), &Needs::default(), "kernel").0,
        Verdict::Warn
    );
}

#[test]
fn disabled_io_uring_fails_and_names_the_sysctl() {
    let facts = HostFacts {
        io_uring: Err(Blocked::DisabledBySysctl {
            level: 2,
            group: -1,
        }),
        ..good()
    };
    let findings = judge(&facts, &Needs::default());
    let io_uring = findings.iter().find(|f| f.check == "io_uring").unwrap();
    assert_eq!(io_uring.verdict, Verdict::Fail);
    assert!(
        io_uring
            .remedy
            .as_ref()
            .unwrap()
            .contains("kernel.io_uring_disabled=0")
    );
    let rings = findings.iter().find(|f| f.check == "rings").unwrap();
    assert!(rings.found.contains("not tried"), "{rings:?}");
}

#[test]
fn a_missing_feature_fails_only_if_it_is_needed() {
    let with = |needed| HostFacts {
        io_uring: Ok(vec![feature("x", needed, false)]),
        ..good()
    };
    let (verdict, text) = only(&with(true), &Needs::default(), "x");
    assert_eq!(verdict, Verdict::Fail);
    assert!(text.contains("6.10"), "{text}");
    assert_eq!(only(&with(false), &Needs::default(), "x").0, Verdict::Warn);
}

#[test]
fn little_locked_memory_warns_and_fails_when_the_rings_do_not_fit() {
    let small = Limit {
        soft: 65_536,
        hard: 65_536,
    };
    let facts = HostFacts {
        locked_memory: small,
        ..good()
    };
    let (verdict, text) = only(&facts, &Needs::default(), "memlock");
    assert_eq!(verdict, Verdict::Warn);
    assert!(
        text.contains("64 KiB") && text.contains("LimitMEMLOCK"),
        "{text}"
    );
    let exempt = HostFacts {
        may_lock_all: true,
        ..facts
    };
    assert_eq!(worst(&judge(&exempt, &Needs::default())), Verdict::Ok);
    let too_small = HostFacts {
        rings_fit: Err(Blocked::LockedMemory {
            limit_bytes: 65_536,
        }),
        ..good()
    };
    let (verdict, text) = only(&too_small, &Needs::default(), "rings");
    assert_eq!(verdict, Verdict::Fail);
    assert!(text.contains("LimitMEMLOCK=infinity"), "{text}");
}

#[test]
fn zero_copy_sends_need_a_kernel_and_locked_memory() {
    let needs = Needs {
        pinned_bytes: Some(64 << 20),
        ..Needs::default()
    };
    let old = HostFacts {
        io_uring: Ok(vec![feature("send_zc", false, false)]),
        ..good()
    };
    let (verdict, text) = only(&old, &needs, "send_zc");
    assert_eq!(verdict, Verdict::Fail);
    assert!(text.contains("relay.zero_copy_send"), "{text}");
    assert_eq!(
        only(&old, &Needs::default(), "send_zc").0,
        Verdict::Warn,
        "only who wants it needs it"
    );
    // Four cores.
    let small = |soft| HostFacts {
        locked_memory: Limit { soft, hard: soft },
        ..good()
    };
    let (verdict, text) = only(&small(255 << 20), &needs, "memlock");
    assert_eq!(verdict, Verdict::Fail);
    assert!(
        text.contains("262144 KiB") && text.contains("LimitMEMLOCK=infinity"),
        "{text}"
    );
    let (verdict, _) = only(&small(256 << 20), &needs, "memlock");
    assert_eq!(verdict, Verdict::Warn);
}

#[test]
fn few_descriptors_warn_and_too_few_fail() {
    let with = |hard| HostFacts {
        open_files: Limit { soft: hard, hard },
        ..good()
    };
    assert_eq!(
        only(&with(1024), &Needs::default(), "nofile").0,
        Verdict::Warn
    );
    assert_eq!(
        only(&with(64), &Needs::default(), "nofile").0,
        Verdict::Fail
    );
    // More cores and listeners need more.
    let needs = Needs {
        tcp_listeners: 300,
        ..Needs::default()
    };
    assert_eq!(only(&with(1024), &needs, "nofile").0, Verdict::Fail);
}

#[test]
fn sessions_that_limits_allow_must_have_descriptors() {
    let facts = HostFacts {
        open_files: Limit {
            soft: 20_000,
            hard: 20_000,
        },
        ..good()
    };
    let allow = |sessions| Needs {
        sessions,
        ..Needs::default()
    };
    let findings = judge(&facts, &allow(9_900));
    assert!(findings.iter().all(|it| it.verdict == Verdict::Ok));
    let (verdict, text) = only(&facts, &allow(20_000), "nofile");
    assert_eq!(verdict, Verdict::Warn);
    assert!(text.contains("limits.connections allow 20000"), "{text}");
    assert!(text.contains("20000 sessions need 40080"), "{text}");
}

#[test]
fn fast_open_is_looked_at_where_it_is_asked_for() {
    use crate::sys::fast_open::{CLIENTS as CLIENT, SERVERS as SERVER};
    for (allowed, asked, expected) in [
        (1, 0, None),
        (1, CLIENT, Some(Verdict::Ok)),
        (1, SERVER, Some(Verdict::Warn)),
        (0x402, CLIENT, Some(Verdict::Warn)),
        (3, CLIENT | SERVER, Some(Verdict::Ok)),
        (2, CLIENT | SERVER, Some(Verdict::Warn)),
    ] {
        let facts = HostFacts {
            fast_open: Some(allowed),
            ..good()
        };
        let needs = Needs {
            fast_open: asked,
            ..Needs::default()
        };
        let findings = judge(&facts, &needs);
        let found = findings.iter().find(|it| it.check == "fast_open");
        assert_eq!(found.map(|it| it.verdict), expected, "{allowed} {asked}");
        if expected == Some(Verdict::Warn) {
            let (_, text) = only(&facts, &needs, "fast_open");
            let remedy = format!("tcp_fastopen={}`", allowed | asked);
            assert!(text.ends_with(&remedy), "{text}");
        }
    }
}

#[test]
fn cpus_that_are_not_there_fail() {
    let named = Needs {
        cpus: vec![0, 7],
        cores: Some(2),
        ..Needs::default()
    };
    let (verdict, text) = only(&good(), &named, "cpus");
    assert_eq!(verdict, Verdict::Fail);
    assert!(
        text.contains("0-3") && text.contains("names 7 too"),
        "{text}"
    );
    let many = Needs {
        cores: Some(5),
        ..Needs::default()
    };
    assert!(only(&good(), &many, "cpus").1.contains("to 4 at most"));
}

#[test]
fn a_low_port_needs_the_right() {
    let needs = Needs {
        lowest_port: Some(443),
        ..Needs::default()
    };
    let (verdict, text) = only(&good(), &needs, "low_ports");
    assert_eq!(verdict, Verdict::Fail);
    assert!(text.contains("CAP_NET_BIND_SERVICE"), "{text}");
    for allowed in [
        HostFacts {
            may_bind_low_ports: true,
            ..good()
        },
        HostFacts {
            unprivileged_port_start: 80,
            ..good()
        },
    ] {
        assert_eq!(worst(&judge(&allowed, &needs)), Verdict::Ok);
    }
}

#[test]
fn small_sysctls_warn() {
    let facts = HostFacts {
        somaxconn: Some(128),
        ..good()
    };
    assert!(
        only(&facts, &Needs::default(), "somaxconn")
            .1
            .contains("somaxconn=1024")
    );
    let long = Needs {
        backlog_max: 10_000,
        ..Needs::default()
    };
    assert!(
        only(&good(), &long, "somaxconn")
            .1
            .contains("somaxconn=10000")
    );
    let facts = HostFacts {
        local_ports: Some(50_000..=50_019),
        ..good()
    };
    assert!(
        only(&facts, &Needs::default(), "local_ports")
            .1
            .contains("at most 20 ")
    );
    let facts = HostFacts {
        pipe_pages_soft: Some(100),
        ..good()
    };
    assert_eq!(
        only(&facts, &Needs::default(), "pipe_pages").0,
        Verdict::Warn
    );
    let facts = HostFacts {
        pipe_pages_soft: Some(0),
        ..good()
    };
    assert_eq!(worst(&judge(&facts, &Needs::default())), Verdict::Ok);
    let facts = HostFacts {
        somaxconn: None,
        ..good()
    };
    assert_eq!(
        only(&facts, &Needs::default(), "somaxconn").0,
        Verdict::Warn
    );
}

#[test]
fn text_is_aligned_and_json_has_the_same_lines() {
    let facts = HostFacts {
        kernel_release: "5.10.0".into(),
        somaxconn: Some(128),
        ..good()
    };
    let findings = judge(&facts, &Needs::default());
    let text = as_text(&findings);
    assert!(
        text.starts_with("fail  kernel         Linux 5.10.0 is older than 6.1\n"),
        "{text}"
    );
    assert!(
        text.contains("\n                     -> boot Linux 6.1 or newer\n"),
        "{text}"
    );
    assert!(
        text.ends_with("\nCorelay cannot run here: 1 failure(s).\n"),
        "{text}"
    );
    let value = as_json(&findings);
    assert_eq!(value["verdict"], "fail");
    let checks = value["checks"].as_array().unwrap();
    assert_eq!(checks.len(), findings.len());
    assert_eq!(checks[0]["check"], "kernel");
    assert!(checks[1]["remedy"].is_null());
}

#[test]
fn this_host_can_be_judged() {
    let findings = judge(&HostFacts::read(1), &Needs::default());
    eprint!("{}", as_text(&findings));
    assert!(findings.iter().any(|finding| finding.check == "nofile"));
}
