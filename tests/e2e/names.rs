//! Servers by name: the set of servers follows what name servers answer. Case 48.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use corelay_bench::servers::{Handle, RefusedPort, Server};
use corelay_bench::signals::Signal;
use serde_json::{Value, json};

use crate::support::nameserver::{NameServer, Records};
use crate::support::peers::{connect, expect_bytes, expect_rejected};
use crate::support::proxy::{assert_one_clear_line, exit};
use crate::support::{Config, DEADLINE, Launch, Proxy, wait_until};

const NAME: &str = "app.test";
const SERVICE: &str = "_app._tcp.test";

/// Addresses of loopback, by number.
fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

/// Echo servers on these addresses of loopback and one port.
fn servers<const N: usize>(last: [u8; N]) -> (u16, [Handle; N]) {
    'port: for _ in 0..100 {
        let first = Server::echo().listen(SocketAddr::new(ip(last[0]).into(), 0));
        let first = first.start().unwrap();
        let port = first.address().port();
        let mut started = vec![first];
        for &last in &last[1..] {
            let address = SocketAddr::new(ip(last).into(), port);
            match Server::echo().listen(address).start() {
                Ok(server) => started.push(server),
                Err(_) => continue 'port,
            }
        }
        let Ok(started) = started.try_into() else {
            unreachable!("one each")
        };
        return (port, started);
    }
    panic!("no port is free on all of them");
}

/// To a name, looked up every second.
fn to_name(nameserver: &NameServer, server: impl Into<Value>) -> Config {
    Config::to([""; 0])
        .set("upstreams.app.servers", json!([server.into()]))
        .set("dns.nameservers", json!([nameserver.address().to_string()]))
        .set("dns.interval", "1s")
        .set("dns.timeout", "1s")
}

fn echo_once(proxy: &Proxy) {
    let mut client = connect(proxy.address());
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
}

/// Status and sessions of each server, in the order of the page.
fn standings(proxy: &Proxy) -> Vec<(String, String, u64)> {
    let page: Value = serde_json::from_str(&proxy.get("/upstreams").body).unwrap();
    let servers = page["app"].as_array().unwrap().iter();
    let standing = |it: &Value| {
        let text = |key: &str| it[key].as_str().unwrap().to_owned();
        (
            text("server"),
            text("status"),
            it["active"].as_u64().unwrap(),
        )
    };
    servers.map(standing).collect()
}

fn changed(proxy: &Proxy, added: &str, removed: &str) {
    proxy.wait_log_where("the upstream has other servers", |line| {
        line["message"] == "an upstream has other servers"
            && line["added"] == added
            && line["removed"] == removed
    });
    // Each core answers after it has taken the servers, which were sent before.
    proxy.metrics();
}

fn lookups(proxy: &Proxy, result: &str) -> f64 {
    let labels = [("upstream", "app"), ("result", result)];
    proxy
        .metrics()
        .sum_where("corelay_dns_lookups_total", &labels)
}

#[test]
fn case_48_other_addresses_are_other_servers_and_live_sessions_go_on() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1, 2]);
    nameserver.set_addresses(NAME, [ip(1)]);
    let proxy = Proxy::start(&to_name(&nameserver, format!("{NAME}:{port}")));
    let mut old = connect(proxy.address());
    old.write_all(b"a").unwrap();
    expect_bytes(&mut old, b"a");

    nameserver.set_addresses(NAME, [ip(2)]);
    let (first, second) = (format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}"));
    changed(&proxy, &second, &first);
    for _ in 0..4 {
        echo_once(&proxy);
    }
    for line in proxy.access_lines(4) {
        assert_eq!(line["server"], second, "{line}");
    }
    let expected = |old: u64| {
        [
            (first.clone(), "removed".to_owned(), old),
            (second.clone(), "up".to_owned(), 0),
        ]
    };
    wait_until("the new sessions are over", || {
        standings(&proxy) == expected(1)
    });
    assert_eq!(
        proxy.metrics().sum("corelay_server_up"),
        1.0,
        "who is gone is not down"
    );
    // The session of the server that is gone.
    old.write_all(b"b").unwrap();
    expect_bytes(&mut old, b"b");
    drop(old);
    assert_eq!(proxy.access_lines(5)[4]["server"], first);

    // It comes back, under its old name.
    nameserver.set_addresses(NAME, [ip(1), ip(2)]);
    changed(&proxy, &first, "");
    wait_until("it is up", || standings(&proxy)[0].1 == "up");
    for _ in 0..8 {
        echo_once(&proxy);
    }
    let lines = proxy.access_lines(13);
    for server in [first, second] {
        let to_it = lines[5..].iter().filter(|line| line["server"] == server);
        assert!(to_it.count() >= 2, "{server} has its share");
    }
    proxy.finish();
}

#[test]
fn an_id_given_away_has_a_new_name_and_counts_of_its_own() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1, 2, 3]);
    nameserver.set_addresses(NAME, [ip(1), ip(2)]);
    let config = to_name(&nameserver, format!("{NAME}:{port}"));
    let launch = Launch::default().env("CORELAY_TEST_REMEMBERED_US", "1000");
    let proxy = launch.start(&config);
    for _ in 0..8 {
        echo_once(&proxy);
    }
    let connected = |proxy: &Proxy, last: u8| {
        let server = format!("127.0.0.{last}:{port}");
        let labels = [("server", server.as_str())];
        proxy
            .metrics()
            .sum_where("corelay_upstream_connections_total", &labels)
    };
    assert!(connected(&proxy, 1) > 0.0);
    let listed = |proxy: &Proxy| -> Vec<String> {
        let standings = standings(proxy).into_iter();
        standings.map(|(server, _, _)| server).collect()
    };
    let server = |last: u8| format!("127.0.0.{last}:{port}");
    nameserver.set_addresses(NAME, [ip(2)]);
    changed(&proxy, "", &server(1));
    wait_until("it is forgotten", || listed(&proxy) == [server(2)]);
    assert!(proxy.metrics().sum("corelay_connections_closed_total") < 8.0);
    let reasons = proxy.stats()["close_reasons"].clone();
    let counts = reasons.as_array().unwrap().iter();
    let ended: u64 = counts.map(|it| it["count"].as_u64().unwrap()).sum();
    assert_eq!(ended, 8, "they stay in the sums");

    // The id is free for the third.
    nameserver.set_addresses(NAME, [ip(3)]);
    changed(&proxy, &server(3), &server(2));
    assert_eq!(connected(&proxy, 3), 0.0);
    echo_once(&proxy);
    assert_eq!(proxy.access_lines(9)[8]["server"], server(3));
    wait_until("it is counted", || connected(&proxy, 3) == 1.0);
    wait_until("the second is forgotten", || listed(&proxy) == [server(3)]);
    proxy.finish();
}

#[test]
fn case_48_without_an_answer_the_last_servers_stay() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1]);
    nameserver.set_addresses(NAME, [ip(1)]);
    let config = to_name(&nameserver, format!("{NAME}:{port}")).set("dns.timeout", "500ms");
    let proxy = Proxy::start(&config);
    wait_until("it was looked up again", || {
        lookups(&proxy, "answered") > 0.0
    });
    assert_eq!(lookups(&proxy, "failed"), 0.0);
    let no_answers = [
        ("there is no such name (NXDOMAIN)", None),
        ("the name server failed (RCODE 2)", Some(Records::Failure)),
        (
            "it has no address that a server can have",
            Some(Records::Addresses(Vec::new())),
        ),
        ("no answer in time (dns.timeout)", Some(Records::Silence)),
    ];
    for (error, records) in no_answers {
        let failed = lookups(&proxy, "failed");
        match records {
            None => nameserver.remove(NAME),
            Some(records) => nameserver.set(NAME, records),
        }
        proxy.wait_log_where("the failure", |line| {
            line["message"]
                .as_str()
                .is_some_and(|it| it.starts_with("a name has no answer"))
                && line["error"].as_str().is_some_and(|it| it.ends_with(error))
                && line["name"] == format!("{NAME}:{port}")
        });
        wait_until("it failed twice", || {
            lookups(&proxy, "failed") >= failed + 2.0
        });
        echo_once(&proxy);
        nameserver.set_addresses(NAME, [ip(1)]);
        let answered = lookups(&proxy, "answered");
        wait_until("it has an answer", || {
            lookups(&proxy, "answered") > answered
        });
        echo_once(&proxy);
    }
    let lines = |start: &str| {
        let log = proxy.log();
        let lines = log.iter().filter(|line| line.contains(start));
        lines.count()
    };
    assert_eq!(
        lines("a name has no answer"),
        4,
        "one line each, however long"
    );
    assert_eq!(lines("a name has an answer again"), 4);
    assert_eq!(lines("other servers"), 0, "nothing has changed");
    proxy.finish();
}

#[test]
fn services_bring_ports_weights_and_backups() {
    let nameserver = NameServer::start();
    let echo: Vec<Handle> = (0..3).map(|_| Server::echo().start().unwrap()).collect();
    let ports: Vec<u16> = echo.iter().map(|it| it.address().port()).collect();
    nameserver.set_addresses("one.test", [ip(1), Ipv4Addr::UNSPECIFIED]);
    let service = |priority, weight, port| (priority, weight, port, "one.test".to_owned());
    nameserver.set(
        SERVICE,
        Records::Services(vec![
            service(20, 1, ports[2]),
            service(10, 3, ports[0]),
            service(10, 1, ports[1]),
            // A host that decidedly is not there is nobody's server.
            (10, 1, 1, "gone.test".to_owned()),
            // Nor has anybody this port.
            service(10, 1, 0),
        ]),
    );
    let config = to_name(&nameserver, format!("srv:{SERVICE}")).set("workers", 1);
    let proxy = Proxy::start(&config);
    for _ in 0..8 {
        echo_once(&proxy);
    }
    let count = |lines: &[Value], port: u16| {
        let server = format!("127.0.0.1:{port}");
        lines.iter().filter(|it| it["server"] == server).count()
    };
    let lines = proxy.access_lines(8);
    assert_eq!(
        ports
            .iter()
            .map(|&port| count(&lines, port))
            .collect::<Vec<_>>(),
        [6, 2, 0]
    );

    let shares = |proxy: &Proxy| -> Vec<(u64, bool)> {
        let page: Value = serde_json::from_str(&proxy.get("/upstreams").body).unwrap();
        let servers = page["app"].as_array().unwrap().iter();
        let share = |it: &Value| (it["weight"].as_u64().unwrap(), it["backup"] == true);
        servers.map(share).collect()
    };
    let mut shown = shares(&proxy);
    shown.sort_unstable();
    assert_eq!(shown, [(1, false), (1, true), (3, false)]);

    // Weights alone are a change too.
    let ports_of_first = [service(10, 1, ports[0]), service(10, 3, ports[1])];
    nameserver.set(SERVICE, Records::Services(ports_of_first.to_vec()));
    changed(&proxy, "", &format!("127.0.0.1:{}", ports[2]));
    for _ in 0..8 {
        echo_once(&proxy);
    }
    let lines = proxy.access_lines(16);
    assert_eq!(
        [count(&lines[8..], ports[0]), count(&lines[8..], ports[1])],
        [2, 6]
    );

    // Of one host nothing can be learnt: the others must not be taken for all there are.
    nameserver.set("two.test", Records::Failure);
    nameserver.set(
        SERVICE,
        Records::Services(vec![
            service(10, 1, ports[0]),
            (10, 1, ports[1], "two.test".to_owned()),
        ]),
    );
    wait_until("it fails", || lookups(&proxy, "failed") > 0.0);
    assert_eq!(standings(&proxy)[1].1, "up");
    proxy.finish();
}

#[test]
fn who_stays_keeps_its_limit_and_who_is_new_waits_for_its_first_check() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1]);
    nameserver.set_addresses(NAME, [ip(1)]);
    let server = json!({ "address": format!("{NAME}:{port}"), "max_connections": 1 });
    let check = json!({ "type": "tcp", "interval": "50ms", "fast_interval": "20ms" });
    let config = to_name(&nameserver, server).set("upstreams.app.check", check);
    let proxy = Proxy::start(&config);
    let mut holder = connect(proxy.address());
    holder.write_all(b"a").unwrap();
    expect_bytes(&mut holder, b"a");

    // Nobody listens there: it never gets a session, and the first stays full.
    nameserver.set_addresses(NAME, [ip(1), ip(2)]);
    changed(&proxy, &format!("127.0.0.2:{port}"), "");
    for _ in 0..4 {
        expect_rejected(proxy.address());
    }
    for line in proxy.access_lines(4) {
        assert_eq!(line["close_reason"]["cause"], "servers_full", "{line}");
        assert_eq!(line["attempts"], 0, "{line}");
    }
    let status = |proxy: &Proxy| standings(proxy)[1].1.clone();
    assert!(["going_up", "down"].contains(&status(&proxy).as_str()));

    // Now somebody does.
    let address = SocketAddr::new(ip(2).into(), port);
    let _second = Server::echo().listen(address).start().unwrap();
    wait_until("its check passed", || status(&proxy) == "up");
    echo_once(&proxy);
    assert_eq!(proxy.access_lines(5)[4]["server"], address.to_string());
    drop(holder);
    proxy.finish();
}

#[test]
fn case_48_a_thousand_addresses_come_over_tcp_and_only_the_family_asked_for() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1]);
    let thousand = (0..1_000_u32).map(|number| Ipv4Addr::from_bits(0x7F00_0001 + number));
    let mut addresses: Vec<IpAddr> = thousand.map(IpAddr::from).collect();
    addresses.push("::1".parse().unwrap());
    nameserver.set_addresses(NAME, addresses);
    let config = to_name(&nameserver, format!("{NAME}:{port}")).set("dns.timeout", "5s");
    let proxy = Proxy::start(&config.clone().set("dns.family", "ipv4"));
    let listed = standings(&proxy);
    assert_eq!(listed.len(), 1_000);
    assert!(
        listed
            .iter()
            .all(|(server, _, _)| server.starts_with("127.0."))
    );
    proxy.finish();
    let proxy = Proxy::start(&config.set("dns.family", "ipv6"));
    let servers: Vec<String> = standings(&proxy).into_iter().map(|it| it.0).collect();
    assert_eq!(servers, [format!("[::1]:{port}")]);
    proxy.finish();
}

#[test]
fn an_address_that_the_source_cannot_reach_is_no_server() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1]);
    nameserver.set_addresses(NAME, [ip(1)]);
    let config = to_name(&nameserver, format!("{NAME}:{port}"));
    let proxy = Proxy::start(&config.set("upstreams.app.source.address", "127.0.0.1"));
    let both = [IpAddr::from(ip(1)), "::1".parse().unwrap()];
    nameserver.set(NAME, Records::Addresses(both.to_vec()));
    proxy.wait_log_where("what is left out", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("source.address: a server has an IPv6 address") && line["left_out"] == 1
    });
    let answered = lookups(&proxy, "answered");
    wait_until("it was looked up again", || {
        lookups(&proxy, "answered") > answered
    });
    assert_eq!(standings(&proxy).len(), 1);
    let said = proxy.log();
    assert_eq!(
        said.iter().filter(|line| line.contains("left_out")).count(),
        1
    );
    echo_once(&proxy);
    proxy.finish();
}

#[test]
fn names_are_looked_up_once_if_so_wanted() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1]);
    nameserver.set_addresses(NAME, [ip(1)]);
    let config = to_name(&nameserver, format!("{NAME}:{port}"));
    let proxy = Proxy::start(&config.set("dns.interval", "off"));
    let asked = nameserver.asked();
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert_eq!(nameserver.asked(), asked);
    echo_once(&proxy);
    proxy.finish();
}

#[test]
fn a_name_without_an_answer_at_the_start_is_one_line() {
    let nameserver = NameServer::start();
    for server in [format!("{NAME}:80"), format!("srv:{SERVICE}")] {
        let mut proxy = Launch::default().spawn(&to_name(&nameserver, server.clone()));
        let status = proxy.wait_exit(DEADLINE);
        assert_eq!(status.code(), Some(exit::FAILED));
        assert_one_clear_line(&proxy, &server);
        assert_one_clear_line(&proxy, "NXDOMAIN");
    }
    // A stop while a name is being looked up is not waited for.
    let dead = RefusedPort::new().unwrap();
    nameserver.set(NAME, Records::Addresses(vec![dead.address().ip()]));
    let mut proxy = Proxy::start(&to_name(&nameserver, format!("{NAME}:80")));
    nameserver.set(NAME, Records::Silence);
    let asked = nameserver.asked();
    wait_until("it is looked up", || nameserver.asked() > asked);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
}

/// A thread that waits at a socket with a timeout is woken with EINTR by every SIGCONT, as when a machine
/// is put to sleep and wakes.
#[test]
fn a_lookup_goes_on_after_the_process_was_stopped_and_continued() {
    let nameserver = NameServer::start();
    let (port, _servers) = servers([1]);
    nameserver.set(NAME, Records::Silence);
    let config = to_name(&nameserver, format!("{NAME}:{port}")).set("dns.timeout", "6s");
    let mut proxy = Launch::default().spawn(&config);
    wait_until("it is looked up", || nameserver.asked() > 0);
    let asked = nameserver.asked();
    for _ in 0..4 {
        proxy.signal(Signal::STOP);
        wait_until("it stands still", || proxy.process().threads_are('T'));
        proxy.signal(Signal::CONT);
        wait_until("it waits again", || proxy.process().threads_are('S'));
    }
    assert_eq!(nameserver.asked(), asked, "it still waits for the answer");
    // The question that was lost is asked once more.
    nameserver.set_addresses(NAME, [ip(1)]);
    proxy.wait_ready();
    echo_once(&proxy);
    proxy.finish();
}
