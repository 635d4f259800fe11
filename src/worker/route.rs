//! One session's way through the servers of its upstream: choose, wait for a place if all are full,
//! choose again after a failure.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::servers::{Group, NoSeat, Seat, WithoutServer};
use super::{Core, queue};
use crate::balance::{hash_address, hash_text};
use crate::core::{self, Either};
use crate::log::SessionId;
use crate::mode::proxy::Introduced;
use crate::mode::tcp::{NoNext, Servers};
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::sys::clock::{self, micros};
use crate::sys::socket::{self, Peer};
use crate::sys::source::Origin;
use crate::units::{ServerId, UpstreamId};
use crate::wire::name::ServerName;
use crate::wire::proxy::Header;

/// How often a session that waits for a place looks whether its client is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Who the session is for.
#[derive(Default)]
pub(super) struct Client {
    /// As its socket says, or the PROXY header; `None` for a unix socket.
    pub(super) address: Option<SocketAddr>,
    /// The PROXY header, if the listener wants one.
    pub(super) header: Option<Header>,
    /// The name that it asks for, if the listener routes by it.
    pub(super) name: Option<ServerName>,
    /// The protocol of ALPN that decided where it goes.
    pub(super) protocol: Option<Vec<u8>>,
}

impl Client {
    /// What the balancer may go by.
    fn hash(&self, by_name: bool) -> u64 {
        match &self.name {
            Some(name) if by_name => hash_text(name.as_str()),
            // Clients of a unix socket are one host.
            _ => self.address.map_or(0, hash_address),
        }
    }
}

/// See the head of this file.
pub(super) struct Route<'a> {
    core: &'a Core,
    group: Rc<Group>,
    id: SessionId,
    client: Client,
    /// See [`Client::hash`].
    hash: u64,
    /// In vain.
    tried: Vec<ServerId>,
}

impl<'a> Route<'a> {
    pub(super) fn new(core: &'a Core, upstream: UpstreamId, id: SessionId, client: Client) -> Self {
        let group = Rc::clone(&core.groups[usize::from(upstream.0)]);
        Self {
            core,
            hash: client.hash(group.settings.hashes_name),
            group,
            id,
            client,
            tried: Vec::new(),
        }
    }

    fn seat(&mut self) -> Result<(ServerId, Seat), NoSeat> {
        let now_us = clock::now_us();
        let seat = self.group.seat(now_us, self.hash, &mut self.tried)?;
        Ok((seat.server(), seat))
    }

    /// Counts a session of the upstream, or takes one of its retries, if one is left.
    fn admit(&self) -> Result<(), NoNext> {
        let now_us = clock::now_us();
        if self.tried.is_empty() {
            self.group.session_begins(now_us);
        } else if !self.group.grants_retry(now_us) {
            self.core.note_retry_denied(self.group.upstream());
            return Err(NoNext::Tried);
        }
        Ok(())
    }

    /// Where the session goes, after a fallback.
    pub(super) fn upstream(&self) -> UpstreamId {
        self.group.upstream()
    }

    /// What becomes of the session if no server may take it, none having been tried.
    fn no_server(&self) -> NoNext {
        let reason = local(Cause::NoServer);
        match self.group.settings.without_server {
            _ if !self.tried.is_empty() => NoNext::Tried,
            WithoutServer::Close => NoNext::Close(reason),
            WithoutServer::Reset | WithoutServer::Hold => NoNext::Reset(reason),
        }
    }

    /// Whether there is another upstream to go to. Once: a fallback has none itself.
    fn falls_back(&mut self) -> bool {
        let Some(other) = self.group.settings.fallback else {
            return false;
        };
        if !self.tried.is_empty() {
            return false;
        }
        self.group = Rc::clone(&self.core.groups[usize::from(other.0)]);
        self.hash = self.client.hash(self.group.settings.hashes_name);
        true
    }

    /// Whether a session without a server waits for one.
    fn holds(&self) -> bool {
        self.tried.is_empty() && self.group.settings.without_server == WithoutServer::Hold
    }

    /// Every server is full, or none is there and sessions are held: waits in the queue, if there is one.
    /// `None` if there is no server any more, and another upstream to go to.
    async fn wait(&mut self, client: BorrowedFd<'_>) -> Result<Option<(ServerId, Seat)>, NoNext> {
        let group = Rc::clone(&self.group);
        let mut looks = !group.queue.has_waiters();
        let Some(ticket) = group.queue.enter(&self.tried) else {
            return Err(NoNext::Reset(local(Cause::ServersFull)));
        };
        self.core.note_queued(group.upstream());
        let deadline_us = clock::now_us() + micros(group.settings.queue_timeout);
        loop {
            if looks {
                match self.seat() {
                    Ok(found) => {
                        ticket.served();
                        return Ok(Some(found));
                    }
                    Err(NoSeat::NoServer) if self.falls_back() => return Ok(None),
                    Err(NoSeat::NoServer) if !self.holds() => return Err(self.no_server()),
                    Err(_) => {}
                }
            }
            // Before the next wait, for calls may come faster than the looks in between.
            if let Some(reason) = self.given_up(client, deadline_us) {
                return Err(NoNext::Reset(reason));
            }
            if ticket.is_called() {
                // Somebody was faster. What was freed until now is looked for once more.
                ticket.wait_again();
                looks = true;
            } else {
                looks = self.called(&ticket, deadline_us).await;
            }
        }
    }

    /// Waits for the call, for a while. A stop is noticed in between: see [`Route::given_up`].
    async fn called(&self, ticket: &queue::Ticket, deadline_us: u64) -> bool {
        let left = Duration::from_micros(deadline_us.saturating_sub(clock::now_us()));
        let mut nap = pin!(core::sleep(left.min(LOOK_EVERY)));
        let mut called = pin!(ticket.called());
        core::first(called.as_mut(), nap.as_mut()).await == Either::First(())
    }

    fn given_up(&self, client: BorrowedFd<'_>, deadline_us: u64) -> Option<CloseReason> {
        if self.core.aborting.is_set() {
            return Some(local(Cause::Drain));
        }
        if matches!(socket::peek(client), Peer::Closed | Peer::Reset) {
            let reason = CloseReason::new(Side::Downstream, Stage::Connect, Cause::Left);
            return Some(reason);
        }
        (clock::now_us() >= deadline_us).then(|| local(Cause::QueueTimeout))
    }
}

impl Servers for Route<'_> {
    type Seat = Seat;

    async fn next(&mut self, client: BorrowedFd<'_>) -> Result<(ServerId, Seat), NoNext> {
        if self.tried.len() > usize::from(self.group.settings.retries) {
            return Err(NoNext::Tried);
        }
        loop {
            // Whoever waits was here first.
            if !self.group.queue.has_waiters() {
                match self.seat() {
                    Ok(found) => {
                        self.admit()?;
                        return Ok(found);
                    }
                    Err(NoSeat::NoServer) if self.falls_back() => continue,
                    Err(NoSeat::NoServer) if !self.holds() => return Err(self.no_server()),
                    Err(_) => {}
                }
            }
            // Before the wait, which would be for nothing.
            self.admit()?;
            if let Some(found) = self.wait(client).await? {
                return Ok(found);
            }
        }
    }

    fn preface(&self, _: &Seat, client: BorrowedFd<'_>) -> Vec<u8> {
        let Some(told) = self.group.settings.told else {
            return Vec::new();
        };
        let told_of = Introduced {
            client: self.client.address,
            received: self.client.header.as_ref(),
            name: self.client.name.as_ref(),
            protocol: self.client.protocol.as_deref(),
            id: self.id,
        };
        told.header(told_of, client)
    }

    fn origin(&self, seat: &Seat) -> Option<Origin<'_>> {
        self.group.origins.take(seat.as_ref(), self.client.address)
    }

    fn attempted(&mut self, seat: &Seat, result: Result<(), Cause>) {
        match result {
            Ok(()) => seat.connected(),
            Err(cause) => {
                self.tried.push(seat.server());
                seat.attempt_failed(cause);
            }
        }
    }
}

fn local(cause: Cause) -> CloseReason {
    CloseReason::new(Side::Local, Stage::Connect, cause)
}
