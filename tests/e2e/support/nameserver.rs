//! A name server on loopback, over UDP and TCP, whose records a test changes while it runs.
//!
//! It writes its messages by hand, so that the reader under test is not checked against itself.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// A longer answer comes truncated over UDP.
const UDP_MAX_BYTES: usize = 1_232;
/// How soon the threads notice that they are to end.
const TICK: Duration = Duration::from_millis(20);

/// What a name has, or what happens to a question about it.
#[derive(Clone, Debug)]
pub(crate) enum Records {
    Addresses(Vec<IpAddr>),
    /// Priority, weight, port and target.
    Services(Vec<(u16, u16, u16, String)>),
    /// SERVFAIL.
    Failure,
    Silence,
}

/// Everything that a name may be asked for is answered from these; a name that is not there does not exist.
type Zone = Arc<Mutex<HashMap<String, Records>>>;

/// See the head of this file.
pub(crate) struct NameServer {
    address: SocketAddr,
    zone: Zone,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    pub(crate) fn start() -> Self {
        let (udp, tcp) = sockets();
        let address = udp.local_addr().unwrap();
        let zone = Zone::default();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let serve_udp = {
            let (zone, stop, asked) = (zone.clone(), stop.clone(), asked.clone());
            move || {
                let mut bytes = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((len, client)) = udp.recv_from(&mut bytes) else {
                        continue;
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    let Some(mut answer) = answer(&zone, &bytes[..len]) else {
                        continue;
                    };
                    if answer.len() > UDP_MAX_BYTES {
                        answer.truncate(question_end(&answer));
                        answer[2] |= 0x02;
                        answer[6..8].fill(0);
                    }
                    let _ = udp.send_to(&answer, client);
                }
            }
        };
        let serve_tcp = {
            let (zone, stop) = (zone.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = tcp.accept() else {
                        std::thread::sleep(TICK);
                        continue;
                    };
                    // A client that gave up is none of ours.
                    let _ = serve(&zone, &mut stream);
                }
            }
        };
        let threads = vec![std::thread::spawn(serve_udp), std::thread::spawn(serve_tcp)];
        Self {
            address,
            zone,
            asked,
            stop,
            threads,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Questions over UDP so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// From now on the name has these.
    pub(crate) fn set(&self, name: &str, records: Records) {
        let mut zone = self.zone.lock().unwrap();
        zone.insert(name.to_owned(), records);
    }

    /// As [`NameServer::set`], with addresses.
    pub(crate) fn set_addresses<T: Into<IpAddr>>(
        &self,
        name: &str,
        addresses: impl IntoIterator<Item = T>,
    ) {
        let addresses = addresses.into_iter().map(Into::into);
        self.set(name, Records::Addresses(addresses.collect()));
    }

    /// From now on there is no such name.
    pub(crate) fn remove(&self, name: &str) {
        self.zone.lock().unwrap().remove(name);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One question over TCP.
fn serve(zone: &Zone, stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    if let Some(answer) = answer(zone, &question) {
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// One free port of both.
fn sockets() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) else {
            continue;
        };
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(TICK)).unwrap();
        return (udp, tcp);
    }
    panic!("no port is free for UDP and TCP");
}

/// Where the one question ends.
fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += usize::from(message[at]) + 1;
    }
    at + 5
}

fn answer(zone: &Zone, question: &[u8]) -> Option<Vec<u8>> {
    let end = question_end(question);
    let kind = u16::from_be_bytes([question[end - 4], question[end - 3]]);
    let records = zone.lock().unwrap().get(&name(question)).cloned();
    let (rcode, data): (u8, Vec<Vec<u8>>) = match records {
        None => (3, Vec::new()),
        Some(Records::Silence) => return None,
        Some(Records::Failure) => (2, Vec::new()),
        Some(Records::Addresses(addresses)) => {
            let of_kind = addresses.iter().filter_map(|ip| match (ip, kind) {
                (IpAddr::V4(ip), A) => Some(ip.octets().to_vec()),
                (IpAddr::V6(ip), AAAA) => Some(ip.octets().to_vec()),
                _ => None,
            });
            let of_kind: Vec<_> = of_kind.collect();
            // Some do so, against RFC 4074.
            let denies = of_kind.is_empty() && !addresses.is_empty();
            (if denies { 3 } else { 0 }, of_kind)
        }
        Some(Records::Services(services)) if kind == SRV => {
            let data = |(priority, weight, port, target): &(u16, u16, u16, String)| {
                let mut data = Vec::new();
                for word in [priority, weight, port] {
                    data.extend(word.to_be_bytes());
                }
                for label in target.split('.') {
                    data.push(label.len() as u8);
                    data.extend(label.as_bytes());
                }
                data.push(0);
                data
            };
            (0, services.iter().map(data).collect())
        }
        Some(Records::Services(_)) => (0, Vec::new()),
    };
    let mut message = question[..end].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80 | rcode]);
    message[6..8].copy_from_slice(&(data.len() as u16).to_be_bytes());
    message[8..12].fill(0);
    for data in data {
        message.extend([0xC0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
    }
    Some(message)
}

fn name(question: &[u8]) -> String {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
        at = end;
    }
    labels.join(".")
}
