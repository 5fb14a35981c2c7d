//! Links of the server: from accept to the last word.

use super::{ClientKey, Server, Source, random};
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpListener;
use tund_daemon::link::{Link, LinkError, SocketOptions, prepare_listener};
use tund_server_core::gate::Verdict;
use tund_server_core::registry::{Farewell, Registry, TurnedAway};
use tund_session::{Instant, LinkDeath, LinkId, SessionId};

/// Connections that wait for accept; a restarted server meets all its clients at once.
const BACKLOG: i32 = 1024;
/// Accepted in one go; the rest comes with the next.
const ACCEPTS: usize = 64;
/// The largest piece taken at once.
const READ_BYTES: usize = 64 * 1024;
/// How long nothing is accepted after the system refused to, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// A link and what the driver knows of it.
pub(super) struct LinkSlot {
    pub(super) link: Link,
    waker: Waker,
    token: u64,
    /// The handshake is complete.
    is_up: bool,
    /// The kernel takes no more for now.
    is_full: bool,
    /// Only the last words are left; dropped then.
    is_closing: bool,
    /// Its key is no longer listed: what the kernel holds for it goes with it.
    is_revoked: bool,
    pub(super) since: Instant,
}

/// A listening socket, dual stack where it is IPv6.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    prepare_listener(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl Server {
    pub(super) fn accept(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get(index) else {
                return;
            };
            let mut cx = Context::from_waker(&listener.waker);
            match listener.socket.poll_accept(&mut cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, from))) => self.admit(stream, from, now),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    self.refusals.add("accept failed");
                    self.timers.insert(
                        (now + ACCEPT_PAUSE, listener.token),
                        Source::Listener(index),
                    );
                    return;
                }
            }
        }
        if let Some(listener) = self.listeners.get(index) {
            listener.waker.wake_by_ref();
        }
    }

    fn admit(&mut self, stream: tokio::net::TcpStream, from: SocketAddr, now: Instant) {
        let id = LinkId(self.next_token);
        match self.gate.admit(id, from.ip(), now) {
            Verdict::Admitted => {}
            Verdict::Displaces(other) => {
                self.refusals.add("gave way to a newcomer");
                self.drop_link(other, now);
            }
            Verdict::Refused => {
                self.refusals.add("too many handshakes at once");
                return;
            }
        }
        match Link::accept(stream, &self.tls, &SocketOptions::default()) {
            Ok(link) => {
                let token = self.next_token;
                let waker = self.register(Source::Link(id));
                let slot = LinkSlot {
                    link,
                    waker,
                    token,
                    is_up: false,
                    is_full: false,
                    is_closing: false,
                    is_revoked: false,
                    since: now,
                };
                self.links.insert(id, slot);
                self.drive_link(id, now);
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was gone before its handshake");
                self.gate.gone(id);
            }
        }
    }

    /// Moves what can be moved on a link.
    pub(super) fn drive_link(&mut self, id: LinkId, now: Instant) {
        let Some(slot) = self.links.get_mut(&id) else {
            return;
        };
        if !slot.is_up && !self.complete_handshake(id, now) {
            return;
        }
        if let Some(slot) = self.links.get_mut(&id) {
            slot.is_full = false;
        }
        self.receive(id, now);
        self.send(id, now);
    }

    /// Whether the handshake is complete.
    fn complete_handshake(&mut self, id: LinkId, now: Instant) -> bool {
        let Some(slot) = self.links.get_mut(&id) else {
            return false;
        };
        match slot
            .link
            .poll_handshake(&mut Context::from_waker(&slot.waker))
        {
            Poll::Pending => false,
            Poll::Ready(Ok(proved)) => {
                slot.is_up = true;
                self.gate.authenticated(id);
                let key = ClientKey(*proved.peer.as_bytes());
                self.registry
                    .handle_link_up(id, key, proved.secret, SessionId(random()), now);
                true
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a handshake failed");
                self.refusals.add(match error {
                    LinkError::KeyNotListed(_) => "key not listed",
                    LinkError::Limit(_) => "handshake too long",
                    LinkError::Tls(_) | LinkError::NotOurServer(_) => "not our protocol",
                    LinkError::PeerClosed | LinkError::Transport(_) => "gone before its handshake",
                });
                self.drop_link(id, now);
                false
            }
        }
    }

    /// Takes what has arrived, as much as the link gives in one turn.
    fn receive(&mut self, id: LinkId, now: Instant) {
        loop {
            let Some(slot) = self.links.get_mut(&id) else {
                return;
            };
            let mut cx = Context::from_waker(&slot.waker);
            match slot.link.poll_recv(&mut cx, READ_BYTES) {
                Poll::Pending => return,
                Poll::Ready(Ok(Some(bytes))) => {
                    self.registry.handle_bytes(id, bytes, now);
                    if self.registry.has_datagrams_waiting(id) {
                        self.take_events(now);
                    }
                }
                Poll::Ready(Ok(None)) => {
                    self.drop_link(id, now);
                    return;
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a link has ended");
                    self.drop_link(id, now);
                    return;
                }
            }
        }
    }

    /// Sends what is due on a link, as much as it takes; true if anything was.
    pub(super) fn send(&mut self, id: LinkId, now: Instant) -> bool {
        let mut moved = false;
        loop {
            let Some(slot) = self.links.get_mut(&id) else {
                return moved;
            };
            if !slot.is_up || slot.is_full {
                return moved;
            }
            let flushed = slot.link.poll_flush(&mut Context::from_waker(&slot.waker));
            if let Poll::Ready(Err(error)) = flushed {
                tracing::debug!(%error, "a link has ended");
                self.drop_link(id, now);
                return true;
            }
            slot.is_full = flushed.is_pending();
            let room = slot.link.room();
            self.outbox.clear();
            if room == 0 || !self.registry.poll_transmit(id, room, &mut self.outbox, now) {
                if slot.is_closing && flushed.is_ready() {
                    slot.link.shutdown();
                    // What cannot be sent at once is waited for until the closing time is over.
                    let _told = slot.link.poll_flush(&mut Context::from_waker(&slot.waker));
                }
                return moved;
            }
            moved = true;
            if let Err(error) = slot.link.send(self.outbox.slices()) {
                tracing::debug!(%error, "a link has ended");
                self.drop_link(id, now);
                return true;
            }
        }
    }

    /// The session has done with a link.
    pub(super) fn close_link(&mut self, id: LinkId, death: LinkDeath, now: Instant) {
        self.part(id, self.registry.farewell(id, death), now);
    }

    fn part(&mut self, id: LinkId, farewell: Farewell, now: Instant) {
        match farewell {
            Farewell::None => self.drop_link(id, now),
            Farewell::LastWords(time) => self.finish_link(id, time, now),
            Farewell::Revoked(time) => {
                self.revoke_link(id);
                self.finish_link(id, time, now);
            }
        }
    }

    /// Whenever the link goes, nothing of it stays.
    fn revoke_link(&mut self, id: LinkId) {
        if let Some(slot) = self.links.get_mut(&id) {
            slot.is_revoked = true;
        }
    }

    pub(super) fn on_turned_away(&mut self, id: LinkId, reason: TurnedAway, now: Instant) {
        match reason {
            TurnedAway::Rejected(reason) => tracing::info!(?reason, "a client was turned away"),
            TurnedAway::KeyInUse => {
                tracing::warn!("a second client with the key of a live one was turned away");
            }
            TurnedAway::NotUnderstood => self.refusals.add("first frame not understood"),
            TurnedAway::Silent => self.refusals.add("no first frame"),
            TurnedAway::Crowded => self.refusals.add("too many links of one key"),
            TurnedAway::KeyRemoved => self.revoke_link(id),
        }
        self.part(id, Registry::farewell_of(reason), now);
    }

    /// Sends what is left, and closes when the peer does, or after so long.
    fn finish_link(&mut self, id: LinkId, time: Duration, now: Instant) {
        let Some(slot) = self.links.get_mut(&id) else {
            return;
        };
        if !slot.is_closing {
            slot.is_closing = true;
            self.timers
                .insert((now + time, slot.token), Source::Link(id));
        }
        self.send(id, now);
    }

    pub(super) fn drop_link(&mut self, id: LinkId, now: Instant) {
        if let Some(slot) = self.links.remove(&id) {
            tracing::debug!(link = %id, "link closed");
            self.sources.remove(&slot.token);
            self.departed.insert(id, slot.link.remote_addr());
            if slot.is_revoked {
                slot.link.reset();
            }
            self.gate.gone(id);
            self.registry.handle_link_down(id, now);
        }
    }
}
