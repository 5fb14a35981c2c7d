//! The end of a session, and what of it goes on.

use super::hand_off::may_leave;
use super::storing::Gone;
use super::{Client, ClientEvent};
use crate::account::{self, FlowAccount, LostBytes};
use crate::netstack::Refusal;
use tund_session::wire::frame::CloseCode;
use tund_session::{EndReason, Event, FlowId, Instant, Session};

impl Client {
    /// Every open connection is reset at once; who still waits for one asks the next session.
    pub(super) fn on_ended(&mut self, reason: EndReason, now: Instant) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        let traffic = session.traffic();
        self.past.taken += traffic.taken;
        self.past.released += traffic.released;
        self.past_datagrams = self.past_datagrams.plus(session.datagram_counts());
        self.outage_from = None;
        self.home = None;
        self.is_insisted_on = false;
        self.unwanted_since = None;
        let (mut flows, in_rings) = std::mem::take(&mut self.expired);
        self.leave_all(&session, reason, now);
        flows += self.keep_remainders(&mut session, reason, now);
        self.spool.on_session_ended(now);
        let lost_bytes = self.table.buffered(&mut self.netstack).0
            + in_rings
            + std::mem::take(&mut self.expired).1
            + session.lost();
        let go_on = asks_the_next(reason);
        for id in self.table.leaving() {
            if let Some(account) = self.table.settle(id, lost_in(&session, id), now) {
                self.account(account);
            }
        }
        for (id, mut known) in self.table.drain() {
            if go_on && !known.is_open {
                self.asking.add(known, now);
                self.asking.hurry(now);
            } else {
                flows += 1;
                let mut lost = self.in_rings(&known);
                known.count_rings(lost);
                let in_session = lost_in(&session, id);
                lost.up += in_session.up;
                lost.down += in_session.down;
                let end = account::of_session(reason);
                self.account(FlowAccount::new(id, &known, end, lost, now));
                self.netstack.reset(known.connection);
            }
        }
        for (id, mapping, end) in self.mappings.drain(account::of_session(reason)) {
            let lost = lost_in(&session, id);
            self.account(FlowAccount::of_mapping(id, &mapping, end, lost, now));
        }
        self.mappings.go_on(now);
        if !go_on {
            self.refuse_waiting(Refusal::Reset);
        }
        self.dialer.give_up_all(&mut self.orders);
        let mut is_parting = false;
        // Behind the end, the session names each of its links, attaches under way included.
        while let Some(event) = session.poll_event() {
            if let Event::LinkDead { link, .. } = event {
                // Where nobody has answered, nobody would hear them either: the end is now.
                let has_last_words = session.has_transmit(link) && session.is_working(link);
                is_parting |= has_last_words;
                self.close_link(link, has_last_words);
            }
        }
        if is_parting {
            self.parting.push(session);
        }
        self.events.push_back(ClientEvent::Ended {
            reason,
            flows,
            lost_bytes,
        });
    }
}

impl Client {
    /// What applications did not get is held at the server.
    fn leave_all(&mut self, session: &Session, reason: EndReason, now: Instant) {
        if self.is_held(session, reason) {
            let flows = self.table.iter().map(|(id, _)| id);
            let may = flows.filter(|flow| may_leave(session, *flow));
            for flow in may.collect::<Vec<_>>() {
                self.leave(flow, session.id(), now);
            }
        }
    }

    /// What is left of flows is stored, or counted as lost; returns how many were open.
    fn keep_remainders(&mut self, session: &mut Session, reason: EndReason, now: Instant) -> usize {
        let mut count = 0;
        for (flow, remainder) in session.take_remainders() {
            let mut gone = Gone {
                session: session.id(),
                flow,
                end: account::of_session(reason),
                dropped: session.dropped_of(flow),
            };
            let is_open = self.table.get(flow).is_some_and(|known| known.is_open);
            if is_open && let Some(known) = self.table.remove(flow) {
                count += 1;
                self.keep(&known, gone, remainder, now);
            } else if let Some((known, end)) = self.table.take_leaving(flow) {
                gone.end = end;
                self.keep(&known, gone, remainder, now);
            }
        }
        count
    }
}

/// What a session that has ended held of a flow.
fn lost_in(session: &Session, id: FlowId) -> LostBytes {
    LostBytes {
        up: session.lost_of(id),
        down: session.dropped_of(id),
    }
}

/// Whether connections that were not yet open shall be asked for in a new session: nobody has
/// wished that they end.
const fn asks_the_next(reason: EndReason) -> bool {
    match reason {
        EndReason::Rejected(_) | EndReason::Expired | EndReason::Abandoned => true,
        // A server that stops, or is restarted, says so of the session, not of who still waits.
        EndReason::Peer(CloseCode::Asked) => true,
        EndReason::Local(_) | EndReason::Peer(_) | EndReason::Violation { .. } => false,
    }
}
