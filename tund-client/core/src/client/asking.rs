//! The verdict on a SYN: held until the origin has answered, refused, or asked for later.

use super::storing::Gone;
use super::{Client, ClientEvent, State};
use crate::account::{self, EndedBy, FlowAccount, HowEnded, LostBytes};
use crate::flow_table::{ClientFlow, NOBODY};
use crate::netstack::{AcceptError, ConnectionId, NetEvent, Refusal};
use crate::packet::Unreachable;
use crate::policy::DuringOutage;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{DeniedBy, FlowCode, OnExpiry, OpenError, Protocol};
use tund_session::{FlowId, Instant, OpenRefused, Remainder, Session, Target};

/// When a flow for which there was no room is asked for again, unless another ends before.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// With `connect_during_outage = "refuse"`: how young an outage may be that is over so soon that
/// nobody needs to know, as when the first flow after a pause finds its link gone.
const HOLD_ANYWAY: Duration = Duration::from_secs(1);

/// Connections for which no flow could be opened yet: held SYNs, at most as many as the netstack
/// holds, and what has waited behind a drain.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// In the order in which they asked.
    queue: BTreeMap<u64, ClientFlow>,
    places: FxHashMap<ConnectionId, u64>,
    last: u64,
    again_at: Instant,
}

impl Asking {
    /// Asks again at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.again_at = self.again_at.min(now);
    }

    pub(super) fn add(&mut self, waiting: ClientFlow, at: Instant) {
        if self.queue.is_empty() {
            self.again_at = at;
        }
        self.last += 1;
        self.places.insert(waiting.connection, self.last);
        self.queue.insert(self.last, waiting);
    }

    fn remove(&mut self, connection: ConnectionId) {
        if let Some(place) = self.places.remove(&connection) {
            self.queue.remove(&place);
        }
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = ClientFlow> + use<> {
        self.places.clear();
        std::mem::take(&mut self.queue).into_values()
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
    /// A flow has ended, and leaves room: who waits for some asks at once.
    pub(super) fn hurry_asking(&mut self, now: Instant) {
        self.asking.hurry(now);
    }

    /// The one verdict on a SYN.
    pub(crate) fn on_syn(
        &mut self,
        connection: ConnectionId,
        source: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) {
        if self.config.is_nothing_at(destination) {
            self.netstack.refuse(connection, Refusal::Reset);
            return;
        }
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
        let rules = self.config.policies.rules(destination);
        let refuses = rules.during_outage == DuringOutage::Refuse;
        if state == State::Detached && refuses && is_out() {
            self.netstack
                .refuse(connection, Refusal::Unreachable(Unreachable::Host));
            return;
        }
        self.ask(ClientFlow::new(connection, source, destination, now), now);
    }

    /// Opens a flow, or keeps the wish until there is room, or until older bytes for the same
    /// destination are delivered.
    pub(super) fn ask(&mut self, mut waiting: ClientFlow, now: Instant) {
        let rules = self.config.policies.rules(waiting.destination);
        let accepts = rules.during_outage == DuringOutage::Accept;
        let is_early = accepts && self.state() != State::Attached;
        waiting.store = rules.store;
        waiting.hand_off = rules.hand_off;
        if self.is_draining(waiting.destination) {
            self.wait_behind(waiting, is_early, now);
            return;
        }
        if waiting.hand_off.is_some() && waiting.user.is_none() {
            self.find_user(&waiting);
            self.nameless.add(waiting);
            return;
        }
        let hand_off = self.hand_off(&mut waiting);
        let target = Target {
            protocol: Protocol::Tcp,
            source: waiting.source,
            destination: self.config.for_server(waiting.destination),
            grace: rules.grace,
            on_expiry: rules
                .store
                .map_or(OnExpiry::Reset, |store| OnExpiry::Store(store.framing)),
            accept_early: is_early || waiting.is_open,
        };
        let config = &self.config.session;
        let session = self
            .session
            .get_or_insert_with(|| Session::new_client(config, now));
        let opened = match hand_off {
            None => session.open_flow(&target, now),
            Some(hand_off) => session.open_handed_off(&target, hand_off, now),
        };
        match opened {
            Ok(flow) => {
                let is_handed_off = session.is_handed_off(flow);
                waiting.hand_off = waiting.hand_off.filter(|_| is_handed_off);
                self.dialer.hurry(now);
                self.find_user(&waiting);
                self.table.insert(flow, waiting);
                if target.accept_early {
                    self.accept(flow, now);
                }
            }
            Err(OpenRefused::TooManyFlows) => {
                self.make_room_for_flow(now);
                self.asking.add(waiting, now + AGAIN_AFTER);
            }
            Err(OpenRefused::Ended | OpenRefused::NoRoom | OpenRefused::NotAgreed) => {
                self.asking.add(waiting, now + AGAIN_AFTER)
            }
        }
    }

    /// Who may have bytes stored has a share of the spool, and what is held goes to its user only: the
    /// driver finds out whose a connection is.
    pub(super) fn find_user(&mut self, waiting: &ClientFlow) {
        if waiting.user.is_none() && (waiting.store.is_some() || waiting.hand_off.is_some()) {
            self.events.push_back(ClientEvent::FindUser {
                connection: waiting.connection,
                source: waiting.source,
                destination: waiting.destination,
            });
        }
    }

    /// The answer to [`ClientEvent::FindUser`]; none where nobody knows.
    pub fn handle_user(&mut self, connection: ConnectionId, user: Option<u32>, now: Instant) {
        let user = user.or(Some(NOBODY));
        if let Some(known) = self.table.find(connection) {
            known.user = user;
        }
        if let Some(waiting) = self.behind.find(connection) {
            waiting.user = user;
        }
        if let Some(mut waiting) = self.nameless.remove(connection) {
            waiting.user = user;
            self.ask(waiting, now);
        }
    }

    /// Asks for what could not be had before, in the order of asking, as long as there is room;
    /// true if it was time to.
    pub(super) fn ask_again(&mut self, now: Instant) -> bool {
        if self.asking.is_empty() || self.asking.again_at > now {
            return false;
        }
        self.asking.again_at = now + AGAIN_AFTER;
        while let Some((_, asked)) = self.asking.queue.pop_first() {
            let connection = asked.connection;
            let place = self.asking.places.remove(&connection);
            self.ask(asked, now);
            let is_back = self.asking.places.get(&connection).copied();
            if let (Some(place), Some(back)) = (place, is_back) {
                // No room: it keeps its place.
                self.asking.queue.remove(&back);
                self.asking.queue.insert(place, asked);
                self.asking.places.insert(connection, place);
                self.asking.again_at = now + AGAIN_AFTER;
                return true;
            }
        }
        true
    }

    /// What connection A tells of a connection that has no flow: one that waits, or one whose
    /// bytes are being stored.
    pub(crate) fn on_event_without_flow(&mut self, event: NetEvent, connection: ConnectionId) {
        match event {
            NetEvent::Closed { .. } | NetEvent::ResetByApp { .. } | NetEvent::SynGone { .. } => {
                self.asking.remove(connection);
                self.behind.remove(connection);
                self.nameless.remove(connection);
            }
            NetEvent::Finished { .. } => self.storing.finish(connection),
            NetEvent::Drained { .. }
            | NetEvent::Readable { .. }
            | NetEvent::Syn { .. }
            | NetEvent::Writable { .. } => {}
        }
    }

    /// The origin has answered, or a policy does not wait for that: so does connection A.
    pub(super) fn accept(&mut self, flow: FlowId, now: Instant) {
        let (Some(known), Some(session)) = (self.table.get_mut(flow), &mut self.session) else {
            return;
        };
        let connection = known.connection;
        self.netstack.set_intake(connection, session.intake(flow));
        if known.is_open {
            // Accepted before: what the application has sent meanwhile goes on, and its FIN, which
            // is told only once where nothing stands before it.
            self.pump_up(flow, now);
            if self.netstack.readable(connection) == 0 && self.netstack.has_finished(connection) {
                self.on_finished(flow, now);
            }
            self.pump_down(flow, now);
            return;
        }
        match self.netstack.accept(connection) {
            // What has come already goes on with `Writable`, once the handshake is complete.
            Ok(()) => known.is_open = true,
            Err(error) => self.lose_accepted(flow, error, now),
        }
    }

    /// There is no connection A for an origin that has answered: nobody was given what the server
    /// has for it, and the next one is to be.
    fn lose_accepted(&mut self, flow: FlowId, error: AcceptError, now: Instant) {
        self.leave_one(flow, now);
        let end = match error {
            AcceptError::Gone => (EndedBy::Application, HowEnded::Cancelled),
            AcceptError::NoMemory => (EndedBy::Client, HowEnded::Failed),
        };
        let known = self.table.leave(flow, end, LostBytes::default());
        if error == AcceptError::NoMemory
            && let Some(known) = known
        {
            self.netstack.refuse(known.connection, Refusal::Silence);
        }
        if let Some(session) = &mut self.session {
            session.abort(flow, FlowCode::Cancelled, now);
        }
    }

    /// The origin cannot be had: the application is told as its own kernel would tell it. One that
    /// was accepted before is reset, and what it has sent is stored if its policy says so.
    pub(super) fn turn_down(
        &mut self,
        flow: FlowId,
        error: OpenError,
        remainder: Option<Remainder>,
        now: Instant,
    ) {
        self.asking.hurry(now);
        let Some(known) = self.table.remove(flow) else {
            return;
        };
        if let OpenError::Denied(by) = error {
            let destination = known.destination;
            self.events
                .push_back(ClientEvent::Denied { destination, by });
        }
        if known.is_open {
            let gone = Gone {
                session: self.session_id(),
                flow,
                end: account::of_refusal(error),
                dropped: 0,
            };
            self.keep(&known, gone, remainder.unwrap_or_default(), now);
        } else if let Some(refusal) = refusal(error) {
            let (end, lost) = (account::of_refusal(error), LostBytes::default());
            self.account(FlowAccount::new(flow, &known, end, lost, now));
            self.netstack.refuse(known.connection, refusal);
        } else {
            // Behind those that wait already, and not at once.
            let at = now + AGAIN_AFTER;
            self.asking.add(known, at);
            self.asking.again_at = at;
        }
    }

    /// Whoever waits for a connection is told that there will be none.
    pub(super) fn refuse_all_held(&mut self, now: Instant) {
        let refusal = Refusal::Unreachable(Unreachable::Prohibited);
        self.refuse_waiting(refusal);
        for (flow, connection) in self.table.held() {
            self.leave_one(flow, now);
            let end = (EndedBy::Server, HowEnded::Refused);
            self.table.leave(flow, end, LostBytes::default());
            self.netstack.refuse(connection, refusal);
            if let Some(session) = &mut self.session {
                session.abort(flow, FlowCode::Cancelled, now);
            }
        }
    }

    /// Whoever has no flow yet is refused; who was accepted is reset.
    pub(super) fn refuse_waiting(&mut self, refusal: Refusal) {
        let waiting = self.asking.drain().chain(self.behind.drain());
        let waiting = waiting.chain(self.nameless.drain());
        for waiting in waiting {
            if waiting.is_open {
                let lost = self.netstack.readable(waiting.connection);
                self.expired.1 += u64::try_from(lost).unwrap_or(0);
                self.netstack.reset(waiting.connection);
            } else {
                self.netstack.refuse(waiting.connection, refusal);
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
