//! What drivers make of events, and which of them may not be.

use super::books::{Books, Local};
use super::coverage::Situation;
use super::socket::{Socket, wide};
use super::world::{CLIENT, SERVER, Who, World};
use std::time::Duration;
use tund_server_core::registry::RegistryEvent;
use tund_session::wire::frame::{
    CloseCode, FlowCode, Framing, OnExpiry, Open, OpenError, RejectReason,
};
use tund_session::{EndReason, Event, FlowId, Instant, LinkDeath, LinkId, LinkNumber, Session};

impl World {
    /// Handles what both daemons have to say until they are silent.
    pub(super) fn drain(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(event) = self.client.as_mut().and_then(|c| c.session.poll_event()) {
                quiet = false;
                self.on_event(Who::Client, event);
            }
            while let Some(event) = self.registry.poll_event() {
                quiet = false;
                match event {
                    RegistryEvent::Session { session, event } => {
                        self.on_event(Who::Server(session), event);
                    }
                    RegistryEvent::Final {
                        session,
                        flow,
                        taken,
                        released,
                        ..
                    } => self.note_final(session, flow, (taken, released)),
                    RegistryEvent::Held { session, flow } => self.on_held(session, flow),
                    RegistryEvent::TurnedAway { link, reason } => {
                        self.tell(|| format!("server turns {link} away: {reason:?}"));
                        self.hang_up(link, SERVER, true);
                    }
                }
            }
            if quiet {
                break;
            }
        }
        let mut ready = Vec::new();
        self.registry.poll_dirty(&mut ready);
        self.ready.extend(ready);
        if self
            .client
            .as_ref()
            .is_some_and(|c| c.session.is_ended() && c.books.links.is_empty())
        {
            self.client = None;
        }
        let registry = &self.registry;
        self.books.retain(|id, books| {
            let over = registry.session(*id).is_none_or(Session::is_ended);
            !(over && books.links.is_empty())
        });
    }

    fn on_event(&mut self, who: Who, event: Event) {
        self.tell(|| format!("{who:?}: {event:?}"));
        let is_known = self.on_mapping_event(who, &event)
            || match who {
                Who::Client => self.on_shelf_event(&event),
                Who::Server(id) => self.on_desk_event(id, &event),
            };
        if is_known {
            return;
        }
        match event {
            Event::Attached { number, .. } => self.on_attached(who, number),
            Event::Detached if who == Who::Client => self.note_delivery_cut(),
            Event::Detached | Event::Confirmed | Event::KeyInUse | Event::AttachRefused { .. } => {}
            Event::Reattached { .. } => self.met(Situation::Suspect),
            Event::LinkDead { link, death } => self.on_link_dead(link, who.side(), death),
            Event::WantProgress { link } => {
                let now = self.now;
                if let Some(progress) = self.pipes.get(&link).map(|p| p.progress(who.side())) {
                    self.with(who, |session| session.handle_progress(link, progress, now));
                }
            }
            Event::Ended { reason } => self.on_ended(who, reason),
            Event::FlowOpened { open, .. } => self.on_opened(who, &open),
            Event::FlowAccepted { flow } => self.on_accepted(who, flow),
            Event::FlowRefused { flow, error, .. } => self.on_refused(who, flow, error),
            Event::FlowReadable { flow } => {
                if let Some(local) = self.local(who, flow) {
                    local.give_due = true;
                }
            }
            Event::FlowWritable { flow } => {
                if let Some(local) = self.local(who, flow) {
                    local.take_due = true;
                }
            }
            Event::FlowAborted { flow, code } => {
                self.check_unstored(who, flow, code);
                self.on_aborted(who, flow, code);
                self.strand(who, flow);
            }
            Event::FlowExpired { flow, remainder } => {
                self.met(Situation::StoredAtExpiry);
                self.check_remainder(flow, &remainder);
                self.on_aborted(who, flow, FlowCode::Expired);
            }
            Event::FlowReleased { .. }
            | Event::FlowFinal { .. }
            | Event::FlowHeld { .. }
            | Event::ForgetHeld
            | Event::DeliverOpened { .. } => {
                self.fault("an event of a delivery that nobody began");
            }
            Event::FlowForgotten { flow, .. } => {
                if let Some(books) = self.books(who) {
                    books.locals.remove(&flow);
                }
            }
        }
    }

    fn on_attached(&mut self, who: Who, number: LinkNumber) {
        let now = self.now;
        if let Some(books) = self.books(who) {
            books.heard_at = now;
        }
        let numbers: Vec<_> = self
            .session(who)
            .map(|s| s.live_links().filter_map(|(_, n)| n).collect())
            .unwrap_or_default();
        if numbers.len() > 1 {
            self.met(Situation::TwoLinks);
        }
        if numbers.iter().any(|other| *other > number) {
            self.met(Situation::LateLink);
        }
    }

    fn on_opened(&mut self, who: Who, open: &Open) {
        let unit = usize::from(open.source.port());
        let stored = self.units[unit].stored;
        if stored != (open.on_expiry == OnExpiry::Store(Framing::Line)) {
            self.fault(format!("u{unit} is opened with {:?}", open.on_expiry));
        }
        let handed = self.units[unit].handed;
        let asks = open.hand_off.as_ref().is_some_and(|h| !h.takes.is_empty());
        let socket = Socket::new(unit, SERVER, self.knobs.ring);
        let socket = socket.in_lines([stored, handed]).asks(asks);
        self.units[unit].sockets[SERVER] = Some(socket);
        if let Some(books) = self.books(who) {
            books.locals.insert(open.flow, Local::new(unit, stored));
        }
        if let Who::Server(id) = who {
            self.asks_for_held((id, open.flow), open.hand_off.as_deref());
        }
    }

    fn local(&mut self, who: Who, flow: FlowId) -> Option<&mut Local> {
        self.books(who)?.locals.get_mut(&flow)
    }

    fn on_accepted(&mut self, who: Who, flow: FlowId) {
        let live = self.local(who, flow).filter(|local| !local.is_complete());
        let Some(local) = live else {
            return;
        };
        local.accept();
        let unit = local.unit;
        self.units[unit].is_early = false;
        if let Some(socket) = &mut self.units[unit].sockets[who.side()] {
            socket.connected = true;
        }
        if who == Who::Client {
            self.note_given(flow);
        }
    }

    fn on_refused(&mut self, who: Who, flow: FlowId, error: OpenError) {
        let Some(local) = self.books(who).and_then(|books| books.locals.remove(&flow)) else {
            return;
        };
        if error == OpenError::TooManyFlows {
            self.met(Situation::TooManyFlows);
        } else if error == OpenError::Exhausted && (local.stored || local.handed) {
            self.met(Situation::NoRoomForMessages);
        } else if error != OpenError::Refused {
            self.fault(format!("u{} was refused with {error:?}", local.unit));
        }
        let unit = &mut self.units[local.unit];
        unit.aborted = Some("refused");
        if let Some(socket) = &mut unit.sockets[who.side()] {
            socket.reset();
        }
    }

    fn on_link_dead(&mut self, link: LinkId, side: usize, death: LinkDeath) {
        match death {
            LinkDeath::Silent => self.met(Situation::SilentDeath),
            LinkDeath::Retired => {
                let busy = self.pipes.get(&link);
                let busy = busy.is_some_and(|p| p.lanes.iter().any(|lane| lane.under_way() > 0));
                if busy {
                    self.met(Situation::RetireBusy);
                }
            }
            LinkDeath::Transport
            | LinkDeath::PeerClosed
            | LinkDeath::AttachFailed
            | LinkDeath::SessionEnded => {}
        }
        let last_words = matches!(death, LinkDeath::SessionEnded | LinkDeath::Retired);
        self.hang_up(link, side, last_words);
    }

    fn on_aborted(&mut self, who: Who, flow: FlowId, code: FlowCode) {
        let side = who.side();
        if who == Who::Client && code == FlowCode::Expired {
            self.leave(flow);
        }
        let Some(local) = self.local(who, flow) else {
            return;
        };
        local.over = true;
        let waits = !local.accepted;
        let (index, progress_at) = (local.unit, local.progress_at);
        if let Who::Server(id) = who
            && waits
        {
            self.given_up.push((id, flow));
        }
        match code {
            FlowCode::Cancelled => {
                let cancelled = self.units[index].sockets[CLIENT].as_ref();
                if !cancelled.is_some_and(|socket| socket.app_rst) {
                    self.fault(format!("u{index} was cancelled by nobody"));
                }
                self.met(Situation::CancelledOpen);
                self.units[index].aborted = Some("cancelled");
            }
            FlowCode::Expired => self.on_expired(who, index),
            FlowCode::PeerReset if who != Who::Client && self.units[index].is_early => {
                // The application did not wait for its origin.
                self.units[index].aborted = Some("cancelled");
            }
            FlowCode::PeerReset => self.on_stalled_reset(who, flow, (index, progress_at)),
            FlowCode::SocketError | FlowCode::Asked | FlowCode::Idle | FlowCode::Unsealable => {
                self.fault(format!(
                    "u{index} was aborted with {code:?}, which nobody asked for"
                ));
            }
        }
        if let Some(socket) = &mut self.units[index].sockets[side] {
            socket.reset();
        }
    }

    /// A server's driver says what its socket throws away, as its kernel has it.
    pub(super) fn strand(&mut self, who: Who, flow: FlowId) {
        let now = self.now;
        if who.side() == SERVER {
            self.with(who, |session| session.strand(flow, 0, now));
        }
    }

    /// Rule 11: no grace runs while a link is up.
    fn on_expired(&mut self, who: Who, index: usize) {
        let now = self.now;
        let (grace, born) = (self.units[index].grace, self.units[index].born);
        self.units[index].aborted = Some("expired");
        let Some(books) = self.books(who) else {
            return;
        };
        books.expired_at = Some(now);
        let heard_at = books.heard_at;
        if !self.in_timeout {
            return;
        }
        let extra = match who {
            Who::Client => Duration::ZERO,
            Who::Server(_) => Duration::from_secs(30),
        };
        let outage = now.saturating_duration_since(heard_at.max(born));
        if outage < grace + extra {
            self.fault(format!(
                "u{index} expired {outage:?} after a frame or its beginning, grace {grace:?}"
            ));
        }
        let there = self.units[index].sockets[1 - who.side()].as_ref();
        if there.is_some_and(|socket| !socket.is_reset()) {
            self.met(match who {
                Who::Client => Situation::ExpiryAtClient,
                Who::Server(_) => Situation::ExpiryAtServer,
            });
        }
    }

    /// Rule 13: a reset waits for its bytes, and for the socket to take them, but not for ever.
    fn on_stalled_reset(&mut self, who: Who, flow: FlowId, local: (usize, Instant)) {
        let (index, progress_at) = local;
        let side = who.side();
        let held = self.held.get(&(who, flow)).copied().unwrap_or(0);
        let unit = &self.units[index];
        let (Some(here), Some(there)) = (&unit.sockets[side], &unit.sockets[1 - side]) else {
            self.fault(format!("u{index} was reset with one socket only"));
            return;
        };
        let waited = self.now.saturating_duration_since(progress_at);
        if !self.in_timeout || !there.app_rst {
            self.fault(format!("u{index} was reset by nobody"));
        } else if !here.app_rst && here.put + held < there.wrote {
            let (put, wrote) = (here.put, there.wrote);
            self.fault(format!(
                "u{index} was reset with {put} + {held} of {wrote} bytes here"
            ));
        } else if waited < Duration::from_secs(5) {
            self.fault(format!(
                "u{index} was reset {waited:?} after its reader took something"
            ));
        } else {
            self.met(Situation::ResetStalled);
            self.units[index].stalled_reset = true;
        }
    }

    fn on_ended(&mut self, who: Who, reason: EndReason) {
        let now = self.now;
        let Some(books) = self.books(who) else {
            return;
        };
        let (closing, heard_at, expired_at) = (books.closing, books.heard_at, books.expired_at);
        self.check_remainders(who, reason);
        match who {
            Who::Client => {
                self.stop_delivering(false);
                self.leave_all(reason);
            }
            Who::Server(id) => self.note_forgotten(id, reason),
        }
        let Some(books) = self.books(who) else {
            return;
        };
        let locals = std::mem::take(&mut books.locals);
        let mappings = std::mem::take(&mut books.mappings);
        let silence = now.saturating_duration_since(heard_at);
        let live = locals.values().any(|local| !local.is_complete())
            || self.has_live_mapping(mappings.values().copied());
        let quiet = !live && silence >= Duration::from_secs(600);
        // Some flow has expired just now, or one that nothing is said of any more, since its socket
        // is gone. If none did, rule 15 has its say.
        let is_mute = !live && !mappings.is_empty();
        let expired = expired_at == Some(now) || locals.values().any(Local::is_complete) || is_mute;
        let legitimate = match reason {
            EndReason::Local(CloseCode::Superseded) => {
                self.met(Situation::Superseded);
                !self.is_current(who)
            }
            EndReason::Local(_) => closing,
            EndReason::Peer(CloseCode::Violation) | EndReason::Violation { .. } => false,
            EndReason::Peer(_) => !self.has_peer(who),
            EndReason::Rejected(RejectReason::Restarted) => !self.has_peer(who),
            EndReason::Rejected(
                RejectReason::Ended | RejectReason::Superseded | RejectReason::Expired,
            ) => !self.has_peer(who),
            EndReason::Rejected(_) => false,
            EndReason::Expired => self.in_timeout && expired,
            EndReason::Abandoned => {
                let confirmed = self.session(who).is_some_and(Session::is_confirmed);
                self.met(if confirmed {
                    Situation::Abandoned
                } else {
                    Situation::Unconfirmed
                });
                !confirmed || quiet
            }
        };
        if !legitimate {
            self.fault(format!("{who:?} ended without a reason: {reason:?}"));
        }
        let books = Books {
            locals,
            mappings,
            ..Books::new(0, now)
        };
        self.abandon_sockets(&books, who.side(), None);
    }

    /// The client still uses this server session.
    fn is_current(&self, who: Who) -> bool {
        match (who, &self.client) {
            (Who::Server(id), Some(client)) => {
                client.session.id() == Some(id) && !client.session.is_ended()
            }
            _ => false,
        }
    }

    /// The other end of this session is there and has not ended.
    fn has_peer(&self, who: Who) -> bool {
        match who {
            Who::Server(_) => self.is_current(who),
            Who::Client => {
                let id = self.client.as_ref().and_then(|client| client.session.id());
                let peer = id.and_then(|id| self.registry.session(id));
                peer.is_some_and(|session| !session.is_ended())
            }
        }
    }

    /// Bytes that wait for readers whose writer has reset.
    pub(super) fn note_held(&mut self) {
        self.held.clear();
        for who in self.ends() {
            let books = match who {
                Who::Client => self.client.as_ref().map(|client| &client.books),
                Who::Server(id) => self.books.get(&id),
            };
            let (Some(books), Some(session)) = (books, self.session(who)) else {
                continue;
            };
            let mut held = Vec::new();
            for (flow, local) in &books.locals {
                let writer = self.units[local.unit].sockets[1 - who.side()].as_ref();
                if writer.is_some_and(|socket| socket.app_rst) {
                    let bytes = session.readable(*flow).map(|piece| wide(piece.len())).sum();
                    held.push(((who, *flow), bytes));
                }
            }
            self.held.extend(held);
        }
    }
}
