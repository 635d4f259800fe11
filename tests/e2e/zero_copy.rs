//! `relay.zero_copy_send`. Over loopback the kernel copies after all: what can be seen here is that nothing is
//! lost, and that the option then switches itself off.

use std::io::Write;

use corelay_bench::pattern::Pattern;
use corelay_bench::signals::Signal;

use crate::support::peers::{End, finish, read_pattern, write_pattern};
use crate::support::{Config, Pair, Proxy, Upstream, wait_until};

const MIB: u64 = 1024 * 1024;

fn config(server: impl std::fmt::Display) -> Config {
    Config::to([server])
        .set("workers", 1)
        .set("relay.mover", "copy")
        .set("relay.zero_copy_send", true)
}

#[test]
fn a_stream_arrives_whole_and_zero_copy_switches_itself_off_over_loopback() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&config(upstream.address()));
    assert_eq!(proxy.metrics().sum("corelay_zero_copy_send"), 1.0);
    let Pair { client, mut server } = Pair::open(&proxy, &upstream);
    let pattern = Pattern::new(3);
    let sender = std::thread::spawn(move || {
        let mut client = client;
        write_pattern(&mut client, pattern, 64 * MIB).unwrap();
        finish(&client);
        client
    });
    assert_eq!(read_pattern(&mut server, pattern), (64 * MIB, End::Fin));
    drop((sender.join().unwrap(), server));
    proxy.wait_log_where("zero copy is switched off", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("zero-copy sends are switched off")
    });
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("corelay_zero_copy_send"), 0.0);
    let copied = [("result", "copied")];
    assert!(metrics.sum_where("corelay_zero_copy_sends_total", &copied) > 32.0);
    wait_until("every buffer comes back", || {
        proxy.metrics().sum("corelay_buffers_held") == 0.0
    });
    proxy.finish();
}

#[test]
fn what_was_sent_is_whole_after_the_process_is_gone() {
    const BYTES: u64 = 256 * 1024;
    let upstream = Upstream::new();
    let mut proxy = Proxy::start(&config(upstream.address()));
    let mut pair = Pair::open_slow(&proxy, &upstream, 64 * 1024);
    let pattern = Pattern::new(4);
    // As much as fits the sender's queue: the kernel reads it out of the slab, which goes with the process.
    write_pattern(&mut pair.server, pattern, BYTES).unwrap();
    finish(&pair.server);
    finish(&pair.client);
    let line = proxy.access_line();
    assert_eq!(line["bytes_to_downstream"], BYTES);
    assert!(
        proxy.metrics().sum("corelay_buffers_held") > 0.0,
        "nothing was lent"
    );
    proxy.signal(Signal::TERM);
    proxy.wait_exit(crate::support::DEADLINE);
    assert_eq!(read_pattern(&mut pair.client, pattern), (BYTES, End::Fin));
}

#[test]
fn a_unix_server_that_knows_no_zero_copy_gets_it_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let proxy = Proxy::start(&config(format!("unix:{}", path.display())));
    let mut client = crate::support::peers::connect(proxy.address());
    let (mut server, _) = listener.accept().unwrap();
    let content = Pattern::new(5).bytes(0, 4 << 20);
    let sent = content.clone();
    let sender = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        finish(&client);
        client
    });
    let mut received = Vec::new();
    std::io::Read::read_to_end(&mut server, &mut received).unwrap();
    assert!(received == content, "bytes were changed");
    drop((server, sender.join().unwrap()));
    assert_eq!(proxy.access_line()["close_reason"]["cause"], "finished");
    proxy.finish();
}
