//! A lot of bytes: case 1 at full size, and thousands of connections at once, by SHA-256.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use corelay_bench::pattern::{Pattern, Random};
use corelay_bench::servers::Server;
use sha2::{Digest, Sha256};

use crate::support::peers::{End, connect, finish, read_each, read_to_end};
use crate::support::proxy::assert_reason;
use crate::support::{Config, Pair, Proxy, Upstream, size_from_env, wait_until};

const MIB: u64 = 1024 * 1024;

/// Writes the pattern, then FIN; returns the hash of what was written.
fn send_hashed(mut stream: TcpStream, pattern: Pattern, bytes: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    while offset < bytes {
        let take = usize::try_from(bytes - offset)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        pattern.fill(offset, &mut buffer[..take]);
        hash.update(&buffer[..take]);
        stream.write_all(&buffer[..take]).expect("sending");
        offset += take as u64;
    }
    finish(&stream);
    hash.finalize().into()
}

/// Reads to the end; returns the amount, the hash and the end.
fn receive_hashed(mut stream: TcpStream) -> (u64, [u8; 32], End) {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let end = read_each(&mut stream, |piece| {
        hash.update(piece);
        bytes += piece.len() as u64;
    });
    (bytes, hash.finalize().into(), end)
}

#[test]
fn case_01_one_gib_each_way_at_once_arrives_with_equal_sha256() {
    let bytes = size_from_env("CORELAY_E2E_BULK_MIB", 1024) * MIB;
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let Pair { client, server } = Pair::open(&proxy, &upstream);
    let (client_reads, server_reads) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (up_sent, down_sent, up, down) = std::thread::scope(|scope| {
        let up_sent = scope.spawn(|| send_hashed(client, Pattern::new(1), bytes));
        let down_sent = scope.spawn(|| send_hashed(server, Pattern::new(2), bytes));
        let up = scope.spawn(|| receive_hashed(server_reads));
        let down = receive_hashed(client_reads);
        (
            up_sent.join().unwrap(),
            down_sent.join().unwrap(),
            up.join().unwrap(),
            down,
        )
    });
    assert_eq!(up, (bytes, up_sent, End::Fin), "client to server");
    assert_eq!(down, (bytes, down_sent, End::Fin), "server to client");
    let line = proxy.access_line();
    assert_eq!(line["bytes_to_upstream"], bytes);
    assert_eq!(line["bytes_to_downstream"], bytes);
    assert_eq!(line["close_reason"]["cause"], "finished");
    proxy.finish();
}

fn small_exchange(to: SocketAddr, seed: u64, bytes: usize) {
    let content = Pattern::new(seed).bytes(0, bytes);
    let mut client = connect(to);
    let mut writer = client.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&content).unwrap();
            finish(&writer);
        });
        let (received, end) = read_to_end(&mut client);
        assert_eq!(end, End::Fin, "connection {seed}");
        assert!(
            Sha256::digest(&received) == Sha256::digest(&content),
            "connection {seed}: {} of {bytes} bytes, or other bytes",
            received.len()
        );
    });
}

#[test]
fn thousands_of_small_connections_keep_their_sha256() {
    const CLIENTS: u64 = 16;
    const CONNECTIONS_PER_CLIENT: u64 = 250;
    const LARGEST_BYTES: u64 = 40_000;
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let to = proxy.address();
    let total: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut random = Random::new(client);
                    let mut total = 0;
                    for round in 0..CONNECTIONS_PER_CLIENT {
                        let bytes = 1 + random.below(LARGEST_BYTES);
                        small_exchange(to, client << 32 | round, bytes as usize);
                        total += bytes;
                    }
                    total
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    let count = (CLIENTS * CONNECTIONS_PER_CLIENT) as usize;
    for line in proxy.access_lines(count) {
        assert_reason(&line, "downstream/relay/finished");
    }
    // A core of a busy machine may answer a scrape late, with its numbers of before.
    wait_until("Corelay's count", || {
        proxy.metrics().sum("corelay_upstream_sent_bytes_total") == total as f64
    });
    wait_until("the server's count", || upstream.stats().bytes_in == total);
    proxy.finish();
}
