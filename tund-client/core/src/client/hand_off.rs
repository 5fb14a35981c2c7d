//! What an application did not get of a connection that expired: its user's next connection to the
//! same destination asks for it.

use super::Client;
use crate::flow_table::{ClientFlow, NOBODY};
use crate::netstack::ConnectionId;
use std::collections::BTreeMap;
use tund_session::wire::frame::{CloseCode, HandOff, RejectReason, Take};
use tund_session::{EndReason, FlowId, Instant, Offset, Session, SessionId};

/// Connections that wait until it is known whose they are: held SYNs, at most as many as the
/// netstack holds. The driver answers each in its turn.
#[derive(Debug, Default)]
pub(super) struct Nameless(BTreeMap<ConnectionId, ClientFlow>);

impl Nameless {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, waiting: ClientFlow) {
        self.0.insert(waiting.connection, waiting);
    }

    pub(super) fn remove(&mut self, connection: ConnectionId) -> Option<ClientFlow> {
        self.0.remove(&connection)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = ClientFlow> + use<> {
        std::mem::take(&mut self.0).into_values()
    }
}

impl Client {
    /// What OPEN says of hand-off; none where no policy wants it, or nobody is known to want it.
    pub(super) fn hand_off(&self, waiting: &mut ClientFlow) -> Option<HandOff> {
        (waiting.is_answered, waiting.is_left) = (false, false);
        let is_known = waiting.whose() != NOBODY;
        let rule = waiting.hand_off.filter(|_| is_known)?;
        let (takes, last) = self.takes.wanted((waiting.whose(), waiting.destination));
        waiting.asked_to = last;
        Some(HandOff {
            user: waiting.whose(),
            framing: rule.framing,
            retain: rule.retain,
            takes,
        })
    }

    /// The origin has answered, and the server has given what it held.
    pub(super) fn note_given(&mut self, flow: FlowId) {
        let Some(known) = self.table.get_mut(flow) else {
            // It was given up meanwhile, and has left what it was given.
            if let Some(session) = self.session_id() {
                self.takes.answered(session, flow);
            }
            return;
        };
        if known.hand_off.is_some() {
            known.is_answered = true;
            let (user, destination) = (known.whose(), known.destination);
            self.takes.given((user, destination), known.asked_to);
        }
    }

    /// A connection has ended that nobody wished to end: the next one asks for what it has left.
    pub(super) fn leave(&mut self, flow: FlowId, session: Option<SessionId>, now: Instant) {
        let (Some(known), Some(session)) = (self.table.get_mut(flow), session) else {
            return;
        };
        let (user, destination) = (known.whose(), known.destination);
        let Some(rule) = known.hand_off.filter(|_| user != NOBODY) else {
            return;
        };
        known.is_left = true;
        let unsent = u64::try_from(self.netstack.unsent(known.connection)).unwrap_or(u64::MAX);
        let take = Take {
            session,
            flow,
            delivered: Offset(known.down_bytes.saturating_sub(unsent)),
        };
        let left = (take, known.is_answered);
        self.takes
            .leave((user, destination), left, rule.retain, now);
    }

    /// The same of a flow of this session, if its server may hold anything of it.
    pub(crate) fn leave_one(&mut self, flow: FlowId, now: Instant) {
        let may_hold = |session: &Session| session.has_hand_off() && may_leave(session, flow);
        if self.session.as_ref().is_some_and(may_hold) {
            self.leave(flow, self.session_id(), now);
        }
    }

    /// WELCOME has said what the server can. Flows of which it holds nothing are like others.
    pub(super) fn note_plain(&mut self) {
        if let Some(session) = &self.session {
            self.table.hand_off_only(|flow| session.is_handed_off(flow));
        }
    }

    /// A session has begun. If this daemon remembers nothing that was left, as it has started
    /// anew, or its user has disconnected while nobody could be told, the server need not either.
    pub(super) fn forget_held(&mut self) {
        if self.takes.is_empty()
            && self.config.policies.hand_off()
            && let Some(session) = &mut self.session
        {
            session.forget_held();
        }
    }

    /// A session has ended, and `session` has the last word on it. True if its server holds what it
    /// has left.
    pub(super) fn is_held(&mut self, session: &Session, reason: EndReason) -> bool {
        if is_wished(reason) {
            self.takes.clear();
        }
        session.has_hand_off() && is_held(reason)
    }
}

/// The server may have heard of this flow, and what has come of it is a run of messages.
pub(super) fn may_leave(session: &Session, flow: FlowId) -> bool {
    session.was_asked(flow) && !session.is_opaque(flow)
}

/// The user, or whoever runs the server, wishes that nothing goes on.
const fn is_wished(reason: EndReason) -> bool {
    matches!(
        reason,
        EndReason::Local(CloseCode::Asked)
            | EndReason::Peer(CloseCode::Asked | CloseCode::KeyRemoved)
    )
}

/// At the server, flows that were under way have left what their applications did not get.
const fn is_held(reason: EndReason) -> bool {
    matches!(
        reason,
        EndReason::Expired
            | EndReason::Rejected(RejectReason::Expired | RejectReason::Superseded)
            | EndReason::Peer(CloseCode::Superseded)
    )
}
