//! A registry, client sessions of any number of keys, the links between them, and a driver that
//! does what it is told.

use crate::registry::{ClientKey, Registry, RegistryConfig, RegistryEvent, TurnedAway};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::codec;
use tund_session::wire::frame::{Frame, Hello, Limits, OnExpiry, Protocol, capability};
use tund_session::{
    Config, EndReason, Event, FlowId, Instance, Instant, LinkId, Outbox, Progress, Secret, Session,
    SessionId, Target,
};

pub(super) const START: Instant = Instant::from_nanos(1_000_000_000_000);
pub(super) const GRACE: Duration = Duration::from_secs(60);
pub(super) const NANOSECOND: Duration = Duration::from_nanos(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn key(n: u8) -> ClientKey {
    ClientKey([n; 32])
}

pub(super) fn session_config(instance: u8) -> Config {
    Config {
        instance: Instance([instance; 16]),
        buffer_bytes: 1 << 20,
        max_flows: 64,
        max_grace: Duration::from_secs(3600),
        capabilities: capability::DELIVERY | capability::DATAGRAM | capability::HAND_OFF,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
    }
}

pub(super) fn config() -> RegistryConfig {
    RegistryConfig {
        session: session_config(200),
        max_sessions: 100,
        memory_bytes: 64 << 20,
    }
}

/// A link between a client and the registry.
struct Link {
    /// Which client; none for bytes made by hand.
    client: Option<usize>,
    /// Nothing passes, and nobody is told.
    is_cut: bool,
    /// Some end wants it closed.
    is_closing: bool,
    /// What the registry sent.
    heard: Vec<u8>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) registry: Registry,
    pub(super) clients: Vec<Session>,
    links: BTreeMap<LinkId, Link>,
    /// Everything the registry said, but for wishes to know of progress.
    pub(super) events: Vec<RegistryEvent>,
    /// The same of each client.
    pub(super) client_events: Vec<Vec<Event>>,
    last_link: u64,
    /// The kernels of the clients' hosts go on acknowledging.
    pub(super) is_moving: bool,
    acknowledged: u64,
}

impl World {
    pub(super) fn new(config: RegistryConfig) -> Self {
        Self {
            now: START,
            registry: Registry::new(config),
            clients: Vec::new(),
            links: BTreeMap::new(),
            events: Vec::new(),
            client_events: Vec::new(),
            last_link: 0,
            is_moving: false,
            acknowledged: 0,
        }
    }

    /// A start of a client daemon.
    pub(super) fn client(&mut self, instance: u8) -> usize {
        let session = Session::new_client(&session_config(instance), self.now);
        self.clients.push(session);
        self.client_events.push(Vec::new());
        self.clients.len() - 1
    }

    /// A client that is attached, with its session.
    pub(super) fn attached(&mut self, instance: u8, of: ClientKey) -> (usize, SessionId) {
        let client = self.client(instance);
        self.dial(client, of);
        let id = self.clients[client].id().expect("it was welcomed");
        assert!(self.registry.session(id).unwrap().is_attached());
        (client, id)
    }

    /// A link whose client has said HELLO or RESUME; nothing has passed yet.
    pub(super) fn dial_silently(&mut self, client: usize, of: ClientKey) -> LinkId {
        let link = self.raw(of);
        let secret = secret(link);
        self.clients[client].handle_link_up(link, secret, self.now);
        self.links.get_mut(&link).unwrap().client = Some(client);
        link
    }

    pub(super) fn dial(&mut self, client: usize, of: ClientKey) -> LinkId {
        let link = self.dial_silently(client, of);
        self.run();
        link
    }

    /// A link whose other end is played by hand.
    pub(super) fn raw(&mut self, of: ClientKey) -> LinkId {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        let mut fresh = [1; 16];
        fresh[..8].copy_from_slice(&self.last_link.to_be_bytes());
        let fresh = SessionId(fresh);
        self.registry
            .handle_link_up(link, of, secret(link), fresh, self.now);
        let state = Link {
            client: None,
            is_cut: false,
            is_closing: false,
            heard: Vec::new(),
        };
        self.links.insert(link, state);
        link
    }

    pub(super) fn say(&mut self, link: LinkId, bytes: impl Into<Bytes>) {
        self.registry.handle_bytes(link, bytes.into(), self.now);
    }

    /// Frames that the registry has sent on a link.
    pub(super) fn heard(&self, link: LinkId) -> Vec<Frame> {
        let mut bytes = Bytes::from(self.links[&link].heard.clone());
        std::iter::from_fn(|| codec::decode(&mut bytes).unwrap()).collect()
    }

    pub(super) fn is_open(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    /// Nothing passes any more on any link of a client, and nobody is told.
    pub(super) fn cut(&mut self, client: usize) {
        let of_client = |link: &&mut Link| link.client == Some(client);
        self.links
            .values_mut()
            .filter(of_client)
            .for_each(|link| link.is_cut = true);
    }

    /// Both ends learn that a link is gone.
    pub(super) fn close(&mut self, link: LinkId) {
        let Some(state) = self.links.remove(&link) else {
            return;
        };
        self.registry.handle_link_down(link, self.now);
        if let Some(client) = state.client {
            self.clients[client].handle_link_down(link, self.now);
        }
    }

    /// All links of a client are gone, and both ends know.
    pub(super) fn lose(&mut self, client: usize) {
        let links = self.links.iter();
        let of_client = links.filter(|(_, link)| link.client == Some(client));
        for link in of_client.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close(link);
        }
        self.run();
    }

    /// All links of all clients are gone, and all ends know.
    pub(super) fn lose_all(&mut self) {
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(link);
        }
        self.run();
    }

    /// The client daemon was killed: its kernel closes its links.
    pub(super) fn kill(&mut self, client: usize) {
        self.lose(client);
        self.clients[client] = Session::new_client(&session_config(255), self.now);
    }

    /// Moves bytes and closes links until nothing is left to be done.
    pub(super) fn run(&mut self) {
        for _ in 0..10_000 {
            let moved = self.move_bytes();
            self.take_events();
            let closing = self.links.iter().filter(|(_, link)| link.is_closing);
            let closing: Vec<_> = closing.map(|(id, _)| *id).collect();
            if !moved && closing.is_empty() {
                return;
            }
            if !moved {
                closing.into_iter().for_each(|link| self.close(link));
            }
        }
        panic!("never quiet");
    }

    fn move_bytes(&mut self) -> bool {
        let mut moved = false;
        let mut ready = Vec::new();
        self.registry.poll_dirty(&mut ready);
        let ready: BTreeSet<_> = ready.into_iter().collect();
        let mut out = Outbox::new();
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            out.clear();
            let link = self.links.get_mut(&id).unwrap();
            if ready.contains(&id) && self.registry.poll_transmit(id, 60_000, &mut out, self.now) {
                moved = true;
                link.heard.extend(out.to_vec());
                if let Some(client) = link.client.filter(|_| !link.is_cut) {
                    self.clients[client].handle_bytes(id, out.to_vec().into(), self.now);
                }
            }
            let Some(client) = link.client else { continue };
            out.clear();
            if self.clients[client].poll_transmit(id, 60_000, &mut out, self.now) {
                moved = true;
                if !link.is_cut {
                    self.registry
                        .handle_bytes(id, out.to_vec().into(), self.now);
                }
            }
        }
        moved
    }

    fn take_events(&mut self) {
        for client in 0..self.clients.len() {
            while let Some(event) = self.clients[client].poll_event() {
                if let Event::LinkDead { link, .. } = event {
                    self.note_closing(link);
                }
                if let Event::WantProgress { link } = event {
                    let progress = Progress::default();
                    self.clients[client].handle_progress(link, progress, self.now);
                    continue;
                }
                self.client_events[client].push(event);
            }
        }
        while let Some(event) = self.registry.poll_event() {
            match &event {
                RegistryEvent::TurnedAway { link, .. }
                | RegistryEvent::Session {
                    event: Event::LinkDead { link, .. },
                    ..
                } => self.note_closing(*link),
                RegistryEvent::Session {
                    event: Event::WantProgress { link },
                    ..
                } => {
                    self.acknowledged += u64::from(self.is_moving);
                    let progress = Progress {
                        bytes_acked: self.acknowledged,
                        ..Progress::default()
                    };
                    self.registry.handle_progress(*link, progress, self.now);
                    continue;
                }
                RegistryEvent::Session { .. }
                | RegistryEvent::Final { .. }
                | RegistryEvent::Held { .. } => {}
            }
            self.events.push(event);
        }
    }

    fn note_closing(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_closing = true;
        }
    }

    /// Lets time pass, with every deadline of both sides met.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        for _ in 0..100_000 {
            let of_clients = self.clients.iter().filter_map(Session::poll_timeout);
            let due = of_clients.map(|(at, _)| at);
            let next = due.chain(self.registry.poll_timeout()).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.registry.handle_timeout(self.now);
            for client in &mut self.clients {
                client.handle_timeout(self.now);
            }
            let left = self.registry.poll_timeout();
            assert!(
                left.is_none_or(|at| at > self.now),
                "a deadline lies in the past: {left:?} at {:?}",
                self.now
            );
            self.run();
        }
        panic!("time stands still");
    }

    /// A flow whose origin has answered.
    pub(super) fn open(&mut self, client: usize) -> FlowId {
        let flow = self.ask(client);
        self.accept(client, flow);
        flow
    }

    /// The origin of a flow that was asked for answers.
    pub(super) fn accept(&mut self, client: usize, flow: FlowId) {
        self.run();
        let id = self.clients[client].id().unwrap();
        self.registry.accept_flow(id, flow, self.now);
        self.run();
    }

    /// A flow that is asked for.
    pub(super) fn ask(&mut self, client: usize) -> FlowId {
        self.ask_for(client, OnExpiry::Reset)
    }

    /// The same, with what becomes of its bytes when an outage outlasts it.
    pub(super) fn ask_for(&mut self, client: usize, on_expiry: OnExpiry) -> FlowId {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let target = Target {
            protocol: Protocol::Tcp,
            source: address("10.0.0.1:1000"),
            destination: address("192.0.2.1:80"),
            grace: GRACE,
            on_expiry,
            accept_early: false,
        };
        self.clients[client].open_flow(&target, self.now).unwrap()
    }

    /// What a link was turned away with.
    pub(super) fn turned_away(&self, link: LinkId) -> Option<TurnedAway> {
        self.events.iter().find_map(|event| match event {
            RegistryEvent::TurnedAway { link: of, reason } if *of == link => Some(*reason),
            RegistryEvent::TurnedAway { .. }
            | RegistryEvent::Session { .. }
            | RegistryEvent::Final { .. }
            | RegistryEvent::Held { .. } => None,
        })
    }

    /// Why links were turned away since this was asked last, though none of them is closed yet.
    pub(super) fn take_turned_away(&mut self) -> Vec<TurnedAway> {
        let events = std::iter::from_fn(|| self.registry.poll_event());
        let turned_away = events.filter_map(|event| {
            let RegistryEvent::TurnedAway { reason, .. } = event else {
                return None;
            };
            Some(reason)
        });
        turned_away.collect()
    }

    /// How a session ended, as the registry said.
    pub(super) fn ended(&self, session: SessionId) -> Option<EndReason> {
        self.events.iter().find_map(|event| match event {
            RegistryEvent::Session {
                session: of,
                event: Event::Ended { reason },
            } if *of == session => Some(*reason),
            RegistryEvent::TurnedAway { .. }
            | RegistryEvent::Session { .. }
            | RegistryEvent::Final { .. }
            | RegistryEvent::Held { .. } => None,
        })
    }

    /// How a client's session ended, as it knows.
    pub(super) fn client_ended(&self, client: usize) -> Option<EndReason> {
        let mut events = self.client_events[client].iter();
        events.find_map(|event| {
            let Event::Ended { reason } = event else {
                return None;
            };
            Some(*reason)
        })
    }

    /// Sessions that have not ended.
    pub(super) fn live(&self) -> Vec<SessionId> {
        let sessions = self.registry.sessions();
        let live = sessions.filter(|(.., session)| !session.is_ended());
        live.map(|(id, ..)| id).collect()
    }

    /// Of these, the ones that are provisional no longer.
    pub(super) fn confirmed(&self) -> Vec<SessionId> {
        let mut confirmed = self.live();
        confirmed.retain(|id| self.registry.session(*id).unwrap().is_confirmed());
        confirmed
    }

    /// All links and sessions are over: nothing is kept of them.
    pub(super) fn expect_nothing_kept(&mut self) {
        self.lose_all();
        self.registry.close_all(self.now);
        self.run();
        assert_eq!(self.registry.kept(), [0; 8]);
        assert_eq!(self.registry.poll_timeout(), None);
    }
}

pub(super) fn secret(link: LinkId) -> Secret {
    let mut bytes = [3; 32];
    bytes[..8].copy_from_slice(&link.0.to_be_bytes());
    Secret::new(bytes)
}

pub(super) fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(frame, &mut bytes);
    bytes
}

/// HELLO of a start of a client.
pub(super) fn hello(instance: u8) -> Frame {
    Frame::Hello(Hello {
        versions: (1, 1),
        capabilities: 0,
        instance: Instance([instance; 16]),
        limits: Limits {
            max_flows: 10,
            buffer_bytes: 1 << 20,
            floor_bytes: 1,
        },
    })
}
