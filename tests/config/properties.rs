//! Properties: what holds for every configuration and for every text that is nearly one.
//!
//! proptest prints a failing input, shrunk; add it to the golden files when it is mended.

use std::path::PathBuf;
use std::time::Duration;

use corelay::config;
use corelay::config::limits::{
    DEFAULT_LIMITS, DEFAULT_STOP_LISTENING, DEFAULT_WEIGHT, ZERO_COPY_MIN_BYTES,
};
use corelay::config::model::{
    Accept, Access, AccessLog, AccessRule, AccessSource, AddressRange, Admin, Balance, Bandwidth,
    Buffers, Check, CheckHeader, CheckKind, Config, ConnectionRate, Dns, Eject, Expect, Family,
    Handoff, HashBy, Keepalive, Limits, Listener, Log, LogFormat, LogLevel, Mover, OnDown,
    OnNoServer, OnRefuse, PassedTlvs, PerSource, ProxyRequired, ProxySent, ProxyVersions, Queue,
    Relay, RetryBudget, Route, RouteBy, Server, ServerAddress, Source, SplitBy, Steer,
    StopListening, Target, TcpOptions, Throughput, Timeouts, Upstream, UpstreamPolicy, Verdict,
    Workers,
};
use corelay::units::network::Network;
use corelay::units::{Address, UpstreamId};
use proptest::prelude::*;

use super::{cases, load, repository, schema, uncomment};

const BALANCES: [Balance; 6] = [
    Balance::RoundRobin,
    Balance::LeastConnections,
    Balance::RandomTwoChoices,
    Balance::SourceHash,
    Balance::Maglev,
    Balance::FirstAvailable,
];

/// One of each kind, by a number.
fn a_check(number: u32) -> Option<Check> {
    let kind = match number % 6 {
        0 => return None,
        1 => CheckKind::Tcp,
        2 => CheckKind::Exchange {
            send: b"PING\r\n".to_vec(),
            expect: Expect::Prefix(b"+PONG".to_vec()),
        },
        3 => CheckKind::Exchange {
            send: vec![0, number as u8, 255],
            expect: Expect::Contains(b"hex:$x".to_vec()),
        },
        4 => CheckKind::Http {
            path: "/health?$y".to_owned(),
            host: "a:80".to_owned(),
            status: vec![200..=204, 301..=301],
        },
        _ => CheckKind::Tls {
            server_name: (number % 4 == 1).then(|| "a.example".to_owned()),
        },
    };
    let header = match (number % 5, &kind) {
        (1, _) => CheckHeader::Off,
        (2, it) if *it != CheckKind::Tcp => CheckHeader::V1,
        (3, it) if *it != CheckKind::Tcp => CheckHeader::V2,
        _ => CheckHeader::AsSessions,
    };
    Some(Check {
        kind,
        header,
        interval: Duration::from_millis(u64::from(number) + 10),
        fast_interval: Duration::from_millis(10),
        jitter_percent: number as u8 % 101,
        timeout: Duration::from_secs(1),
        rise: number % 100 + 1,
        fall: number % 100 + 1,
        port: None,
    })
}

fn a_duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1u64..2_592_000_000,
        (1u64..2_592_000).prop_map(|seconds| seconds * 1000)
    ]
    .prop_map(Duration::from_millis)
}

fn some_settings() -> impl Strategy<Value = (Workers, Buffers, Timeouts, Relay, TcpOptions, Log)> {
    let workers = prop_oneof![
        Just(Workers::Auto),
        (1usize..=1024).prop_map(Workers::Count),
        prop::collection::btree_set(0usize..1024, 1..9)
            .prop_map(|cpus| Workers::Cpus(cpus.into_iter().collect())),
    ];
    let buffers = (1u32..=128, 64u32..=32_768).prop_map(|(kib, per_core)| Buffers {
        size_bytes: kib << 10,
        per_core,
    });
    let timeouts = (
        a_duration(),
        a_duration(),
        a_duration(),
        prop::option::of(a_duration()),
        a_duration(),
    )
        .prop_map(|(connect, idle, half_close, max_age, drain)| Timeouts {
            connect,
            idle,
            half_close,
            max_age,
            drain,
        });
    let keepalive =
        (1u64..=32_767, 1u64..=32_767, 1u32..=127).prop_map(|(idle, interval, count)| Keepalive {
            idle: Duration::from_secs(idle),
            interval: Duration::from_secs(interval),
            count,
        });
    let user_timeout = prop::option::of((1u64..=24 * 86_400_000).prop_map(Duration::from_millis));
    let tcp = (any::<bool>(), prop::option::of(keepalive), user_timeout).prop_map(
        |(nodelay, keepalive, user_timeout)| TcpOptions {
            nodelay,
            keepalive,
            user_timeout,
        },
    );
    let level = prop::sample::select(vec![
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Debug,
        LogLevel::Trace,
    ]);
    let format = prop::sample::select(vec![LogFormat::Json, LogFormat::Text]);
    let access = prop::sample::select(vec![AccessLog::All, AccessLog::Errors, AccessLog::Off]);
    let log = (level, format, access, prop::option::of("/?[ -~é]{1,30}x")).prop_map(
        |(level, format, access, file)| Log {
            level,
            format,
            access,
            access_file: file.map(PathBuf::from),
        },
    );
    let mover = prop::sample::select(vec![Mover::Auto, Mover::Copy, Mover::Splice]);
    let busy_poll = prop::option::of((1u64..=1_000).prop_map(Duration::from_micros));
    let relay = (mover, any::<bool>(), busy_poll);
    let relay = relay.prop_map(|(mover, zero_copy_send, busy_poll)| Relay {
        mover,
        zero_copy_send,
        busy_poll,
    });
    (workers, buffers, timeouts, relay, tcp, log)
}

fn an_accept() -> impl Strategy<Value = Accept> {
    let steer = prop::sample::select(vec![Steer::Hash, Steer::Cpu]);
    let defer = prop::option::of((1u64..=60).prop_map(Duration::from_secs));
    let fast_open = prop::option::of(1u32..=65_535);
    let handoff = prop::sample::select(vec![Handoff::Auto, Handoff::Off]);
    (steer, defer, fast_open, handoff).prop_map(|(steer, defer, fast_open, handoff)| Accept {
        steer,
        defer,
        fast_open,
        handoff,
    })
}

/// One, or a split over those up to this one, so that each is used.
fn target(number: u16, is_unix: bool, seed: u32) -> Target {
    if seed.is_multiple_of(2) {
        return Target::One(UpstreamId(number));
    }
    let weight = |index: u16| (seed as u16).wrapping_mul(index + 1) % 257;
    let mut parts: Vec<_> = (0..number).map(|id| (UpstreamId(id), weight(id))).collect();
    parts.push((UpstreamId(number), weight(number).max(1)));
    Target::Split {
        by: if is_unix || seed.is_multiple_of(3) {
            SplitBy::Random
        } else {
            SplitBy::Source
        },
        parts,
    }
}

fn a_verdict() -> impl Strategy<Value = Verdict> {
    prop::sample::select(vec![Verdict::Allow, Verdict::Deny])
}

fn an_access() -> impl Strategy<Value = Access> {
    let network = (any::<std::net::IpAddr>(), 0u8..=128).prop_map(|(ip, bits)| {
        let whole = || Network::around(ip, 32).expect("every address has 32 bits");
        AccessSource::Network(Network::around(ip, bits).unwrap_or_else(whole))
    });
    let file = "/[ -~é]{0,30}".prop_map(|path| AccessSource::File(PathBuf::from(path)));
    let sources = prop::collection::vec(prop_oneof![network, file], 1..4);
    let rule =
        (a_verdict(), sources).prop_map(|(verdict, sources)| AccessRule { verdict, sources });
    let rules = prop::collection::vec(rule, 0..4);
    (rules, a_verdict()).prop_map(|(rules, otherwise)| Access { rules, otherwise })
}

fn some_limits() -> impl Strategy<Value = Limits> {
    let most = || prop::option::of(1u32..=10_000_000);
    let rate = || {
        let rate = (1u32..=10_000_000, 1u32..=10_000_000);
        prop::option::of(rate.prop_map(|(per_second, burst)| ConnectionRate { per_second, burst }))
    };
    let per_source = (
        most(),
        rate(),
        1u8..=32,
        1u8..=128,
        64u32..=1 << 24,
        a_verdict(),
    );
    let per_source = per_source.prop_map(
        |(connections, rate, v4_prefix_bits, v6_prefix_bits, table, on_full)| PerSource {
            connections,
            rate,
            v4_prefix_bits,
            v6_prefix_bits,
            table,
            on_full,
        },
    );
    let limits = (most(), rate(), per_source, a_throughput(), a_throughput());
    limits.prop_map(|(connections, rate, per_source, of_each, of_all)| Limits {
        connections,
        rate,
        per_source,
        bandwidth: Bandwidth {
            connection: of_each,
            listener: of_all,
        },
    })
}

fn a_throughput() -> impl Strategy<Value = Throughput> {
    let way = || prop::option::of(prop_oneof![Just(1 << 20), 1024u64..=64 << 30]);
    (way(), way()).prop_map(|(upload, download)| Throughput { upload, download })
}

/// Any valid configuration. Distinct ports and paths by construction.
fn a_config() -> impl Strategy<Value = Config> {
    let unix_path = "/[ -~]{0,40}";
    let names = prop::collection::btree_set("[A-Za-z0-9_.-]{1,64}", 1..6);
    let listeners = prop::collection::vec(
        (
            any::<bool>(),
            unix_path,
            1u32..=65_535,
            0u32..=0o777,
            prop::option::of(a_duration()),
            an_accept(),
            (prop::option::of(an_access()), some_limits(), any::<bool>()),
        ),
        6,
    );
    let servers = prop::collection::vec(prop::collection::vec((0u8..5, unix_path), 1..5), 6);
    (some_settings(), names, listeners, servers, any::<bool>()).prop_map(
        |((workers, buffers, timeouts, mut relay, tcp, log), names, listeners, servers, admin)| {
            let dns = a_dns(u32::from(admin) + log.level as u32);
            relay.zero_copy_send &= buffers.size_bytes >= ZERO_COPY_MIN_BYTES;
            let mut config = Config {
                workers,
                buffers,
                timeouts,
                relay,
                tcp,
                log,
                listeners: Vec::new(),
                upstreams: Vec::new(),
                dns,
                admin: admin.then(|| Admin {
                    bind: "127.0.0.1:30000".parse().expect("an address"),
                }),
            };
            for (index, name) in names.into_iter().enumerate() {
                let number = u16::try_from(index).expect("few");
                let (is_unix, path, backlog, unix_mode, defer_connect, accept, policy) =
                    listeners[index].clone();
                let (access, limits, closes) = policy;
                let bind = if is_unix {
                    Address::Unix(PathBuf::from(format!("/listener{index}{path}")))
                } else {
                    Address::Tcp(
                        format!("[2001:db8::1]:{}", 20_000 + number)
                            .parse()
                            .expect("an address"),
                    )
                };
                config.listeners.push(Listener {
                    name: name.clone(),
                    bind,
                    target: target(number, is_unix, backlog),
                    backlog,
                    unix_mode,
                    defer_connect,
                    accept,
                    proxy_protocol: (backlog % 4 == 0).then(|| ProxyRequired {
                        versions: ProxyVersions::V2,
                        trusted: vec!["10.0.0.0/8".parse().expect("a network")],
                        timeout: Duration::from_millis(backlog.into()),
                    }),
                    route: (backlog % 4 == 2).then(|| Route {
                        by: if backlog % 8 == 2 {
                            RouteBy::Host
                        } else {
                            RouteBy::Sni
                        },
                        alpn: [b"acme-tls/1".to_vec(), b"hex:$x".to_vec(), vec![0, 255]]
                            .map(|protocol| (protocol, UpstreamId(number)))
                            .into_iter()
                            .take(if backlog % 8 == 2 { 0 } else { 3 })
                            .collect(),
                        names: vec![
                            ("a.example".to_owned(), UpstreamId(number)),
                            ("*.b.example".to_owned(), UpstreamId(number)),
                        ],
                        no_name: Some(UpstreamId(number)),
                        other_protocol: None,
                        timeout: Duration::from_millis(backlog.into()),
                    }),
                    access: access.filter(|_| !is_unix),
                    limits: Limits {
                        per_source: if is_unix {
                            DEFAULT_LIMITS.per_source
                        } else {
                            limits.per_source
                        },
                        ..limits
                    },
                    on_refuse: if closes {
                        OnRefuse::Close
                    } else {
                        OnRefuse::Reset
                    },
                });
                let servers = servers[index]
                    .iter()
                    .enumerate()
                    .map(|(place, (kind, path))| {
                        let port = u16::try_from(place).expect("few") + 10_000;
                        let address = match kind {
                            0 => ServerAddress::Known(Address::Unix(PathBuf::from(format!(
                                "/server{place}{path}"
                            )))),
                            1 => ServerAddress::Known(Address::Tcp(
                                format!("[::1]:{port}").parse().expect("an address"),
                            )),
                            2 => ServerAddress::Known(Address::Tcp(
                                format!("10.0.0.1:{port}").parse().expect("one"),
                            )),
                            3 => ServerAddress::Named {
                                host: "app.internal".to_owned(),
                                port,
                            },
                            _ => ServerAddress::Service {
                                name: format!("_app._tcp.s{place}.internal."),
                            },
                        };
                        let is_service = matches!(address, ServerAddress::Service { .. });
                        let is_known = matches!(address, ServerAddress::Known(_));
                        let check_address =
                            (is_known && a_check(backlog).is_some() && place % 2 == 1)
                                .then(|| Address::Tcp(([192, 0, 2, 1], port).into()));
                        Server {
                            check_address,
                            weight: if is_service {
                                DEFAULT_WEIGHT
                            } else {
                                backlog as u16 % 256 + 1
                            },
                            address,
                            backup: place > 0 && backlog % 2 == 0,
                            max_connections: (backlog % 3 == 0).then_some(backlog),
                        }
                    });
                let servers: Vec<Server> = servers.collect();
                let is_unix =
                    |it: &Server| matches!(it.address, ServerAddress::Known(Address::Unix(_)));
                let has_tcp = !servers.iter().all(is_unix);
                // Not all of the first upstreams say so: the listeners of others would never stop.
                let may_stop = number == 0 && a_check(backlog).is_some() && backlog % 2 == 0;
                let on_no_server = match backlog % 3 {
                    _ if may_stop => OnNoServer::StopListening,
                    0 => OnNoServer::Reset,
                    1 => OnNoServer::Close,
                    _ => OnNoServer::Hold,
                };
                config.upstreams.push(Upstream {
                    name,
                    policy: UpstreamPolicy {
                        balance: BALANCES[backlog as usize % BALANCES.len()],
                        hash: HashBy::Source,
                        retries: backlog as u16 % 101,
                        retry_budget: (backlog % 3 == 1).then_some(RetryBudget {
                            percent: backlog as u8 % 101,
                            min_per_second: backlog,
                        }),
                        queue: Queue {
                            max: backlog,
                            timeout: Duration::from_millis(backlog.into()),
                        },
                        eject: (backlog % 5 > 0).then_some(Eject {
                            failures: backlog % 10_000 + 1,
                            period: Duration::from_millis(backlog.into()),
                            max: Duration::from_millis(2 * u64::from(backlog)),
                            max_percent: backlog as u8 % 100 + 1,
                        }),
                        slow_start: (backlog % 7 == 0).then_some(Duration::from_secs(30)),
                        on_down: [OnDown::Keep, OnDown::Drain, OnDown::Close][backlog as usize % 3],
                        on_no_server,
                        stop_listening: if on_no_server == OnNoServer::StopListening {
                            StopListening {
                                after: Duration::from_millis(backlog.into()),
                                resume_after: Duration::from_millis(u64::from(backlog) + 1),
                            }
                        } else {
                            DEFAULT_STOP_LISTENING
                        },
                        fallback: None,
                        proxy_protocol: (backlog % 4 == 1).then_some(ProxySent {
                            version: ProxyVersions::V2,
                            crc32c: backlog % 8 == 1,
                            pass_tlvs: PassedTlvs {
                                authority: backlog % 8 != 1,
                                alpn: backlog % 3 == 1,
                                unique_id: backlog % 5 != 1,
                            },
                            unique_id: backlog % 16 < 8,
                        }),
                    },
                    check: a_check(backlog),
                    source: a_source(backlog).filter(|_| has_tcp),
                    servers,
                });
            }
            hash_names(&mut config);
            config
        },
    )
}

/// Every upstream that hashes and gets names alone hashes those.
fn hash_names(config: &mut Config) {
    for (index, upstream) in config.upstreams.iter_mut().enumerate() {
        let id = UpstreamId(u16::try_from(index).expect("few"));
        let leads_here = |it: &&Listener| match &it.target {
            Target::One(upstream) => *upstream == id,
            Target::Split { parts, .. } => parts.iter().any(|(upstream, _)| *upstream == id),
        };
        let mut listeners = config.listeners.iter().filter(leads_here);
        if upstream.policy.balance.hashes() && listeners.all(|it| it.route.is_some()) {
            upstream.policy.hash = HashBy::Name;
        }
    }
}

fn a_dns(seed: u32) -> Dns {
    let addresses = ["127.0.0.1:8600", "[::1]:53", "192.0.2.1:53"];
    let nameservers = addresses.iter().take(seed as usize % 4);
    Dns {
        nameservers: nameservers
            .map(|address| address.parse().expect("one"))
            .collect(),
        interval: (!seed.is_multiple_of(3)).then_some(Duration::from_secs(30 + u64::from(seed))),
        timeout: Duration::from_millis(100 + u64::from(seed)),
        family: [Family::Both, Family::V4, Family::V6][seed as usize % 3],
    }
}

/// A section that holds something, or none.
fn a_source(seed: u32) -> Option<Source> {
    let ip = |last: u32| std::net::IpAddr::from([10, 0, 0, last as u8]);
    let range = AddressRange::new(ip(seed % 100), ip(seed % 100 + seed % 50)).expect("in order");
    let other = std::net::IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
    let other = AddressRange::new(other, other).expect("one");
    (!seed.is_multiple_of(2)).then(|| Source {
        addresses: vec![range, other],
        interface: seed.is_multiple_of(3).then(|| format!("eth{}", seed % 10)),
        mark: seed.is_multiple_of(5).then_some(seed.max(1)),
        dscp: (seed % 7 < 5).then_some((seed % 64) as u8),
        congestion: seed.is_multiple_of(11).then(|| "bbr".to_owned()),
        // What it needs of listeners has golden files of its own.
        transparent: false,
        fast_open: seed.is_multiple_of(13),
    })
}

/// A text that is nearly a configuration: a golden file or the reference, cut, doubled and overwritten.
fn a_mutated_text() -> impl Strategy<Value = String> {
    let mut texts: Vec<String> = cases("tests/config/valid")
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    texts.extend(
        cases("tests/config/invalid")
            .into_iter()
            .map(|(_, text)| text),
    );
    texts.push(uncomment(
        &std::fs::read_to_string(repository("config.yaml")).expect("config.yaml"),
    ));
    let tokens = [
        ":",
        "\n",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "!t ",
        "${",
        "$",
        "\"",
        "'",
        "#",
        "~",
        "0",
        "-1",
        "\t",
        "|",
        ">",
        "? ",
        "<<: ",
        "é",
        "\u{feff}",
        "\0",
        "---\n",
        "off",
        "1e99",
        ".nan",
        "0x",
        "listeners:",
        "99999999999999999999",
    ];
    let edit = (
        any::<prop::sample::Index>(),
        0usize..12,
        prop::sample::select(tokens.to_vec()),
        any::<bool>(),
    );
    (
        prop::sample::select(texts),
        prop::collection::vec(edit, 1..6),
    )
        .prop_map(|(text, edits)| {
            let mut chars: Vec<char> = text.chars().collect();
            for (at, length, token, double) in edits {
                let start = at.index(chars.len() + 1);
                let end = (start + length).min(chars.len());
                let cut: Vec<char> = chars.splice(start..end, token.chars()).collect();
                if double {
                    chars.splice(start..start, cut.iter().chain(&cut).copied());
                }
            }
            chars.into_iter().collect()
        })
}

/// Whatever comes out, it is either usable or explained.
fn never_panics(text: &str) {
    match load(text) {
        Ok(config) => {
            let rendered = config::render(&config);
            assert_eq!(
                load(&rendered).unwrap_or_else(|error| panic!("{error}\n{rendered}")),
                config,
                "{rendered}"
            );
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            assert_eq!(
                error.to_string().lines().count(),
                error.problems().len(),
                "{error}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_configuration_survives_rendering(config in a_config()) {
        let rendered = config::render(&config);
        match load(&rendered) {
            Ok(loaded) => prop_assert_eq!(loaded, config, "{}", rendered),
            Err(error) => prop_assert!(false, "{}\n{}", error, rendered),
        }
    }

    #[test]
    fn every_configuration_validates(config in a_config()) {
        let rendered = config::render(&config);
        prop_assert_eq!(schema::refuses(&rendered), None, "{}", rendered);
    }

    #[test]
    fn mutated_configurations_never_panic(text in a_mutated_text()) {
        never_panics(&text);
    }

    #[test]
    fn junk_never_panics(text in any::<String>(), yamlish in "([a-c]|[0-9]|[:,\\[\\]{}#&*!|>'\"%@?-]|[ \n\t]|\\$\\{|\\}|: |- ){0,80}") {
        never_panics(&text);
        never_panics(&yamlish);
    }
}
