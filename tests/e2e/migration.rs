//! `docs/from-haproxy-nginx.md`: every Corelay configuration in it runs and carries bytes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use corelay_bench::servers::{Handle, Server};
use serde_json::{Value, json};

use crate::support::nameserver::{NameServer, Records};
use crate::support::peers::{connect, expect_bytes};
use crate::support::{Config, Proxy};

/// As the page promises.
const EXAMPLES: usize = 13;

/// The YAML blocks of the page.
fn blocks() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/from-haproxy-nginx.md");
    let page = std::fs::read_to_string(path).unwrap();
    let blocks = page.split("```yaml\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// The same configuration with listeners on free ports, an echo server for each server, and a name server that
/// knows the names.
fn runnable(block: &str) -> (Config, Vec<Handle>, NameServer) {
    // YAML as JSON, which is what the tests write.
    let mut root: Value = serde_yaml::from_str(block).expect("the page has YAML");
    let mut servers = Vec::new();
    let nameserver = NameServer::start();
    if root["dns"].is_object() {
        root["dns"]["nameservers"] = json!([nameserver.address().to_string()]);
    }
    for listener in root["listeners"].as_object_mut().unwrap().values_mut() {
        listener["bind"] = "127.0.0.1:0".into();
    }
    for upstream in root["upstreams"].as_object_mut().unwrap().values_mut() {
        let is_http = upstream["check"]["type"] == "http";
        for server in upstream["servers"].as_array_mut().unwrap() {
            let echo = if is_http {
                Server::http("page")
            } else {
                Server::echo()
            };
            let echo = echo.start().unwrap();
            match server {
                Value::Object(long) => long["address"] = echo.address().to_string().into(),
                Value::String(name) if name.starts_with("srv:") => {
                    let host = "one.example.internal";
                    nameserver.set_addresses(host, [echo.address().ip()]);
                    let service = (1, 1, echo.address().port(), host.to_owned());
                    nameserver.set(&name["srv:".len()..], Records::Services(vec![service]));
                }
                short => *short = echo.address().to_string().into(),
            }
            servers.push(echo);
        }
    }
    let mut config = Config::to(["127.0.0.1:1"]);
    for (key, value) in root.as_object().unwrap() {
        config = config.set(key, value.clone());
    }
    (config, servers, nameserver)
}

/// Bytes that the block's own mode wants first, and how they come back.
fn exchange(block: &str, to: SocketAddr) {
    let mut client = connect(to);
    if block.contains("trusted:") {
        client.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    }
    if block.contains("type: http") {
        client
            .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        return expect_bytes(&mut client, b"HTTP/1.1 200");
    }
    if block.contains("proxy_protocol: v2") {
        // The echo server gives the header back: LOCAL or unspecified, 16 bytes.
        client.write_all(b"hello").unwrap();
        return expect_bytes(&mut client, b"\r\n\r\n\0\r\nQUIT\n");
    }
    client.write_all(b"hello").unwrap();
    expect_bytes(&mut client, b"hello");
}

#[test]
fn every_configuration_of_the_migration_page_runs() {
    let blocks = blocks();
    assert_eq!(blocks.len(), EXAMPLES);
    for block in &blocks {
        let (config, servers, nameserver) = runnable(block);
        let name = config.listener_name();
        let proxy = Proxy::start(&config);
        let to: SocketAddr = proxy.listener(&name).parse().unwrap();
        exchange(block, to);
        drop((servers, nameserver));
        proxy.finish();
    }
}
