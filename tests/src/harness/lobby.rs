//! What connections of a user have left at the server when they were lost, and who may be given it.

use super::coverage::Situation;
use super::socket::{Socket, wide};
use super::world::{CLIENT, SERVER, Who, World};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tund_session::wire::codec::MAX_TAKES;
use tund_session::wire::frame::{CloseCode, Framing, HandOff, RejectReason, Take};
use tund_session::{EndReason, FlowId, Offset, SessionId};

/// A flow of some session.
type Name = (SessionId, FlowId);

/// As long as the server holds anything; no schedule lasts so long.
const RETAIN: Duration = Duration::from_secs(24 * 3600);

/// A take of the client, and whose it is.
#[derive(Debug)]
struct Left {
    user: u32,
    take: Take,
}

/// What the server should hold of a flow.
#[derive(Debug)]
struct Held {
    unit: usize,
    /// The place behind the last byte that was read of the origin.
    end: u64,
}

/// What both daemons should know of it.
#[derive(Debug, Default)]
pub(super) struct Lobby {
    /// The client's, the oldest first.
    left: Vec<Left>,
    /// The server's.
    held: BTreeMap<Name, Held>,
    /// What OPEN_HAND_OFF said of a flow.
    asked: BTreeMap<Name, HandOff>,
    /// Flows that the server has accepted, and that nothing excuses it from holding.
    owed: BTreeMap<Name, usize>,
    /// What each flow of the client's session has asked for.
    wanted: BTreeMap<FlowId, Vec<Name>>,
}

/// Whose a flow of the world is.
const fn user(unit: usize) -> u32 {
    if unit.is_multiple_of(3) { 1001 } else { 1000 }
}

impl World {
    /// What a flow of the world says of hand-off. Some claim what is another user's, too.
    pub(super) fn hand_off(&self, unit: usize) -> HandOff {
        let claims = unit % 8 == 3;
        let left = self.lobby.left.iter();
        let of_user = left.filter(|left| claims || left.user == user(unit));
        HandOff {
            user: user(unit),
            framing: Framing::Line,
            retain: RETAIN,
            takes: of_user.map(|left| left.take).take(MAX_TAKES).collect(),
        }
    }

    /// The client has asked for a flow in that way.
    pub(super) fn wants_held(&mut self, flow: FlowId, hand_off: &HandOff) {
        let names = hand_off.takes.iter().map(|take| (take.session, take.flow));
        let is_own = |name: &Name| {
            let mut left = self.lobby.left.iter();
            left.any(|left| {
                left.user == hand_off.user && (left.take.session, left.take.flow) == *name
            })
        };
        let own = names.filter(is_own).collect();
        self.lobby.wanted.insert(flow, own);
    }

    /// The server has heard of it.
    pub(super) fn asks_for_held(&mut self, name: Name, hand_off: Option<&HandOff>) {
        if let Some(hand_off) = hand_off {
            self.lobby.asked.insert(name, hand_off.clone());
        }
    }

    /// C is connected: what the flow begins with, the world takes for written by its origin.
    pub(super) fn accept_at_server(&mut self, id: SessionId, flow: FlowId) {
        let wants = |world: &Self| Some(world.registry.session(id)?.wants_held(flow)?.0.user);
        if let Some(user) = wants(self) {
            let prologue = self.prologue((id, flow), user);
            let local = self.books.get(&id).and_then(|b| b.locals.get(&flow));
            if let Some(unit) = local.map(|local| local.unit) {
                self.lobby.owed.insert((id, flow), unit);
                for socket in self.units[unit].sockets.iter_mut().flatten() {
                    socket.begin_with(prologue.clone());
                }
                let origin = self.units[unit].sockets[SERVER].as_mut();
                origin.into_iter().for_each(Socket::has_said_prologue);
                let length = prologue.len();
                self.tell(|| format!("u{unit} begins with {length} bytes that were held"));
            }
        }
        let now = self.now;
        self.registry.accept_flow(id, flow, now);
        if self.registry.offers().len() != self.lobby.held.len() {
            self.fault("the server holds what was given, or does not hold what was not");
        }
    }

    /// What a flow is to be given, which is held no more.
    fn prologue(&mut self, name: Name, user_of: u32) -> Bytes {
        let takes = self
            .lobby
            .asked
            .remove(&name)
            .map_or(Vec::new(), |h| h.takes);
        let mut prologue = Vec::new();
        for take in takes {
            let of = (take.session, take.flow);
            let is_others = |held: &Held| user(held.unit) != user_of;
            if self.lobby.held.get(&of).is_some_and(is_others) {
                self.met(Situation::ClaimedByAnother);
                continue;
            }
            let Some(held) = self.lobby.held.remove(&of) else {
                self.check_not_owed(of, user_of, take.delivered.0);
                continue;
            };
            self.lobby.owed.remove(&of);
            let Some(origin) = &self.units[held.unit].sockets[SERVER] else {
                continue;
            };
            let ends = |at: &u64| *at == 0 || origin.written_at(*at - 1) == b'\n';
            let boundary = |at: u64| (0..=at).rev().find(ends).unwrap_or(0);
            let from = boundary(take.delivered.0);
            let to = boundary(held.end);
            let (is_again, is_cut) = (from < origin.prologue_len(), from < take.delivered.0);
            if !origin.writes_opaque() {
                prologue.extend((from..to).map(|at| origin.written_at(at)));
            }
            if to > from {
                self.met(Situation::HandedOff);
                if is_again {
                    self.met(Situation::HandedOffAgain);
                }
                if is_cut {
                    self.met(Situation::SaidAgain);
                }
            }
        }
        if self
            .lobby
            .held
            .values()
            .any(|held| user(held.unit) != user_of)
        {
            self.met(Situation::HeldForAnother);
        }
        prologue.into()
    }

    /// Nothing is held of a flow: its application has all that was read of its origin.
    fn check_not_owed(&mut self, of: Name, user_of: u32, delivered: u64) {
        let Some(unit) = self.lobby.owed.get(&of).copied() else {
            return;
        };
        let origin = self.units[unit].sockets[SERVER].as_ref();
        let read = origin.map_or(0, Socket::taken);
        let is_opaque = origin.is_some_and(Socket::writes_opaque);
        if user(unit) == user_of && read > delivered && !is_opaque {
            self.fault(format!(
                "nothing is held of u{unit}: {delivered} to {read} are missing"
            ));
        }
    }

    /// The server holds what a flow has left: its driver adds what the origin's socket still has.
    pub(super) fn on_held(&mut self, id: SessionId, flow: FlowId) {
        let local = self.books.get(&id).and_then(|b| b.locals.get(&flow));
        let Some(unit) = local.map(|local| local.unit) else {
            self.fault(format!("{flow} is held, and nobody knows it"));
            return;
        };
        let Some(origin) = &mut self.units[unit].sockets[SERVER] else {
            return;
        };
        let is_over = origin.app_fin || origin.app_rst;
        while let Some(room) = self.registry.room_for_rest(id, flow) {
            let rest = origin.take(wide(room));
            if !rest.is_empty() {
                self.registry.add_rest(id, flow, Some(&rest));
                continue;
            }
            if is_over {
                self.registry.add_rest(id, flow, None);
            }
            break;
        }
        let held = Held {
            unit,
            end: origin.taken(),
        };
        let end = held.end;
        self.lobby.held.insert((id, flow), held);
        self.tell(|| format!("u{unit} is held to {end}"));
        // Others may be on their way here.
        if self.registry.offers().len() < self.lobby.held.len() {
            self.fault("the server forgets what it should hold");
        }
    }

    /// The origin has answered: what was asked for is given.
    pub(super) fn note_given(&mut self, flow: FlowId) {
        let given = self.lobby.wanted.remove(&flow).unwrap_or_default();
        let is_given = |left: &Left| given.contains(&(left.take.session, left.take.flow));
        self.lobby.left.retain(|left| !is_given(left));
    }

    /// A connection of the client's is lost, though nobody wished that.
    pub(super) fn leave(&mut self, flow: FlowId) {
        let Some(session) = self.session(Who::Client) else {
            return;
        };
        let may_hold = session.has_hand_off() && session.was_asked(flow);
        let Some(id) = session.id().filter(|_| may_hold) else {
            return;
        };
        let books = self.client.as_ref().map(|client| &client.books);
        let Some(unit) = books.and_then(|b| b.locals.get(&flow)).map(|l| l.unit) else {
            return;
        };
        let Some(app) = self.units[unit].sockets[CLIENT].as_ref() else {
            return;
        };
        // What an application that has ended its connection did not read is not wanted.
        if !self.units[unit].handed || (app.connected && app.app_rst) {
            return;
        }
        let delivered = Offset(app.got);
        self.tell(|| format!("u{unit} is left behind {delivered:?}"));
        let is_users = |left: &Left| left.user == user(unit);
        let mut of_user = self.lobby.left.iter().filter(|left| is_users(left));
        if of_user.clone().count() >= MAX_TAKES {
            let oldest = of_user.next().map(|left| left.take);
            self.lobby.left.retain(|left| Some(left.take) != oldest);
        }
        self.lobby.left.push(Left {
            user: user(unit),
            take: Take {
                session: id,
                flow,
                delivered,
            },
        });
    }

    /// A session of the client's is over.
    pub(super) fn leave_all(&mut self, reason: EndReason) {
        self.lobby.wanted.clear();
        if matches!(
            reason,
            EndReason::Local(CloseCode::Asked) | EndReason::Peer(CloseCode::Asked)
        ) {
            self.lobby.left.clear();
        }
        let is_held = matches!(
            reason,
            EndReason::Expired
                | EndReason::Rejected(RejectReason::Expired | RejectReason::Superseded)
                | EndReason::Peer(CloseCode::Superseded)
        );
        let books = self.client.as_ref().map(|client| &client.books);
        let open = books.into_iter().flat_map(|books| &books.locals);
        let open = open.filter(|(_, local)| !local.is_complete());
        let open: Vec<_> = open.map(|(flow, _)| *flow).filter(|_| is_held).collect();
        for flow in open {
            self.leave(flow);
        }
    }

    /// A session of the server's is over.
    pub(super) fn note_forgotten(&mut self, id: SessionId, reason: EndReason) {
        if matches!(
            reason,
            EndReason::Local(CloseCode::Asked) | EndReason::Peer(CloseCode::Asked)
        ) {
            self.lobby.held.clear();
            self.lobby.owed.clear();
        }
        let is_held = matches!(
            reason,
            EndReason::Expired | EndReason::Local(CloseCode::Superseded)
        );
        if !is_held {
            self.lobby.owed.retain(|(session, _), _| *session != id);
        }
        self.lobby.asked.retain(|(session, _), _| *session != id);
    }

    /// The client daemon has started again.
    pub(super) fn empty_client_lobby(&mut self) {
        self.lobby.left.clear();
        self.lobby.wanted.clear();
    }

    /// The server daemon has.
    pub(super) fn empty_server_lobby(&mut self) {
        self.lobby.held.clear();
        self.lobby.asked.clear();
        self.lobby.owed.clear();
    }

    /// What waits ahead of what origins say, and is under way nowhere yet.
    pub(super) fn waiting_ahead(&self, who: Who) -> u64 {
        self.session(who)
            .map_or(0, tund_session::Session::prologue_bytes)
    }
}
