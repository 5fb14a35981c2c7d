//! `Session`: what outlives links.

mod attach;
mod contract;
mod datagrams;
mod delivery;
mod ends;
mod flows;
mod hand_off;
mod outage;
mod receive;
mod shares;
mod steering;
mod transmit;

pub use attach::VERSION;
pub use contract::{
    Config, Delivery, EndReason, Event, LinkDeath, OpenRefused, Progress, Remainder, Role, Timer,
};
pub use delivery::DeliverTarget;
pub use flows::Target;
pub(crate) use hand_off::HandedOff;
pub use hand_off::Held;

use crate::budget::Budget;
use crate::control_lane::ControlLane;
use crate::datagram_queue::{DatagramCounts, Room};
use crate::flow::Flow;
use crate::id::{FlowId, Instance, LinkId, LinkNumber, Offset, Secret, SessionId};
use crate::limits;
use crate::link::Link;
use crate::time::Instant;
use crate::wire::frame::Limits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// One end of a session: flows, their unacknowledged bytes, and the links that carry them.
///
/// # Contract
///
/// The world tells it what happened through `handle_*`, the owner orders through plain verbs, and
/// after any of these the owner drains, in this order: [`poll_transmit`](Self::poll_transmit) for
/// every link that has room, [`poll_event`](Self::poll_event) until `None`, and
/// [`poll_timeout`](Self::poll_timeout) for the next call of
/// [`handle_timeout`](Self::handle_timeout). What is drained stays drained until the next input.
/// Early timeouts are harmless; late ones are caught up with. Unknown flows and links are ignored,
/// since the owner may not have seen their end yet. After [`Event::Ended`] only
/// `poll_transmit` yields anything: the last words.
#[derive(Debug)]
pub struct Session {
    role: Role,
    config: Config,
    id: Option<SessionId>,
    /// The other daemon's start.
    peer_instance: Option<Instance>,
    peer_limits: Option<Limits>,
    /// What both ends know; none before WELCOME.
    agreed: Option<u64>,
    born: Instant,
    /// Server: a frame of the client has come after WELCOME (rule 9).
    confirmed: bool,
    ended: Option<EndReason>,

    flows: BTreeMap<FlowId, Flow>,
    /// Of these, so many are not complete in both directions: counted, since it is asked about at
    /// every input.
    live_flows: usize,
    /// The highest flow id given out or seen; ids are never used twice.
    last_flow: FlowId,
    /// Short pieces that all flows hold out of order.
    short_pieces: usize,
    /// Pieces of all flows that keep the buffer that a link was read into.
    slices: usize,
    lane: ControlLane,
    /// Datagrams of all mappings that wait to be sent, and for local sockets.
    tx_room: Room,
    rx_room: Room,
    /// When the next look for stale ones among them is due.
    sweep_at: Instant,
    /// When the last one was.
    swept_at: Instant,
    /// How many of the flows are mappings.
    mappings: usize,
    datagrams: DatagramCounts,
    /// Bytes taken from local sockets and not released by the peer (INV-5).
    intake: Budget,
    /// Credit granted to the peer and not drained by local sockets (INV-5).
    credit: Budget,
    intake_starved: VecDeque<FlowId>,
    credit_starved: VecDeque<FlowId>,
    /// Server: bytes of all flows that wait for intake, ahead of those of their origins.
    prologue_bytes: u64,

    links: BTreeMap<LinkId, Link>,
    /// Client: the one to be proved at the next RESUME. Server: all that count (rule 8).
    secrets: BTreeMap<LinkNumber, Secret>,
    /// Server: the number of the next link.
    next_number: LinkNumber,
    /// The highest link number known to be confirmed by the client.
    confirmed_number: LinkNumber,
    /// Client: RETIRE was said of every link numbered lower; none of them may join any more.
    retired_below: LinkNumber,
    next_nonce: u64,
    /// Server: the highest number of a control message, and the link that it came by.
    led: (u64, Option<LinkId>),
    /// Client: the link by which the server was told last where to send.
    told_by: Option<LinkId>,
    /// Client: the server sends there.
    is_followed: bool,

    /// When the last frame came, on whichever link: no outage began before (rule 11).
    heard_at: Instant,
    /// No link works since then.
    detached_since: Option<Instant>,
    /// No flow exists since then.
    idle_since: Instant,
    /// In an outage: when the grace of each flow that lives is over.
    expiries: BTreeSet<(Instant, FlowId)>,
    /// Flows whose RESET waits for the local socket alone, and when each is to be looked at: when
    /// rule 13's time was over when it was put here. An index, since who opens flows may have many.
    stalls: BTreeSet<(Instant, FlowId)>,

    /// Send schedule: flows that send little, then the others.
    fresh: VecDeque<FlowId>,
    bulk: VecDeque<FlowId>,
    acks: VecDeque<FlowId>,
    events: VecDeque<Event>,
    traffic: Traffic,
    /// Bytes dropped at the end, or when a flow expired before.
    lost: u64,
    /// At the end: flows that lost bytes.
    lost_by_flow: BTreeMap<FlowId, u64>,
    /// Client, after the end: what is to be stored, or to be asked for again.
    remainders: Vec<(FlowId, Remainder)>,
    /// At the end: flows of which bytes had come that their local socket had not taken.
    dropped_by_flow: BTreeMap<FlowId, u64>,
    /// Of each flow not forgotten at the end whose bytes the client may store.
    released_at_end: Vec<(FlowId, Offset)>,
    /// Client: of the flows that it had then, those whose server half was no run of messages.
    opaque_at_end: BTreeSet<FlowId>,
}

/// Bytes of flows since the session was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Taken from local sockets.
    pub taken: u64,
    /// Handed to local sockets.
    pub released: u64,
}

impl Session {
    /// A client's session, before any link: flows can be opened at once; the owner dials.
    pub fn new_client(config: &Config, now: Instant) -> Self {
        Self::new(Role::Client, config, now)
    }

    fn new(role: Role, config: &Config, now: Instant) -> Self {
        Self {
            role,
            id: None,
            peer_instance: None,
            peer_limits: None,
            agreed: None,
            born: now,
            confirmed: role == Role::Client,
            ended: None,
            flows: BTreeMap::new(),
            live_flows: 0,
            last_flow: FlowId(0),
            short_pieces: 0,
            slices: 0,
            lane: ControlLane::default(),
            tx_room: Room::new(config.buffer_bytes),
            rx_room: Room::new(config.buffer_bytes),
            sweep_at: now,
            swept_at: now,
            mappings: 0,
            datagrams: DatagramCounts::default(),
            intake: Budget::new(config.buffer_bytes, config.max_flows),
            credit: Budget::new(config.buffer_bytes, config.max_flows),
            intake_starved: VecDeque::new(),
            credit_starved: VecDeque::new(),
            prologue_bytes: 0,
            links: BTreeMap::new(),
            secrets: BTreeMap::new(),
            next_number: LinkNumber(1),
            confirmed_number: LinkNumber(0),
            retired_below: LinkNumber(0),
            next_nonce: 1,
            led: (0, None),
            told_by: None,
            is_followed: false,
            heard_at: now,
            detached_since: Some(now),
            idle_since: now,
            expiries: BTreeSet::new(),
            stalls: BTreeSet::new(),
            fresh: VecDeque::new(),
            bulk: VecDeque::new(),
            acks: VecDeque::new(),
            events: VecDeque::new(),
            traffic: Traffic::default(),
            lost: 0,
            lost_by_flow: BTreeMap::new(),
            remainders: Vec::new(),
            dropped_by_flow: BTreeMap::new(),
            released_at_end: Vec::new(),
            opaque_at_end: BTreeSet::new(),
            config: config.clone(),
        }
    }

    /// The next thing the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match &event {
            Event::FlowReadable { flow } => {
                if let Some(flow) = self.flows.get_mut(flow) {
                    flow.readable_told = false;
                }
            }
            Event::FlowWritable { flow } => {
                if let Some(flow) = self.flows.get_mut(flow) {
                    flow.writable_told = false;
                }
            }
            Event::Attached { .. }
            | Event::Detached
            | Event::Reattached { .. }
            | Event::Confirmed
            | Event::LinkDead { .. }
            | Event::WantProgress { .. }
            | Event::KeyInUse
            | Event::AttachRefused { .. }
            | Event::Ended { .. }
            | Event::FlowOpened { .. }
            | Event::DeliverOpened { .. }
            | Event::FlowExpired { .. }
            | Event::FlowFinal { .. }
            | Event::FlowHeld { .. }
            | Event::ForgetHeld
            | Event::FlowReleased { .. }
            | Event::FlowAccepted { .. }
            | Event::FlowRefused { .. }
            | Event::FlowAborted { .. }
            | Event::FlowForgotten { .. } => {}
        }
        Some(event)
    }

    /// The session's name, once the server has given it one.
    pub fn id(&self) -> Option<SessionId> {
        self.id
    }

    /// The other daemon's start, once known.
    pub fn peer_instance(&self) -> Option<Instance> {
        self.peer_instance
    }

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Some link works.
    pub fn is_attached(&self) -> bool {
        self.ended.is_none() && self.links.values().any(Link::is_working)
    }

    /// The session is destroyed.
    pub fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Why it was destroyed, if it was.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.ended
    }

    /// Server: the client has spoken after WELCOME.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// A flow exists or something said is not acknowledged: without a link, one is wanted.
    pub fn wants_link(&self) -> bool {
        self.ended.is_none() && self.is_busy()
    }

    fn is_busy(&self) -> bool {
        !self.flows.is_empty() || self.lane.is_outstanding()
    }

    /// Flows not yet forgotten.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// No flow exists since then; none if one does.
    pub fn idle_since(&self) -> Option<Instant> {
        self.flows.is_empty().then_some(self.idle_since)
    }

    /// No link works since then.
    pub fn detached_since(&self) -> Option<Instant> {
        self.detached_since
    }

    /// Round-trip time of a link as its PINGs measured it.
    pub fn rtt(&self, link: LinkId) -> Option<Duration> {
        self.links.get(&link)?.smoothed_rtt()
    }

    /// That link is attached and answers.
    pub fn is_working(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(Link::is_working)
    }

    /// When any link was heard last.
    pub fn last_heard(&self) -> Option<Instant> {
        self.links
            .values()
            .filter(|link| link.is_usable())
            .map(Link::last_heard)
            .max()
    }

    /// Links of the session, attaches under way and last words included.
    pub fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Whether a link is the session's still: neither dead nor retired.
    pub fn has_link(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    /// Numbers of the links that are attached.
    pub fn live_links(&self) -> impl Iterator<Item = (LinkId, Option<LinkNumber>)> {
        self.links
            .values()
            .filter(|link| link.is_usable())
            .map(|link| (link.id, link.number))
    }

    /// Bytes retained for the peer, and bytes waiting for local sockets.
    pub fn buffered(&self) -> (u64, u64) {
        let up = self
            .flows
            .values()
            .filter(|f| !f.send_done)
            .map(Flow::retained)
            .sum();
        let down = self
            .flows
            .values()
            .filter(|f| !f.receive_done)
            .map(Flow::held)
            .sum();
        (up, down)
    }

    /// The same of one flow.
    pub fn flow_buffered(&self, flow: FlowId) -> (u64, u64) {
        self.flows
            .get(&flow)
            .map_or((0, 0), |flow| (flow.retained(), flow.held()))
    }

    /// Bytes of flows since the session was made.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// When it was made here.
    pub fn born(&self) -> Instant {
        self.born
    }

    /// After the end: bytes taken that the peer never released, as it was then; those of flows that
    /// expired before are among them, those of remainders are not.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// After the end: the same of one flow that lived until then.
    pub fn lost_of(&self, flow: FlowId) -> u64 {
        self.lost_by_flow.get(&flow).copied().unwrap_or(0)
    }

    /// Bytes that had come for one flow and were dropped before its local socket had taken them.
    pub fn dropped_of(&self, flow: FlowId) -> u64 {
        let at_the_end = self.dropped_by_flow.get(&flow).copied();
        let live = self.flows.get(&flow).map(|flow| flow.dropped);
        live.or(at_the_end).unwrap_or(0)
    }

    /// After the end: how far the peer's bytes were handed on, of each flow that was not settled and
    /// whose bytes the client may store. No more than `max_flows`.
    pub fn released_at_end(&self) -> &[(FlowId, Offset)] {
        &self.released_at_end
    }

    /// Bytes that flows hold beyond their floors, datagrams beyond theirs, and what waits to go out
    /// ahead of origins' bytes.
    pub fn lent(&self) -> u64 {
        let streams = self.intake.lent() + self.credit.lent() + self.prologue_bytes;
        streams + self.tx_room.lent() + self.rx_room.lent()
    }

    /// An outer bound on growth in each direction: the daemon's memory is shared. What streams hold
    /// stays held; datagrams beyond it make room for newer ones.
    pub fn set_growth_bound(&mut self, bytes: u64) {
        let datagrams = if self.has_datagrams() {
            bytes / limits::DATAGRAM_GROWTH
        } else {
            0
        };
        self.tx_room.set_bound(datagrams);
        self.rx_room.set_bound(datagrams);
        self.intake.set_bound(bytes - datagrams);
        self.credit.set_bound(bytes - datagrams);
    }

    fn limits(&self) -> Limits {
        Limits {
            max_flows: self.config.max_flows,
            buffer_bytes: self.config.buffer_bytes,
            floor_bytes: crate::budget::floor_bytes(
                self.config.buffer_bytes,
                self.config.max_flows,
            ),
        }
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }

    /// What else is kept, with that of one flow.
    #[cfg(test)]
    pub(crate) fn kept(&self, flow: FlowId) -> Kept {
        Kept {
            short_pieces: self.short_pieces,
            slices: self.slices,
            stalls: self.stalls.len(),
            expiries: self.expiries.len(),
            messages: self.lane.outstanding(),
            chunks: self.flows.get(&flow).map_or(0, |f| f.tx.chunk_count()),
        }
    }
}

/// What tests ask about.
#[cfg(test)]
pub(crate) struct Kept {
    pub(crate) short_pieces: usize,
    pub(crate) slices: usize,
    pub(crate) stalls: usize,
    pub(crate) expiries: usize,
    pub(crate) messages: u64,
    pub(crate) chunks: usize,
}
