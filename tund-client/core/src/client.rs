//! `Client`: connection A, the session and the dialer together; all decisions of the daemon.

use crate::dialer::{DialOrder, Dialer, PathId};
use crate::flow_table::FlowTable;
use crate::netstack::{Arena, Netstack, NetstackConfig, Sink};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;
use tund_session::wire::frame::CloseCode;
use tund_session::{
    Config, EndReason, Event, FlowId, Instant, LinkDeath, LinkId, LinkNumber, Outbox, Progress,
    Secret, Session, SessionId, Traffic,
};

/// What a client is made with.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// For every session.
    pub session: Config,
    /// Connection A.
    pub netstack: NetstackConfig,
    /// How long an outage flows outlive.
    pub grace: Duration,
    /// How long a session without flows is kept; none: for ever, and dialled at once.
    pub linger: Option<Duration>,
    /// Refuse connections while there is no link, in place of holding them.
    pub refuse_during_outage: bool,
    /// For jitter.
    pub seed: u64,
}

/// What the driver shall do, or may tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// Find the ways to the server, and call [`Client::handle_paths`].
    FindPaths,
    /// Dial.
    Dial {
        /// The name of the attempt, and of the link it becomes.
        link: LinkId,
        /// Where.
        path: PathId,
    },
    /// Close a link or an attempt, after its last words if there are any.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Whether `poll_transmit` may still yield something for it.
        has_last_words: bool,
    },
    /// Call [`Client::handle_progress`] for that link.
    WantProgress {
        /// Which.
        link: LinkId,
    },
    /// The session is attached.
    Attached {
        /// The link that attached.
        link: LinkId,
        /// Its number.
        number: LinkNumber,
    },
    /// No link works.
    Detached,
    /// The session is over; applications were reset.
    Ended {
        /// Why.
        reason: EndReason,
        /// Flows that were reset.
        flows: usize,
        /// Bytes taken from applications that the origin never got, as far as is known.
        lost_bytes: u64,
    },
    /// The server lets nobody with our key in, or another client uses it.
    Refused(Refused),
}

/// An error that needs a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another live client uses our key.
    KeyInUse,
    /// Our key is not on the server's list.
    KeyNotListed,
    /// No common protocol version.
    Version,
}

/// What the daemon is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No session, and no need for one.
    Ready,
    /// Dials for a new session.
    Connecting,
    /// A link works.
    Attached,
    /// A session without a working link.
    Detached,
    /// Needs a person.
    Refused,
}

/// Outages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// How many are over.
    pub count: u64,
    /// From the last byte before to the first byte after the last one.
    pub last_gap: Option<Duration>,
    /// From the successful dial's first packet to attached.
    pub last_resume: Option<Duration>,
}

/// The client daemon without I/O.
///
/// A turn of its owner: `handle_*` for everything that has come; then, in this order,
/// [`flush`](Self::flush) once, [`poll_transmit`](Self::poll_transmit) for each link with room,
/// [`poll_event`](Self::poll_event) until `None`, and [`poll_timeout`](Self::poll_timeout).
pub struct Client {
    pub(crate) config: ClientConfig,
    pub(crate) netstack: Netstack,
    pub(crate) session: Option<Session>,
    pub(crate) table: FlowTable,
    pub(crate) dialer: Dialer,
    orders: Vec<DialOrder>,
    events: VecDeque<ClientEvent>,
    refused: Option<Refused>,
    outages: Outages,
    /// The last byte heard on any link.
    last_heard: Option<Instant>,
    /// The last byte heard before the outage that goes on.
    outage_from: Option<Instant>,
    /// Traffic of sessions that are over.
    past: Traffic,
    /// An ended session whose last words are still to be sent.
    parting: Option<Session>,
}

impl Client {
    /// A client without a session.
    pub fn new(config: ClientConfig, arena: Box<dyn Arena + Send>, now: Instant) -> Self {
        Self {
            netstack: Netstack::new(&config.netstack, arena, now),
            session: None,
            table: FlowTable::default(),
            dialer: Dialer::new(config.seed),
            orders: Vec::new(),
            events: VecDeque::new(),
            refused: None,
            outages: Outages::default(),
            last_heard: None,
            outage_from: None,
            past: Traffic::default(),
            parting: None,
            config,
        }
    }

    /// A packet of the TUN device; its bytes are changed.
    pub fn handle_packet(&mut self, packet: &mut [u8], now: Instant, sink: &mut dyn Sink) {
        self.netstack.handle_packet(packet, now, sink);
    }

    /// The ways to the server, best first.
    pub fn handle_paths(&mut self, paths: &[PathId], now: Instant) {
        self.dialer.paths(paths, now, &mut self.orders);
    }

    /// An attempt's SYN was answered.
    pub fn handle_answered(&mut self, link: LinkId) {
        self.dialer.answered(link);
    }

    /// An attempt has reached the pinned server.
    pub fn handle_link_up(&mut self, link: LinkId, secret: Secret, now: Instant) {
        if let Some(session) = &mut self.session {
            session.handle_link_up(link, secret, now);
        } else {
            self.dialer.ended(link);
            self.events.push_back(ClientEvent::CloseLink {
                link,
                has_last_words: false,
            });
        }
    }

    /// Bytes of a link, in any pieces.
    pub fn handle_bytes(&mut self, link: LinkId, bytes: Bytes, now: Instant) {
        self.last_heard = Some(now);
        if let Some(session) = &mut self.session {
            session.handle_bytes(link, bytes, now);
        }
    }

    /// A link, or an attempt, is gone. `refused`: the pinned server does not list our key.
    pub fn handle_link_down(&mut self, link: LinkId, refused: bool, now: Instant) {
        self.dialer.ended(link);
        if let Some(parting) = &mut self.parting {
            parting.handle_link_down(link, now);
            if parting.link_count() == 0 {
                self.parting = None;
            }
        }
        if let Some(session) = &mut self.session {
            session.handle_link_down(link, now);
        }
        if refused {
            self.refuse(Refused::KeyNotListed, now);
        }
    }

    /// The answer to [`ClientEvent::WantProgress`].
    pub fn handle_progress(&mut self, link: LinkId, progress: Progress, now: Instant) {
        if let Some(session) = &mut self.session {
            session.handle_progress(link, progress, now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut dyn Sink) {
        if self.netstack.poll_timeout().is_some_and(|at| at <= now) {
            self.netstack.handle_timeout(now, sink);
        }
        if let Some(session) = &mut self.session {
            session.handle_timeout(now);
        }
        self.dialer.handle_timeout(now, &mut self.orders);
        self.linger(now);
    }

    fn lingers_until(&self) -> Option<Instant> {
        let (session, linger) = (self.session.as_ref()?, self.config.linger?);
        Some(session.idle_since()? + linger)
    }

    fn linger(&mut self, now: Instant) {
        if self.lingers_until().is_some_and(|at| at <= now)
            && let Some(session) = &mut self.session
        {
            session.close(CloseCode::Idle, now);
        }
    }

    /// The next deadline.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self
            .session
            .as_ref()
            .and_then(|s| s.poll_timeout())
            .map(|(at, _)| at);
        let all = [
            self.netstack.poll_timeout(),
            session,
            self.dialer.poll_timeout(),
            self.lingers_until(),
        ];
        all.into_iter().flatten().min()
    }

    /// Carries everything across: what applications sent into the session, what the session has
    /// into connection A, orders to the dialer; then sends the packets that result.
    pub fn flush(&mut self, now: Instant, sink: &mut dyn Sink) {
        loop {
            let mut moved = false;
            while let Some(event) = self.netstack.poll_event() {
                self.on_net_event(event, now);
                moved = true;
            }
            while let Some(event) = self.session.as_mut().and_then(Session::poll_event) {
                self.on_session_event(event, now);
                moved = true;
            }
            if !moved {
                break;
            }
        }
        self.netstack.flush(now, sink);
        self.direct_dialer(now);
    }

    fn direct_dialer(&mut self, now: Instant) {
        if self.session.is_none() && self.config.linger.is_none() {
            self.session = Some(Session::new_client(&self.config.session, now));
        }
        let always = self.config.linger.is_none();
        let session = self.session.as_ref();
        let wanted = session.is_some_and(|s| (always || s.wants_link()) && !s.is_attached());
        self.dialer.want(wanted, now);
        if self.dialer.is_look_due(now) {
            self.events.push_back(ClientEvent::FindPaths);
        }
        for order in self.orders.drain(..) {
            self.events.push_back(match order {
                DialOrder::Start(link, path) => ClientEvent::Dial { link, path },
                DialOrder::GiveUp(link) => {
                    if let Some(session) = &mut self.session {
                        session.handle_link_down(link, now);
                    }
                    ClientEvent::CloseLink {
                        link,
                        has_last_words: false,
                    }
                }
            });
        }
    }

    fn on_session_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Attached { link, number, .. } => self.on_attached(link, number, now),
            Event::Reattached { .. } => self.end_outage(None, now),
            Event::Detached => {
                self.outage_from = self.last_heard.or(Some(now));
                self.events.push_back(ClientEvent::Detached);
            }
            Event::LinkDead { link, death } => {
                self.dialer.ended(link);
                let has_last_words = matches!(death, LinkDeath::SessionEnded | LinkDeath::Retired);
                self.events.push_back(ClientEvent::CloseLink {
                    link,
                    has_last_words,
                });
            }
            Event::WantProgress { link } => {
                self.events.push_back(ClientEvent::WantProgress { link });
            }
            Event::KeyInUse => self.refuse(Refused::KeyInUse, now),
            Event::AttachRefused {
                reason,
                retry_after,
            } => {
                if reason == tund_session::wire::frame::RejectReason::Version {
                    self.refuse(Refused::Version, now);
                } else {
                    self.dialer.wait(Some(retry_after), now);
                }
            }
            Event::Ended { reason } => self.on_ended(reason),
            Event::FlowAccepted { flow } => self.accept(flow, now),
            Event::FlowRefused { flow, error } => self.turn_down(flow, error),
            Event::FlowReadable { flow } => self.pump_down(flow, now),
            Event::FlowWritable { flow } => self.pump_up(flow, now),
            Event::FlowAborted { flow, .. } => {
                if let Some(known) = self.table.remove(flow) {
                    self.netstack.reset(known.connection);
                }
            }
            Event::FlowForgotten { flow } => {
                self.table.remove(flow);
            }
            Event::Confirmed | Event::FlowOpened { .. } => {}
        }
    }

    fn on_attached(&mut self, link: LinkId, number: LinkNumber, now: Instant) {
        self.refused = None;
        let started = self.dialer.ended(link);
        self.end_outage(started, now);
        self.dialer.want(false, now);
        self.dialer.give_up_all(&mut self.orders);
        self.events
            .push_back(ClientEvent::Attached { link, number });
    }

    fn end_outage(&mut self, dialled: Option<Instant>, now: Instant) {
        if let Some(from) = self.outage_from.take() {
            self.outages.count += 1;
            self.outages.last_gap = Some(now.saturating_duration_since(from));
            self.outages.last_resume = dialled.map(|at| now.saturating_duration_since(at));
            self.table.survived();
        }
    }

    fn on_ended(&mut self, reason: EndReason) {
        let Some(session) = self.session.take() else {
            return;
        };
        let traffic = session.traffic();
        self.past.taken += traffic.taken;
        self.past.released += traffic.released;
        self.outage_from = None;
        let flows = self.table.len();
        let lost_bytes = self.table.buffered(&mut self.netstack).0 + session.lost();
        for connection in self.table.drain() {
            self.netstack.reset(connection);
        }
        self.dialer.give_up_all(&mut self.orders);
        let links: Vec<_> = session.live_links().map(|(link, _)| link).collect();
        for link in &links {
            self.events.push_back(ClientEvent::CloseLink {
                link: *link,
                has_last_words: true,
            });
        }
        if !links.is_empty() {
            self.parting = Some(session);
        }
        self.events.push_back(ClientEvent::Ended {
            reason,
            flows,
            lost_bytes,
        });
    }

    fn refuse(&mut self, why: Refused, now: Instant) {
        self.dialer.wait(None, now);
        if self.refused.replace(why) != Some(why) {
            self.events.push_back(ClientEvent::Refused(why));
        }
    }

    /// Appends what is due on a link; see [`Session::poll_transmit`].
    pub fn poll_transmit(
        &mut self,
        link: LinkId,
        budget: usize,
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        let current = self
            .session
            .as_mut()
            .is_some_and(|s| s.poll_transmit(link, budget, out, now));
        current
            || self
                .parting
                .as_mut()
                .is_some_and(|s| s.poll_transmit(link, budget, out, now))
    }

    /// What the driver shall do next.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// The user asks to disconnect, or the daemon stops.
    pub fn disconnect(&mut self, now: Instant) {
        if let Some(session) = &mut self.session {
            session.close(CloseCode::Asked, now);
        }
    }

    /// Drops the links and dials again at once; flows survive.
    pub fn reconnect(&mut self, now: Instant) {
        self.dialer.clear_wait(now);
        let Some(session) = &mut self.session else {
            return;
        };
        let links: Vec<_> = session.live_links().map(|(link, _)| link).collect();
        for link in links {
            session.handle_link_down(link, now);
        }
    }

    /// Connection A, for its counters and for what the driver tells it of the host.
    pub fn netstack(&mut self) -> &mut Netstack {
        &mut self.netstack
    }

    /// What the daemon is doing.
    pub fn state(&self) -> State {
        match (&self.session, self.refused) {
            (Some(session), _) if session.is_attached() => State::Attached,
            (_, Some(_)) => State::Refused,
            (None, None) => State::Ready,
            (Some(session), None) if session.id().is_none() => State::Connecting,
            (Some(_), None) => State::Detached,
        }
    }

    /// Why a person is needed.
    pub fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// The session's name.
    pub fn session_id(&self) -> Option<SessionId> {
        self.session.as_ref()?.id()
    }

    /// The link that carries flows, then all others that are attached.
    pub fn links(&self) -> impl Iterator<Item = LinkId> {
        let carrier = self.session.as_ref().and_then(Session::carrier);
        let live = self
            .session
            .iter()
            .flat_map(Session::live_links)
            .map(|(link, _)| link);
        carrier
            .into_iter()
            .chain(live.filter(move |link| Some(*link) != carrier))
    }

    /// Outages since the start.
    pub fn outages(&self) -> Outages {
        self.outages
    }

    /// Bytes from applications and to applications, since the start.
    pub fn traffic(&self) -> Traffic {
        let now = self
            .session
            .as_ref()
            .map(Session::traffic)
            .unwrap_or_default();
        Traffic {
            taken: self.past.taken + now.taken,
            released: self.past.released + now.released,
        }
    }

    /// Bytes taken from applications, and bytes waiting for them, rings included.
    pub fn buffered(&mut self) -> (u64, u64) {
        let (up, down) = self
            .session
            .as_ref()
            .map(Session::buffered)
            .unwrap_or_default();
        let (ring_up, ring_down) = self.table.buffered(&mut self.netstack);
        (up + ring_up, down + ring_down)
    }

    /// Bytes of one flow that the session holds, each way.
    pub fn flow_buffered(&self, flow: FlowId) -> (u64, u64) {
        self.session
            .as_ref()
            .map(|s| s.flow_buffered(flow))
            .unwrap_or_default()
    }

    /// Flows under way.
    pub fn flows(&self) -> &FlowTable {
        &self.table
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
