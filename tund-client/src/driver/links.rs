//! Links of the client: from the SYN to the last word.

use super::Daemon;
use crate::sys::socket::link_socket;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tund_client_core::PathId;
use tund_daemon::link::{Link, LinkError, SocketOptions};
use tund_session::{Instant, LinkId};

/// The largest piece taken at once.
const READ_BYTES: usize = 64 * 1024;
/// How long a closing link may take to send its last words.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// A link or an attempt, and what the driver knows of it.
pub(super) struct LinkSlot {
    pub(super) link: Link,
    waker: Waker,
    pub(super) interface: String,
    pub(super) since: Instant,
    is_answered: bool,
    is_up: bool,
    /// The kernel takes no more for now.
    is_full: bool,
    /// Only the last words are left; dropped then.
    closing_until: Option<Instant>,
}

impl Daemon {
    pub(super) fn dial(&mut self, id: LinkId, path: PathId, now: Instant) {
        let Some((way, server)) = self.paths.get(path).cloned() else {
            self.client.handle_link_down(id, false, now);
            return;
        };
        tracing::debug!(interface = way.interface, link = %id, "dialling");
        let dialled = link_socket(&way, server, self.paths.fwmark())
            .map_err(|error| error.to_string())
            .and_then(|socket| {
                let options = SocketOptions::default();
                let link = Link::connect(socket, server, &self.tls, &options);
                link.map_err(|error| error.to_string())
            });
        match dialled {
            Ok(link) => {
                let slot = LinkSlot {
                    link,
                    waker: self.ready.register(id.0),
                    interface: way.interface,
                    since: now,
                    is_answered: false,
                    is_up: false,
                    is_full: false,
                    closing_until: None,
                };
                if let Ok(source) = slot.link.local_addr() {
                    self.client.handle_source(id, source.ip());
                }
                self.links.insert(id, slot);
                self.name_links();
                self.drive_link(id, now);
            }
            Err(error) => {
                tracing::debug!(error, "an attempt failed at once");
                self.last_error = Some(("unreachable", error));
                self.client.handle_link_down(id, false, now);
            }
        }
    }

    /// Tells connection A which packets are our own, should they come out of the device.
    fn name_links(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "their order does not matter")]
        let links = self.links.values().map(|slot| &slot.link);
        let ends = links.filter_map(|link| Some((link.local_addr().ok()?, link.remote_addr())));
        let ends: Vec<_> = ends.collect();
        self.client.netstack().set_links(&ends);
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
        let result = slot
            .link
            .poll_handshake(&mut Context::from_waker(&slot.waker));
        if slot.link.is_connected() && !slot.is_answered {
            slot.is_answered = true;
            self.client.handle_answered(id, now);
        }
        match result {
            Poll::Pending => false,
            Poll::Ready(Ok(proved)) => {
                slot.is_up = true;
                self.files.set_server_key(proved.peer);
                self.client.handle_link_up(id, proved.secret, now);
                true
            }
            Poll::Ready(Err(error)) => {
                self.fail_link(id, &error, now);
                false
            }
        }
    }

    fn fail_link(&mut self, id: LinkId, error: &LinkError, now: Instant) {
        tracing::debug!(%error, link = %id, "a link or an attempt has ended");
        self.note_failure(error);
        self.drop_link(id, matches!(error, LinkError::KeyNotListed(_)), now);
    }

    fn drop_link(&mut self, id: LinkId, is_refused: bool, now: Instant) {
        tracing::debug!(link = %id, "link closed");
        self.links.remove(&id);
        self.client.handle_link_down(id, is_refused, now);
    }

    /// Takes what has arrived, as much as the link gives in one turn.
    fn receive(&mut self, id: LinkId, now: Instant) {
        loop {
            let Some(slot) = self.links.get_mut(&id) else {
                return;
            };
            match slot
                .link
                .poll_recv(&mut Context::from_waker(&slot.waker), READ_BYTES)
            {
                Poll::Pending => return,
                Poll::Ready(Ok(Some(bytes))) => {
                    self.client.handle_bytes(id, bytes, now);
                    if self.client.has_datagrams_waiting() {
                        self.flush(now);
                    }
                }
                Poll::Ready(Ok(None)) => {
                    self.drop_link(id, false, now);
                    return;
                }
                Poll::Ready(Err(error)) => {
                    self.fail_link(id, &error, now);
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
                self.fail_link(id, &error, now);
                return true;
            }
            slot.is_full = flushed.is_pending();
            let room = slot.link.room();
            self.outbox.clear();
            if room == 0 || !self.client.poll_transmit(id, room, &mut self.outbox, now) {
                if slot.closing_until.is_some() && flushed.is_ready() {
                    slot.link.shutdown();
                    // What cannot be sent at once is waited for until the closing time is over.
                    let _told = slot.link.poll_flush(&mut Context::from_waker(&slot.waker));
                }
                return moved;
            }
            moved = true;
            if let Err(error) = slot.link.send(self.outbox.slices()) {
                self.fail_link(id, &error, now);
                return true;
            }
        }
    }

    pub(super) fn close_link(&mut self, id: LinkId, has_last_words: bool, now: Instant) {
        let Some(slot) = self.links.get_mut(&id) else {
            return;
        };
        if !has_last_words || !slot.is_up {
            self.drop_link(id, false, now);
            return;
        }
        slot.closing_until.get_or_insert(now + CLOSING_TIME);
        self.send(id, now);
    }

    /// Drops closing links whose time is over.
    pub(super) fn close_overdue(&mut self, now: Instant) {
        if self.next_close().is_none_or(|at| at > now) {
            return;
        }
        let over = |slot: &LinkSlot| slot.closing_until.is_some_and(|at| at <= now);
        #[expect(clippy::disallowed_methods, reason = "their order does not matter")]
        let overdue: Vec<_> = self
            .links
            .iter()
            .filter(|(_, slot)| over(slot))
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            self.drop_link(id, false, now);
        }
    }

    pub(super) fn next_close(&self) -> Option<Instant> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the earliest, whatever the order"
        )]
        self.links
            .values()
            .filter_map(|slot| slot.closing_until)
            .min()
    }
}
