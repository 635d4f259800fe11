//! Addresses that stay a test's own while nobody listens there: for what goes away and comes back.
//!
//! The kernel gives away by itself, to other tests too, only what is in `net.ipv4.ip_local_port_range`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below what the kernel gives away unless it is told otherwise, and above what services listen on.
const PORTS: Range<u16> = 20_000..32_000;

/// An address of 127.0.0.1 that the kernel gives to nobody meanwhile.
#[track_caller]
pub(crate) fn lasting_address() -> SocketAddr {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Another run of the tests at the same time begins elsewhere.
    let begin = std::process::id() as u16;
    for _ in PORTS {
        let place = begin
            .wrapping_mul(64)
            .wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + place % PORTS.len() as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port of {PORTS:?} is free");
}
