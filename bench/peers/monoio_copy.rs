//! A TCP proxy as one writes it with monoio alone: read into a buffer, write the buffer, on one
//! thread and its one ring. Only a peer for `corelay-bench compare`; behind the feature `peer-monoio`.
//!
//! `peer-monoio-copy LISTEN=SERVER [LISTEN=SERVER …]`

#![allow(clippy::print_stdout, reason = "a command-line tool prints")]

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::{TcpListener, TcpStream};

#[path = "arguments.rs"]
mod arguments;

/// Bytes of each direction's buffer. (`monoio::io::copy` takes 4 KiB, which is slower.)
const BUFFER_BYTES: usize = 64 * 1024;
/// Entries of the ring.
const RING_ENTRIES: u32 = 4096;

fn main() -> Result<()> {
    let Some(routes) = arguments::routes("monoio")? else {
        return Ok(());
    };
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .build()?;
    runtime.block_on(async {
        for (listen, server) in routes {
            let listener =
                TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
            monoio::spawn(accept(listener, server));
        }
        std::future::pending().await
    })
}

async fn accept(listener: TcpListener, server: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((downstream, _)) => {
                monoio::spawn(relay(downstream, server));
            }
            Err(error) => panic!("accept failed: {error}"),
        }
    }
}

/// An error in one direction ends it like an end of file. The client sees what is missing, so the
/// load counts it.
async fn relay(downstream: TcpStream, server: SocketAddr) {
    let Ok(upstream) = TcpStream::connect_addr(server).await else {
        return;
    };
    let _ = downstream.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    let (from_client, to_client) = downstream.into_split();
    let (from_server, to_server) = upstream.into_split();
    let up = monoio::spawn(copy_one_way(from_client, to_server));
    copy_one_way(from_server, to_client).await;
    up.await;
}

async fn copy_one_way(mut from: impl AsyncReadRent, mut to: impl AsyncWriteRent) {
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

async fn copy(from: &mut impl AsyncReadRent, to: &mut impl AsyncWriteRent) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (read, filled) = from.read(buffer).await;
        if read? == 0 {
            return Ok(());
        }
        let (written, empty) = to.write_all(filled).await;
        written?;
        buffer = empty;
        buffer.clear();
    }
}
