//! A client with an application's kernel on one side, and on the other a network, a registry and
//! origins; everything a driver would do, and a clock that moves when told.

use super::disk::Disk;
use super::server::{Origin, OriginId};
use crate::client::{self, Client, ClientConfig, ClientEvent, Path, Refused};
use crate::dialer::PathId;
use crate::mappings::{Filtering, MappingConfig};
use crate::netstack::tests::kernel::{Inspector, Kernel};
use crate::netstack::tests::world::{APP_V4, Collector, ORIGIN_V4};
use crate::netstack::{
    Arena, NetstackConfig, RECEIVE_RING_BYTES, RingMemory, Rings, SEND_RING_BYTES,
};
use crate::policy::{DuringOutage, Policies, Rules};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig};
use tund_session::wire::frame::{Deliver, Open, OpenError, capability};
use tund_session::{
    Config, EndReason, FlowId, Instance, Instant, LinkId, Outbox, Progress, Secret, SessionId,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const GRACE: Duration = Duration::from_secs(60);
pub(super) const LINGER: Duration = Duration::from_secs(300);
pub(super) const BUFFER: u64 = 1 << 20;
pub(super) const KEY: ClientKey = ClientKey([7; 32]);
/// What holds for all, unless a test says otherwise.
pub(super) const RULES: Rules = Rules {
    grace: GRACE,
    during_outage: DuringOutage::Hold,
    store: None,
    hand_off: None,
};
/// Whose applications all are.
pub(super) const USER: u32 = 1000;
/// The only way to the server, unless a test says otherwise.
pub(super) const WIFI: PathId = PathId {
    interface: 2,
    address: 0,
};

pub(super) fn session_config(instance: u8) -> Config {
    Config {
        instance: Instance([instance; 16]),
        buffer_bytes: BUFFER,
        max_flows: 64,
        max_grace: Duration::from_secs(3600),
        capabilities: capability::DELIVERY | capability::DATAGRAM | capability::HAND_OFF,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
    }
}

pub(super) fn client_config() -> ClientConfig {
    ClientConfig {
        session: session_config(1),
        mappings: MappingConfig {
            idle: SECOND * 300,
            filtering: Filtering::Address,
            grace: GRACE,
        },
        netstack: NetstackConfig {
            local_addresses: vec![APP_V4],
            seed: 4711,
            ..NetstackConfig::default()
        },
        policies: Policies::new(RULES, Vec::new()),
        stub: None,
        linger: Some(LINGER),
        spool_bytes: 1 << 20,
        standby: true,
        seed: 17,
    }
}

pub(super) fn registry_config(instance: u8) -> RegistryConfig {
    RegistryConfig {
        session: session_config(instance),
        max_sessions: 100,
        memory_bytes: 1 << 30,
    }
}

/// Rings from plain memory.
struct Memory {
    receive_bytes: usize,
    send_bytes: usize,
    slots: usize,
}

impl Arena for Memory {
    fn rings(&mut self, slot: usize) -> Option<Rings> {
        (slot < self.slots).then(|| Rings {
            receive: RingMemory::Owned(vec![0; self.receive_bytes]),
            send: RingMemory::Owned(vec![0; self.send_bytes]),
        })
    }

    fn idle(&mut self, _slot: usize) {}
}

/// What becomes of a SYN on its way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// Links are made at once.
    Up,
    /// Nothing is answered.
    Silent,
    /// TCP connects, and nothing more is said.
    Mute,
    /// The pinned server does not list our key.
    NotListed,
    /// There is no way.
    NoPath,
}

/// A link between the client and a registry.
pub(super) struct Link {
    pub(super) path: PathId,
    is_up: bool,
    pub(super) is_cut: bool,
    /// Frames that pass.
    to_server: bool,
}

/// A socket of one of many kernels.
pub(super) type CrowdApp = (usize, SocketHandle);
const CROWD_SOCKETS: usize = 20;
const CROWD_PORT: u16 = 20_000;

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) client: Client,
    pub(super) kernel: Kernel,
    /// Whose applications connect now, as far as the driver can tell.
    pub(super) user: Option<u32>,
    /// Further hosts' kernels, as one with many sockets scans them all for each packet.
    crowd: Vec<Kernel>,
    inspector: Inspector,
    pub(super) registry: Registry,
    pub(super) network: Network,
    pub(super) paths: Vec<PathId>,
    /// Interfaces where bytes cost.
    pub(super) metered: BTreeSet<u32>,
    /// Interfaces on which nothing passes, though they look well.
    pub(super) silent: BTreeSet<u32>,
    /// How often the client's daemon would have been woken: deadlines, and bytes of links.
    pub(super) wakes: u64,
    /// Machines other than `registry`, by the server address they stand at.
    pub(super) elsewhere: BTreeMap<u16, Registry>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) origins: BTreeMap<OriginId, Origin>,
    /// Origins with something to do.
    pub(super) woken: BTreeSet<OriginId>,
    /// Answers by destination port; others are accepted.
    pub(super) answers: BTreeMap<u16, OpenError>,
    /// Ports whose origin says nothing yet.
    pub(super) quiet_ports: BTreeSet<u16>,
    pub(super) opened: Vec<(OriginId, Open)>,
    pub(super) stall_new_origins: bool,
    /// Everything the client has said, with the time.
    pub(super) events: Vec<(Instant, ClientEvent)>,
    /// ICMP messages and resets that the application's kernel got.
    pub(super) icmp: Vec<(u8, u8)>,
    pub(super) dials: Vec<(Instant, LinkId, PathId)>,
    /// Stored files: what they are, what is in them, and why they are kept for a person.
    pub(super) disk: Disk,
    /// What was delivered, by destination and flow of old; all that arrived, and when.
    pub(super) delivered: Vec<(SocketAddr, Vec<u8>)>,
    /// How far each stream of old has got.
    pub(super) journal: BTreeMap<(SessionId, FlowId), u64>,
    /// Bytes of deliveries that are no whole record yet.
    pub(super) half_records: BTreeMap<OriginId, (Deliver, Vec<u8>)>,
    /// UDP and ICMP packets that applications' kernels got, each behind its virtio-net header.
    pub(super) datagrams: Vec<Vec<u8>>,
    next_port: u16,
    next_id: u64,
}

/// What a packet carries: its protocol, or that of its fragment.
fn protocol(bytes: &[u8]) -> u8 {
    let packet = &bytes[crate::netstack::offload::VNET_HEADER_BYTES..];
    match (packet[0] >> 4, packet[6]) {
        (4, _) => packet[9],
        (_, 44) => packet[40],
        (_, next) => next,
    }
}

/// It, or the packet that it is a piece of, is a UDP datagram or an echo reply.
fn is_datagram(bytes: &[u8]) -> bool {
    let packet = &bytes[crate::netstack::offload::VNET_HEADER_BYTES..];
    match protocol(bytes) {
        17 => true,
        1 => packet[6] & 0x3f != 0 || packet[7] != 0 || packet[20] == 0,
        58 => packet[6] == 44 || packet[40] == 129,
        _ => false,
    }
}

fn is_datagram_or_icmp(bytes: &[u8]) -> bool {
    matches!(protocol(bytes), 1 | 17 | 58)
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(client_config(), registry_config(200))
    }

    pub(super) fn with(config: ClientConfig, server: RegistryConfig) -> Self {
        let now = Instant::default() + Duration::from_secs(1000);
        let memory = Memory {
            receive_bytes: RECEIVE_RING_BYTES,
            send_bytes: SEND_RING_BYTES,
            slots: usize::MAX,
        };
        Self::build(Client::new(config, Box::new(memory), now), server, now)
    }

    pub(super) fn with_rings(
        config: ClientConfig,
        server: RegistryConfig,
        ring_bytes: usize,
        slots: usize,
    ) -> Self {
        let now = Instant::default() + Duration::from_secs(1000);
        let memory = Memory {
            receive_bytes: ring_bytes,
            send_bytes: ring_bytes,
            slots,
        };
        Self::build(Client::new(config, Box::new(memory), now), server, now)
    }

    fn build(client: Client, server: RegistryConfig, now: Instant) -> Self {
        Self {
            now,
            client,
            kernel: Kernel::new(1500, now),
            user: Some(USER),
            crowd: Vec::new(),
            inspector: Inspector {
                offload: true,
                ..Inspector::default()
            },
            registry: Registry::new(server),
            network: Network::Up,
            paths: vec![WIFI],
            metered: BTreeSet::new(),
            silent: BTreeSet::new(),
            wakes: 0,
            elsewhere: BTreeMap::new(),
            links: BTreeMap::new(),
            origins: BTreeMap::new(),
            woken: BTreeSet::new(),
            answers: BTreeMap::new(),
            quiet_ports: BTreeSet::new(),
            opened: Vec::new(),
            stall_new_origins: false,
            events: Vec::new(),
            icmp: Vec::new(),
            dials: Vec::new(),
            disk: Disk::default(),
            delivered: Vec::new(),
            journal: BTreeMap::new(),
            half_records: BTreeMap::new(),
            datagrams: Vec::new(),
            next_port: 10_000,
            next_id: 0,
        }
    }

    /// An application's `connect` that has only begun.
    pub(super) fn connect_to(&mut self, port: u16, ring_bytes: usize) -> SocketHandle {
        let from = SocketAddr::new(APP_V4, self.next_port);
        self.next_port += 1;
        let to = SocketAddr::new(ORIGIN_V4, port);
        self.kernel.connect(from, to, ring_bytes)
    }

    /// The same in one of many kernels.
    pub(super) fn connect_in_crowd(&mut self, port: u16, ring_bytes: usize) -> CrowdApp {
        let count = self
            .crowd
            .iter()
            .map(|kernel| kernel.sockets.iter().count());
        let count: usize = count.sum();
        if count.is_multiple_of(CROWD_SOCKETS) {
            self.crowd.push(Kernel::new(1500, self.now));
        }
        let place = count / CROWD_SOCKETS;
        let from = SocketAddr::new(APP_V4, CROWD_PORT + u16::try_from(count).unwrap());
        let to = SocketAddr::new(ORIGIN_V4, port);
        (place, self.crowd[place].connect(from, to, ring_bytes))
    }

    pub(super) fn crowd_socket(&mut self, (place, app): CrowdApp) -> &mut tcp::Socket<'static> {
        self.crowd[place].socket(app)
    }

    pub(super) fn connect(&mut self, port: u16) -> SocketHandle {
        let app = self.connect_to(port, 1 << 20);
        self.run();
        app
    }

    /// A connection that is open from end to end, with its origin.
    pub(super) fn open(&mut self) -> (SocketHandle, OriginId) {
        let app = self.connect(80);
        assert_eq!(self.state(app), tcp::State::Established);
        (app, self.opened.last().expect("an origin was asked for").0)
    }

    pub(super) fn state(&mut self, app: SocketHandle) -> tcp::State {
        self.kernel.socket(app).state()
    }

    pub(super) fn write(&mut self, app: SocketHandle, bytes: &[u8]) -> usize {
        let count = self.kernel.socket(app).send_slice(bytes).unwrap_or(0);
        self.run();
        count
    }

    pub(super) fn read(&mut self, app: SocketHandle) -> Vec<u8> {
        let bytes = self.read_silently(app, usize::MAX);
        self.run();
        bytes
    }

    pub(super) fn read_silently(&mut self, app: SocketHandle, most: usize) -> Vec<u8> {
        take(self.kernel.socket(app), most)
    }

    pub(super) fn origin(&mut self, id: OriginId) -> &mut Origin {
        self.woken.insert(id);
        self.origins.get_mut(&id).expect("the origin was asked for")
    }

    /// How the last session ended: why, flows that were reset, bytes that were lost.
    pub(super) fn ended(&self) -> Option<(EndReason, usize, u64)> {
        self.events.iter().rev().find_map(|(_, event)| {
            let ClientEvent::Ended {
                reason,
                flows,
                lost_bytes,
            } = event
            else {
                return None;
            };
            Some((*reason, *flows, *lost_bytes))
        })
    }

    /// Every final no that was told.
    pub(super) fn refusals(&self) -> Vec<Refused> {
        let refusals = self.events.iter().filter_map(|(_, event)| {
            let ClientEvent::Refused(why) = event else {
                return None;
            };
            Some(*why)
        });
        refusals.collect()
    }

    pub(super) fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Everything moves until nothing is left to be done.
    pub(super) fn run(&mut self) {
        for _ in 0..20_000 {
            if !self.step() {
                return;
            }
        }
        panic!("never quiet");
    }

    fn step(&mut self) -> bool {
        let mut sink = Collector::default();
        let mut packets = Vec::new();
        for kernel in self.crowd.iter_mut().chain([&mut self.kernel]) {
            kernel.poll(self.now);
            packets.extend(kernel.wire.from_kernel.drain(..));
        }
        let mut moved = !packets.is_empty();
        for packet in packets {
            let mut bytes = vec![0; crate::netstack::offload::VNET_HEADER_BYTES];
            bytes.extend_from_slice(&packet);
            self.client.handle_packet(&mut bytes, self.now, &mut sink);
        }
        self.client.flush(self.now, &mut sink);
        self.expect_nothing_pending();
        moved |= !sink.0.is_empty();
        self.deliver(sink);
        moved |= self.transmit();
        while let Some(event) = self.client.poll_event() {
            moved = true;
            self.on_event(event);
        }
        moved |= self.serve();
        moved
    }

    /// One flush carries everything: nothing may wait for the next packet or deadline.
    fn expect_nothing_pending(&mut self) {
        let pending = self.client.netstack().poll_event();
        assert_eq!(pending, None, "connection A has something to tell");
        let session = self.client.session.as_mut();
        let pending = session.and_then(tund_session::Session::poll_event);
        assert_eq!(pending, None, "the session has something to tell");
    }

    pub(super) fn deliver(&mut self, sink: Collector) {
        for bytes in sink.0 {
            if is_datagram_or_icmp(&bytes) {
                self.datagrams.push(bytes.clone());
            }
            if is_datagram(&bytes) {
                continue;
            }
            for segment in self.inspector.inspect(&bytes) {
                if segment[9] == 1 {
                    self.icmp.push((segment[20], segment[21]));
                }
                let port = u16::from_be_bytes([segment[22], segment[23]]);
                let place = usize::from(port.saturating_sub(CROWD_PORT)) / CROWD_SOCKETS;
                let kernel = match self.crowd.get_mut(place) {
                    Some(kernel) if port >= CROWD_PORT && segment[9] == 6 => kernel,
                    Some(_) | None => &mut self.kernel,
                };
                kernel.wire.to_kernel.push_back(segment);
            }
        }
        self.inspector.seen.clear();
    }

    fn transmit(&mut self) -> bool {
        let mut moved = false;
        let mut ready = Vec::new();
        self.registry.poll_dirty(&mut ready);
        for other in self.elsewhere.values_mut() {
            other.poll_dirty(&mut ready);
        }
        let up = self.links.iter().filter(|(_, link)| link.is_up);
        for id in up.map(|(id, _)| *id).collect::<Vec<_>>() {
            let (path, passes) = match self.links.get(&id) {
                Some(link) => (link.path, !link.is_cut),
                None => continue,
            };
            let (now, mut out) = (self.now, Outbox::new());
            if self.client.poll_transmit(id, 60_000, &mut out, now) {
                moved = true;
                if passes {
                    let bytes = out.to_vec().into();
                    self.server(path.address).handle_bytes(id, bytes, now);
                }
            }
            out.clear();
            if self
                .server(path.address)
                .poll_transmit(id, 60_000, &mut out, now)
            {
                moved = true;
                if passes {
                    self.wakes += 1;
                    self.client.handle_bytes(id, out.to_vec().into(), now);
                }
            }
        }
        moved
    }

    fn on_event(&mut self, event: ClientEvent) {
        self.events.push((self.now, event.clone()));
        match event {
            ClientEvent::FindPaths => {
                let paths = self.usable_paths();
                self.client.handle_paths(&paths, self.now);
            }
            ClientEvent::Dial { link, path } => self.dial(link, path),
            ClientEvent::CloseLink { link, .. } if self.links.contains_key(&link) => {
                self.close(link);
            }
            ClientEvent::CloseLink { link, .. } => {
                self.client.handle_link_down(link, false, self.now);
            }
            ClientEvent::WantProgress { link } => {
                let progress = Progress::default();
                self.client.handle_progress(link, progress, self.now);
            }
            ClientEvent::FindUser { connection, .. } => {
                self.client.handle_user(connection, self.user, self.now);
            }
            ClientEvent::Spool(order) => self.on_order(order),
            ClientEvent::Attached { .. }
            | ClientEvent::Denied { .. }
            | ClientEvent::Detached
            | ClientEvent::Ended { .. }
            | ClientEvent::FlowEnded(_)
            | ClientEvent::Refused(_)
            | ClientEvent::Stored { .. }
            | ClientEvent::Undeliverable => {}
        }
    }

    /// What the routing tables say.
    pub(super) fn usable_paths(&self) -> Vec<Path> {
        let usable = |path: &PathId| Path {
            id: *path,
            is_metered: self.metered.contains(&path.interface),
        };
        match self.network {
            Network::NoPath => Vec::new(),
            Network::Up | Network::Silent | Network::Mute | Network::NotListed => {
                self.paths.iter().map(usable).collect()
            }
        }
    }

    fn dial(&mut self, link: LinkId, path: PathId) {
        self.dials.push((self.now, link, path));
        let state = Link {
            path,
            is_up: false,
            is_cut: false,
            to_server: false,
        };
        self.links.insert(link, state);
        self.client.handle_source(link, source(path.interface));
        match self.network {
            _ if self.silent.contains(&path.interface) => {}
            Network::Silent | Network::NoPath => {}
            Network::Mute => self.client.handle_answered(link, self.now),
            Network::NotListed => {
                self.links.remove(&link);
                self.client.handle_link_down(link, true, self.now);
            }
            Network::Up => self.establish(link),
        }
    }

    /// These interfaces have a carrier and an address, and lead to the server, best first; the
    /// kernel tells of it.
    pub(super) fn offer(&mut self, interfaces: &[u32]) {
        let path = |interface: &u32| PathId {
            interface: *interface,
            address: 0,
        };
        self.paths = interfaces.iter().map(path).collect();
        let sources = interfaces.iter().map(|interface| source(*interface));
        let network = client::Network {
            running: interfaces.iter().copied().collect(),
            addresses: sources.chain([APP_V4]).collect(),
            networks: BTreeSet::new(),
        };
        self.client.handle_network(network, true, self.now);
        self.run();
    }

    /// Nothing passes by an interface any more, and nobody is told.
    pub(super) fn silence(&mut self, interface: u32) {
        self.silent.insert(interface);
        for link in self.links.values_mut() {
            link.is_cut |= link.path.interface == interface;
        }
    }

    /// The interfaces of the live links; the carrier's first.
    pub(super) fn interfaces(&self) -> Vec<u32> {
        let links = self.client.links();
        links.map(|link| self.links[&link].path.interface).collect()
    }

    /// The attempt has reached the server.
    pub(super) fn establish(&mut self, link: LinkId) {
        let now = self.now;
        self.next_id += 1;
        let mut fresh = [1; 16];
        fresh[..8].copy_from_slice(&self.next_id.to_be_bytes());
        let state = self.links.get_mut(&link).expect("it was dialled");
        state.is_up = true;
        state.to_server = true;
        let address = state.path.address;
        let secret = secret(link);
        self.client.handle_answered(link, self.now);
        self.server(address)
            .handle_link_up(link, KEY, secret.clone(), SessionId(fresh), now);
        self.client.handle_link_up(link, secret, now);
    }

    /// Both ends learn that a link is gone, once what was said on it has arrived.
    pub(super) fn close(&mut self, link: LinkId) {
        let Some(state) = self.links.remove(&link) else {
            return;
        };
        let (now, mut out) = (self.now, Outbox::new());
        let server = self.server(state.path.address);
        if state.to_server && !state.is_cut {
            let _ = server;
            while self.client.poll_transmit(link, 60_000, &mut out, now) {
                let bytes = out.to_vec().into();
                self.server(state.path.address)
                    .handle_bytes(link, bytes, now);
                out.clear();
            }
        }
        self.server(state.path.address).handle_link_down(link, now);
        self.client.handle_link_down(link, false, now);
    }

    /// Nothing is moved on a link for now, as when its socket takes nothing.
    pub(super) fn hold(&mut self, link: LinkId, is_held: bool) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_up = !is_held;
        }
    }

    /// Every link goes down, and both ends are told; nothing is reached any more.
    pub(super) fn fail(&mut self) {
        self.network = Network::Silent;
        self.lose();
    }

    pub(super) fn lose(&mut self) {
        for link in self.links.values_mut() {
            link.is_cut = true;
        }
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(link);
        }
        self.run();
    }

    /// Nothing passes any more, and nobody is told.
    pub(super) fn cut(&mut self) {
        self.network = Network::Silent;
        for link in self.links.values_mut() {
            link.is_cut = true;
        }
    }

    /// New attempts get through.
    pub(super) fn heal(&mut self) {
        self.network = Network::Up;
    }

    /// The server was killed and starts anew: its kernel resets what was open.
    pub(super) fn restart_server(&mut self) {
        self.registry = Registry::new(registry_config(201));
        self.origins.clear();
        for link in self.links.values_mut() {
            link.is_cut = true;
        }
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(link);
        }
    }

    /// Lets time pass, with every deadline of all sides met.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        for _ in 0..200_000 {
            let due = [
                self.client.poll_timeout(),
                self.registry.poll_timeout(),
                self.kernel.poll_at(self.now),
            ];
            let of_crowd = self.crowd.iter_mut().filter_map(|k| k.poll_at(self.now));
            let next = due.into_iter().flatten().chain(of_crowd).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.tick();
            if self.now == end && self.client.poll_timeout().is_none_or(|at| at > end) {
                return;
            }
        }
        panic!("time stands still");
    }

    /// What is due is done: news, such as a flow that begins, may make something due at once, but
    /// not again and again.
    fn tick(&mut self) {
        for _ in 0..3 {
            let mut sink = Collector::default();
            self.registry.handle_timeout(self.now);
            for other in self.elsewhere.values_mut() {
                other.handle_timeout(self.now);
            }
            if self.client.poll_timeout().is_some_and(|at| at <= self.now) {
                self.wakes += 1;
                self.client.handle_timeout(self.now, &mut sink);
            }
            self.deliver(sink);
            self.run();
            if self.client.poll_timeout().is_none_or(|at| at > self.now) {
                return;
            }
        }
        let due = self.client.poll_timeout();
        panic!("a deadline lies in the past: {due:?} at {:?}", self.now);
    }

    /// Waits until something holds, a millisecond at a time; how long that took.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Duration {
        let from = self.now;
        for _ in 0..100_000 {
            if holds(self) {
                return self.now.saturating_duration_since(from);
            }
            self.pass(MILLISECOND);
        }
        panic!("never: {what}");
    }
}

/// Takes what a socket has for its application.
pub(super) fn take(socket: &mut tcp::Socket<'static>, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while socket.can_recv() && bytes.len() < most {
        let left = most - bytes.len();
        let taken = socket.recv(|piece| {
            let count = piece.len().min(left);
            bytes.extend_from_slice(&piece[..count]);
            (count, ())
        });
        taken.unwrap();
    }
    bytes
}

/// The client's address on an interface.
pub(super) fn source(interface: u32) -> IpAddr {
    let low = u8::try_from(interface).expect("a small number");
    Ipv4Addr::new(198, 51, 100, low).into()
}

pub(super) fn secret(link: LinkId) -> Secret {
    let mut bytes = [3; 32];
    bytes[..8].copy_from_slice(&link.0.to_be_bytes());
    Secret::new(bytes)
}
