//! The world of one schedule: one client daemon, one server daemon, applications, origins, links.

use super::books::{Books, Local};
use super::coverage::{Coverage, Situation};
use super::desk::Desk;
use super::lobby::Lobby;
use super::mappings::Mappings;
use super::pipe::Pipe;
use super::rng::Rng;
use super::shelf::Shelf;
use super::socket::Socket;
use super::witness::Witness;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig};
use tund_session::wire::frame::{Framing, OnExpiry, OpenError, Protocol, capability};
use tund_session::{
    Config, FlowId, Instance, Instant, LinkId, OpenRefused, Session, SessionId, Target,
};

/// The client's side.
pub const CLIENT: usize = 0;
/// The server's side.
pub const SERVER: usize = 1;

pub(super) const KEY: ClientKey = ClientKey([7; 32]);

/// One end of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The client daemon's only session.
    Client,
    /// One of the server daemon's.
    Server(SessionId),
}

impl Who {
    /// On which side.
    pub const fn side(self) -> usize {
        match self {
            Self::Client => CLIENT,
            Self::Server(_) => SERVER,
        }
    }
}

/// What differs between schedules beside their actions.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    /// Bytes of buffer per direction, at either end.
    pub buffer: [u64; 2],
    /// Flows at once, at either end.
    pub max_flows: [u64; 2],
    /// Bytes of a local ring.
    pub ring: u64,
    /// Bytes that a kernel holds for one link.
    pub send_queue: usize,
    /// What the server daemon may hold for all sessions beyond their floors.
    pub memory: u64,
    /// Every other flow may be stored.
    pub stored: bool,
    /// There are mappings.
    pub datagrams: bool,
    /// Of those that may not, what their applications do not get is held.
    pub handed: bool,
    /// The longest grace that either end grants.
    pub max_grace: Duration,
}

/// One flow from application to origin: two local connections, and how it may have ended.
#[derive(Debug)]
pub struct Unit {
    /// The application's connection, and the origin's once there is one.
    pub sockets: [Option<Socket>; 2],
    /// Neither end is owed the whole stream any more, and why.
    pub aborted: Option<&'static str>,
    /// A reset went out at that side although the reader had not taken everything.
    pub stalled_reset: bool,
    /// As asked for.
    pub grace: Duration,
    /// Its messages are kept for delivery.
    pub stored: bool,
    /// What its application does not get is held for its user's next connection.
    pub handed: bool,
    /// The application was accepted, and the client does not know whether its origin answers.
    pub is_early: bool,
    /// When the application connected.
    pub born: Instant,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (side, socket) in ["app", "origin"].iter().zip(&self.sockets) {
            match socket {
                Some(socket) => write!(f, "{side} {socket}; ")?,
                None => write!(f, "no {side}; ")?,
            }
        }
        write!(f, "aborted {:?}", self.aborted)
    }
}

/// The client's session with its books.
#[derive(Debug)]
pub struct ClientEnd {
    /// Which client session, counted from 1.
    pub uid: u64,
    /// The core.
    pub session: Session,
    /// The driver's books.
    pub books: Books,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// The seed of choices that belong to named things.
    pub seed: u64,
    /// The only clock.
    pub now: Instant,
    /// What this schedule is made of.
    pub knobs: Knobs,
    /// All links that are not over.
    pub pipes: BTreeMap<LinkId, Pipe>,
    /// All flows ever.
    pub units: Vec<Unit>,
    /// The client daemon.
    pub client: Option<ClientEnd>,
    /// The server daemon.
    pub registry: Registry,
    /// Its books, session by session.
    pub books: BTreeMap<SessionId, Books>,
    /// Links that the registry has named as having something to send.
    pub ready: BTreeSet<LinkId>,
    /// What went over links.
    pub witness: Witness,
    /// What was met.
    pub coverage: Coverage,
    /// What happened, when asked for.
    pub story: Option<Vec<String>>,
    /// The first thing that must not be.
    pub fault: Option<String>,
    /// Some origins refuse while the world heals.
    pub refusing: bool,
    /// Timeouts are being handled.
    pub in_timeout: bool,
    /// That side does nothing, not even look at its clock.
    pub asleep: [bool; 2],
    /// Flows that ended before their origin had answered.
    pub(super) given_up: Vec<(SessionId, FlowId)>,
    /// What the client has stored.
    pub(super) shelf: Shelf,
    /// What the server does with deliveries.
    pub(super) desk: Desk,
    /// Datagrams.
    pub(super) mappings: Mappings,
    /// What is held for connections to come.
    pub(super) lobby: Lobby,
    /// Bytes that waited for each stuck reader before that.
    pub(super) held: BTreeMap<(Who, FlowId), u64>,
    pub(super) client_instance: u8,
    pub(super) server_instance: u8,
    pub(super) uids: u64,
    pub(super) link_ids: u64,
    pub(super) session_ids: u64,
}

pub(super) fn registry(knobs: &Knobs, instance: u8) -> Registry {
    Registry::new(RegistryConfig {
        session: config(knobs, SERVER, instance),
        max_sessions: 64,
        memory_bytes: knobs.memory,
    })
}

fn config(knobs: &Knobs, side: usize, instance: u8) -> Config {
    let mut name = [u8::try_from(side).unwrap_or(0) + 1; 16];
    name[0] = instance;
    let datagrams = if knobs.datagrams {
        capability::DATAGRAM
    } else {
        0
    };
    Config {
        instance: Instance(name),
        buffer_bytes: knobs.buffer[side],
        max_flows: knobs.max_flows[side],
        max_grace: knobs.max_grace,
        capabilities: capability::DELIVERY | capability::HAND_OFF | datagrams,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
    }
}

impl World {
    /// Two idle daemons.
    pub fn new(seed: u64, knobs: Knobs) -> Self {
        Self {
            seed,
            now: Instant::from_nanos(1_000_000_000_000),
            knobs,
            pipes: BTreeMap::new(),
            units: Vec::new(),
            client: None,
            registry: registry(&knobs, 1),
            books: BTreeMap::new(),
            ready: BTreeSet::new(),
            witness: Witness::default(),
            coverage: Coverage::default(),
            story: None,
            fault: None,
            refusing: false,
            in_timeout: false,
            asleep: [false; 2],
            given_up: Vec::new(),
            shelf: Shelf::default(),
            desk: Desk::default(),
            mappings: Mappings::default(),
            lobby: Lobby::default(),
            held: BTreeMap::new(),
            client_instance: 1,
            server_instance: 1,
            uids: 0,
            link_ids: 0,
            session_ids: 0,
        }
    }

    /// Adds a line to the story, if one is kept.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let at = self
                .now
                .saturating_duration_since(Instant::from_nanos(1_000_000_000_000));
            story.push(format!("{:>10.3}  {}", at.as_secs_f64(), line()));
        }
    }

    /// Something that must not be has happened.
    pub fn fault(&mut self, what: impl Into<String>) {
        if self.fault.is_none() {
            let what = what.into();
            self.tell(|| format!("FAULT: {what}"));
            self.fault = Some(what);
        }
    }

    /// Notes a situation.
    pub fn met(&mut self, situation: Situation) {
        self.coverage.met(situation);
    }

    /// Every end there is.
    pub fn ends(&self) -> Vec<Who> {
        let client = self.client.iter().map(|_| Who::Client);
        client
            .chain(self.books.keys().map(|id| Who::Server(*id)))
            .collect()
    }

    /// The core of an end.
    pub fn session(&self, who: Who) -> Option<&Session> {
        match who {
            Who::Client => self.client.as_ref().map(|client| &client.session),
            Who::Server(id) => self.registry.session(id),
        }
    }

    /// The books of an end.
    pub fn books(&mut self, who: Who) -> Option<&mut Books> {
        match who {
            Who::Client => self.client.as_mut().map(|client| &mut client.books),
            Who::Server(id) => self.books.get_mut(&id),
        }
    }

    /// Works on the core of an end; its events are not handled yet.
    pub fn with<R>(&mut self, who: Who, work: impl FnOnce(&mut Session) -> R) -> Option<R> {
        match who {
            Who::Client => self.client.as_mut().map(|client| work(&mut client.session)),
            Who::Server(id) => {
                let mut result = None;
                self.registry
                    .with(id, self.now, |session| result = Some(work(session)));
                result
            }
        }
    }

    /// The end that a link belongs to on one side.
    pub fn owner(&self, link: LinkId, side: usize) -> Option<Who> {
        if side == CLIENT {
            let client = self.client.as_ref()?;
            return client.books.links.contains(&link).then_some(Who::Client);
        }
        let id = self.pipes.get(&link)?.session?;
        let books = self.books.get(&id)?;
        books.links.contains(&link).then_some(Who::Server(id))
    }

    // What applications and origins do.

    /// The client daemon has a session from here on.
    pub(super) fn want_session(&mut self) {
        if self.client.is_some() {
            return;
        }
        self.uids += 1;
        let config = config(&self.knobs, CLIENT, self.client_instance);
        self.client = Some(ClientEnd {
            uid: self.uids,
            session: Session::new_client(&config, self.now),
            books: Books::new(self.uids, self.now),
        });
    }

    /// An application connects.
    pub fn open(&mut self, grace: Duration) -> Option<usize> {
        self.want_session();
        let unit = self.units.len();
        let stored = self.knobs.stored && unit.is_multiple_of(2);
        let handed = self.knobs.handed && !stored;
        let hand_off = handed.then(|| self.hand_off(unit));
        let is_early = self.knobs.stored && unit % 3 == 1;
        let (now, client) = (self.now, self.client.as_mut()?);
        let low = u16::try_from(unit).unwrap_or(u16::MAX);
        let target = Target {
            protocol: Protocol::Tcp,
            source: ([10, 0, 0, 1], low).into(),
            destination: ([192, 0, 2, 1], 80).into(),
            grace,
            on_expiry: if stored {
                OnExpiry::Store(Framing::Line)
            } else {
                OnExpiry::Reset
            },
            accept_early: is_early,
        };
        let opened = match hand_off.clone() {
            None => client.session.open_flow(&target, now),
            Some(hand_off) => client.session.open_handed_off(&target, hand_off, now),
        };
        match opened {
            Ok(flow) => {
                let mut local = Local::new(unit, stored).handed(handed);
                if is_early {
                    local.accept();
                }
                client.books.locals.insert(flow, local);
                let uid = client.uid;
                self.witness.opened(uid, flow, unit);
                let socket = Socket::new(unit, CLIENT, self.knobs.ring);
                let mut socket = socket.in_lines([stored, handed]);
                socket.connected = is_early;
                if let Some(hand_off) = &hand_off {
                    self.wants_held(flow, hand_off);
                }
                self.units.push(Unit {
                    sockets: [Some(socket), None],
                    aborted: None,
                    stalled_reset: false,
                    grace,
                    stored,
                    handed,
                    is_early,
                    born: now,
                });
                self.tell(|| format!("application opens u{unit} as {flow}"));
                self.drain();
                Some(unit)
            }
            Err(OpenRefused::TooManyFlows) => {
                self.met(Situation::TooManyFlows);
                None
            }
            Err(OpenRefused::NoRoom) if stored => {
                self.met(Situation::NoRoomForMessages);
                None
            }
            Err(OpenRefused::Ended | OpenRefused::NoRoom | OpenRefused::NotAgreed) => {
                self.fault("an ended session is still the client's");
                None
            }
        }
    }

    /// The origin of a flow answers.
    pub fn answer(&mut self, id: SessionId, flow: FlowId, refuse: bool) {
        let who = Who::Server(id);
        let now = self.now;
        let Some(local) = self
            .books(who)
            .and_then(|books| books.locals.get_mut(&flow))
        else {
            return;
        };
        if local.accepted {
            return;
        }
        let (unit, over) = (local.unit, local.over);
        self.tell(|| format!("origin answers u{unit}, refuses {refuse}, too late {over}"));
        if over {
            self.met(Situation::LateAnswer);
        }
        if refuse {
            self.with(who, |session| {
                session.refuse_flow(flow, OpenError::Refused, now)
            });
        } else {
            self.accept_at_server(id, flow);
        }
        let Some(books) = self.books(who).filter(|_| !over) else {
            return;
        };
        if refuse {
            books.locals.remove(&flow);
            self.met(Situation::RefusedOrigin);
            self.units[unit].aborted = Some("refused");
            self.units[unit].sockets[SERVER] = None;
        } else {
            if let Some(local) = books.locals.get_mut(&flow) {
                local.accept();
            }
            if let Some(socket) = &mut self.units[unit].sockets[SERVER] {
                socket.connected = true;
            }
        }
        self.drain();
    }

    /// The origin of a flow that was given up meanwhile answers all the same.
    pub fn answer_late(&mut self, rng: &mut Rng) {
        let Some((id, flow)) = self.given_up.pop() else {
            return;
        };
        let now = self.now;
        self.met(Situation::LateAnswer);
        let refuse = rng.chance(50);
        if refuse {
            self.with(Who::Server(id), |session| {
                session.refuse_flow(flow, OpenError::Refused, now);
            });
        } else {
            self.accept_at_server(id, flow);
        }
        self.drain();
    }

    /// One turn of a driver for one flow; true if anything happened.
    pub fn pump(&mut self, who: Who, flow: FlowId, chunk: usize) -> bool {
        let Some(mut local) = self.books(who).and_then(|books| books.locals.remove(&flow)) else {
            return false;
        };
        let (now, side) = (self.now, who.side());
        let mut socket = self.units[local.unit].sockets[side].take();
        let mut acted = false;
        let mut wrong = None;
        let was_over = local.over;
        if let Some(socket) = &mut socket {
            let attached = self.session(who).is_some_and(Session::is_attached);
            let (was_fin, was_reset) = (socket.app_fin, socket.app_rst);
            let _worked = self.with(who, |session| {
                let whole = u64::try_from(chunk).unwrap_or(u64::MAX);
                acted |= local.take((flow, session), socket, whole, now);
                match local.give((flow, session), socket, chunk, now) {
                    Ok(gave) => acted |= gave,
                    Err(what) => wrong = Some(what),
                }
            });
            if std::mem::take(&mut local.blocked) {
                self.met(Situation::BufferFull);
                if !attached {
                    self.met(Situation::BufferFullDetached);
                }
            }
            if was_reset && acted && !attached && local.accepted {
                self.met(Situation::ResetWhileDetached);
            }
            let is_early = who == Who::Client && self.units[local.unit].is_early;
            if is_early && socket.taken() > 0 {
                self.met(Situation::TakenEarly);
            }
            if was_reset && acted && !attached && local.stored && side == SERVER {
                self.met(Situation::OriginFailedDetached);
            }
            if was_reset && was_fin && acted {
                self.met(Situation::FinThenReset);
            }
        }
        let (unit, is_given_up) = (local.unit, local.over && !was_over && !local.accepted);
        self.units[unit].sockets[side] = socket;
        if let Some(books) = self.books(who) {
            books.locals.insert(flow, local);
        }
        if is_given_up && who == Who::Client {
            self.leave(flow);
        }
        if let Some(what) = wrong {
            self.fault(format!("u{unit} at side {side}: {what}"));
        }
        if let Who::Server(id) = who {
            self.note_detached(id, flow);
        }
        self.drain();
        acted
    }
}
