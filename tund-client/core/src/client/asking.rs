//! The verdict on a SYN: held until the origin has answered, refused, or asked for later.

use super::{Client, ClientEvent, State};
use crate::account::{self, EndedBy, FlowAccount, HowEnded, LostBytes};
use crate::flow_table::ClientFlow;
use crate::netstack::{AcceptError, ConnectionId, Refusal};
use crate::packet::Unreachable;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{DeniedBy, FlowCode, OnExpiry, OpenError, Protocol};
use tund_session::{FlowId, Instant, OpenRefused, Session, Target};

/// When a flow for which there was no room is asked for again, unless another ends before.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// With `connect_during_outage = "refuse"`: how young an outage may be that is over so soon that
/// nobody needs to know, as when the first flow after a pause finds its link gone.
const HOLD_ANYWAY: Duration = Duration::from_secs(1);

/// Held SYNs for which no flow could be opened yet: at most as many as the netstack holds.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// In the order in which they asked.
    queue: BTreeMap<u64, (ConnectionId, SocketAddr, SocketAddr)>,
    places: FxHashMap<ConnectionId, u64>,
    last: u64,
    again_at: Instant,
}

impl Asking {
    /// Asks again at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.again_at = self.again_at.min(now);
    }

    pub(super) fn add(
        &mut self,
        connection: ConnectionId,
        source: SocketAddr,
        destination: SocketAddr,
        at: Instant,
    ) {
        if self.queue.is_empty() {
            self.again_at = at;
        }
        self.last += 1;
        self.places.insert(connection, self.last);
        let asked = (connection, source, destination);
        self.queue.insert(self.last, asked);
    }

    fn remove(&mut self, connection: ConnectionId) {
        if let Some(place) = self.places.remove(&connection) {
            self.queue.remove(&place);
        }
    }

    pub(super) fn drain(&mut self) -> Vec<ConnectionId> {
        self.places.clear();
        let all = std::mem::take(&mut self.queue);
        all.into_values()
            .map(|(connection, ..)| connection)
            .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.queue.len().max(self.places.len())
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(self.again_at)
    }
}

impl Client {
    /// The one verdict on a SYN.
    pub(crate) fn on_syn(
        &mut self,
        connection: ConnectionId,
        source: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) {
        self.is_parted = false;
        let state = self.state();
        if state == State::Refused {
            // Refused at once, but worth another attempt: somebody may have put it right.
            self.is_insisted_on = true;
            self.unwanted_since = None;
            self.netstack
                .refuse(connection, Refusal::Unreachable(Unreachable::Prohibited));
            return;
        }
        let is_out = || self.dialer.wanted_for(now) >= HOLD_ANYWAY;
        if state == State::Detached && self.config.refuse_during_outage && is_out() {
            self.netstack
                .refuse(connection, Refusal::Unreachable(Unreachable::Host));
            return;
        }
        self.ask(connection, source, destination, now);
    }

    /// Opens a flow, or keeps the wish until there is room.
    fn ask(
        &mut self,
        connection: ConnectionId,
        source: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) {
        let target = Target {
            protocol: Protocol::Tcp,
            source,
            destination,
            grace: self.config.grace,
            on_expiry: OnExpiry::Reset,
        };
        let config = &self.config.session;
        let session = self
            .session
            .get_or_insert_with(|| Session::new_client(config, now));
        match session.open_flow(&target, now) {
            Ok(flow) => {
                self.dialer.hurry(now);
                let known = ClientFlow::new(connection, source, destination, now);
                self.table.insert(flow, known);
            }
            Err(OpenRefused::TooManyFlows | OpenRefused::Ended) => {
                self.asking
                    .add(connection, source, destination, now + AGAIN_AFTER);
            }
        }
    }

    /// Asks for what could not be had before, in the order of asking, as long as there is room.
    pub(super) fn ask_again(&mut self, now: Instant) {
        if self.asking.is_empty() || self.asking.again_at > now {
            return;
        }
        self.asking.again_at = now + AGAIN_AFTER;
        while let Some((_, asked)) = self.asking.queue.pop_first() {
            let (connection, source, destination) = asked;
            let place = self.asking.places.remove(&connection);
            self.ask(connection, source, destination, now);
            let is_back = self.asking.places.get(&connection).copied();
            if let (Some(place), Some(back)) = (place, is_back) {
                // No room: it keeps its place.
                self.asking.queue.remove(&back);
                self.asking.queue.insert(place, asked);
                self.asking.places.insert(connection, place);
                self.asking.again_at = now + AGAIN_AFTER;
                return;
            }
        }
    }

    /// The application no longer asks.
    pub(crate) fn on_syn_gone(&mut self, connection: ConnectionId) {
        self.asking.remove(connection);
    }

    /// The origin has answered: so does connection A.
    pub(super) fn accept(&mut self, flow: FlowId, now: Instant) {
        let (Some(known), Some(session)) = (self.table.get_mut(flow), &mut self.session) else {
            return;
        };
        let connection = known.connection;
        self.netstack.set_intake(connection, session.intake(flow));
        match self.netstack.accept(connection) {
            // What has come already goes on with `Writable`, once the handshake is complete.
            Ok(()) => known.is_open = true,
            Err(AcceptError::Gone) => {
                let end = (EndedBy::Application, HowEnded::Cancelled);
                self.table.leave(flow, end, LostBytes::default());
                session.abort(flow, FlowCode::Cancelled, now);
            }
            Err(AcceptError::NoMemory) => {
                let end = (EndedBy::Client, HowEnded::Failed);
                self.table.leave(flow, end, LostBytes::default());
                self.netstack.refuse(connection, Refusal::Silence);
                session.abort(flow, FlowCode::SocketError, now);
            }
        }
    }

    /// The origin cannot be had: the application is told as its own kernel would tell it.
    pub(super) fn turn_down(&mut self, flow: FlowId, error: OpenError, now: Instant) {
        self.asking.hurry(now);
        let Some(known) = self.table.remove(flow) else {
            return;
        };
        if let OpenError::Denied(by) = error {
            let destination = known.destination;
            self.events
                .push_back(ClientEvent::Denied { destination, by });
        }
        if let Some(refusal) = refusal(error) {
            let (end, lost) = (account::of_refusal(error), LostBytes::default());
            self.account(FlowAccount::new(flow, &known, end, lost, now));
            self.netstack.refuse(known.connection, refusal);
        } else {
            // Behind those that wait already, and not at once.
            let at = now + AGAIN_AFTER;
            self.asking
                .add(known.connection, known.source, known.destination, at);
            self.asking.again_at = at;
        }
    }

    /// Whoever waits for a connection is told that there will be none.
    pub(super) fn refuse_all_held(&mut self, now: Instant) {
        let refusal = Refusal::Unreachable(Unreachable::Prohibited);
        for connection in self.asking.drain() {
            self.netstack.refuse(connection, refusal);
        }
        for (flow, connection) in self.table.held() {
            let end = (EndedBy::Server, HowEnded::Refused);
            self.table.leave(flow, end, LostBytes::default());
            self.netstack.refuse(connection, refusal);
            if let Some(session) = &mut self.session {
                session.abort(flow, FlowCode::Cancelled, now);
            }
        }
    }
}

/// The one table: what became of the connect at the server → what the application sees; nothing
/// yet, where the server may have room in a moment.
const fn refusal(error: OpenError) -> Option<Refusal> {
    Some(match error {
        OpenError::Refused => Refusal::Reset,
        OpenError::NetworkUnreachable => Refusal::Unreachable(Unreachable::Network),
        OpenError::HostUnreachable | OpenError::Other(_) => Refusal::Unreachable(Unreachable::Host),
        OpenError::Denied(DeniedBy::Never | DeniedBy::Default | DeniedBy::Deny) => {
            Refusal::Unreachable(Unreachable::Prohibited)
        }
        // The origin says nothing, or the application has stopped asking.
        OpenError::TimedOut | OpenError::Cancelled => Refusal::Silence,
        OpenError::Exhausted | OpenError::TooManyFlows => return None,
    })
}
