//! A TCP proxy as one writes it with tokio: `copy_bidirectional` on one thread. Only a peer for
//! `corelay-bench compare`; behind the feature `peer-tokio`.
//!
//! `peer-tokio-copy LISTEN=SERVER [LISTEN=SERVER …]`

#![allow(clippy::print_stdout, reason = "a command-line tool prints")]

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

#[path = "arguments.rs"]
mod arguments;

fn main() -> Result<()> {
    let Some(routes) = arguments::routes("tokio")? else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        for (listen, server) in routes {
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("listening on {listen}"))?;
            tokio::spawn(accept(listener, server));
        }
        std::future::pending().await
    })
}

async fn accept(listener: TcpListener, server: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((downstream, _)) => {
                tokio::spawn(relay(downstream, server));
            }
            Err(error) => panic!("accept failed: {error}"),
        }
    }
}

/// An error ends the session: both sockets are closed. The client sees it, so the load counts it.
async fn relay(mut downstream: TcpStream, server: SocketAddr) {
    if let Ok(mut upstream) = TcpStream::connect(server).await {
        let _ = downstream.set_nodelay(true);
        let _ = upstream.set_nodelay(true);
        let _ = copy_bidirectional(&mut downstream, &mut upstream).await;
    }
}
