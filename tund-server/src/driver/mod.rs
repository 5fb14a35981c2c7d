//! The server's one loop: moves bytes between links, the registry and origins, and decides nothing.

mod deliveries;
mod flows;
mod links;
mod mappings;
mod opens;
mod origin;
mod recorder;
mod report;
mod resolver;
mod rests;
mod state;

use crate::config::Config;
use anyhow::Context as _;
use deliveries::Deliverer;
use links::LinkSlot;
use origin::{EchoSockets, Failures, ReadBuffer};
use resolver::Resolver;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpListener;
use tund_daemon::clock::{self, Alarm};
use tund_daemon::control::{ControlServer, ServerCommand};
use tund_daemon::lifecycle::{
    Capability, MissingPrivilege, Signal, Signals, keep_some_heap, notify_ready, notify_reloading,
    notify_stopping, raise_file_limit,
};
use tund_daemon::link::{ClientKeys, ServerTls};
use tund_daemon::ready::ReadySet;
use tund_daemon::telemetry::Tally;
use tund_server_core::admission::Admission;
use tund_server_core::delivery::StoredFlow;
use tund_server_core::gate::Gate;
use tund_server_core::mapping::Places;
use tund_server_core::proxy::ProxyProtocol;
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig, RegistryEvent};
use tund_session::wire::codec::MAX_DATAGRAM;
use tund_session::wire::frame::capability;
use tund_session::{FlowId, Instance, Instant, LinkId, Outbox, SessionId};

/// Rounds of work before other tasks of the runtime get a turn.
const ROUNDS: usize = 32;
/// How long the last words of links may take when the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(1);
/// How often the server's own addresses are read again.
const ADDRESSES_EVERY: Duration = Duration::from_secs(30);

/// What a token of the ready set stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Listener(usize),
    Link(LinkId),
    Origin(SessionId, FlowId),
    Mapping(SessionId, FlowId),
}

struct Listener {
    socket: TcpListener,
    waker: Waker,
    token: u64,
}

/// The daemon: the cores, and the sockets around them.
struct Server {
    config: Config,
    config_file: PathBuf,
    registry: Registry,
    gate: Gate,
    admission: Admission,
    proxy: ProxyProtocol,
    keys: ClientKeys,
    /// Which `[[client]]` a key belongs to.
    client_of: BTreeMap<ClientKey, usize>,
    tls: ServerTls,

    listeners: Vec<Listener>,
    links: FxHashMap<LinkId, LinkSlot>,
    /// Where links came from that were dropped since events were last taken: some are about them.
    departed: FxHashMap<LinkId, SocketAddr>,
    origins: BTreeMap<(SessionId, FlowId), flows::OriginSlot>,
    mappings: BTreeMap<(SessionId, FlowId), mappings::MappingSlot>,
    places: Places,
    resolver: Resolver,
    /// What datagrams are read into.
    datagram: Vec<u8>,
    rests: rests::Rests,
    opens: opens::Opens,
    denials: opens::Denials,
    /// It was said that echo requests are not permitted.
    is_unpermitted_told: bool,
    /// Which sockets for them are, once that is known.
    echo_sockets: Option<EchoSockets>,
    deliverer: Deliverer,
    /// What each token stands for; tokens are never used twice.
    sources: FxHashMap<u64, Source>,
    next_token: u64,
    ready: ReadySet,
    failures: Failures,
    read_buffer: ReadBuffer,
    outbox: Outbox,
    woken: Vec<u64>,
    dirty: Vec<LinkId>,
    alarm: Alarm,
    /// Deadlines of the driver's own sockets: connects, drains, closing links.
    timers: BTreeMap<(Instant, u64), Source>,
    refusals: Tally,
    state: state::State,
    addresses_at: Instant,
    stopping: Option<Instant>,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// When it cannot start: addresses, keys, sockets.
pub(crate) fn run(config: Config, config_file: PathBuf) -> anyhow::Result<()> {
    keep_some_heap();
    if let Err(error) = raise_file_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let mut signals = Signals::new().context("cannot take over signals")?;
        let mut control = ControlServer::<ServerCommand>::bind(&config.control_socket)?;
        let mut server = Server::new(config, config_file)?;
        notify_ready();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
        // The loop shares its time out itself; tokio's budget would end its turns early.
        let turns = poll_fn(|cx| server.poll(cx, &mut signals, &mut control));
        tokio::task::unconstrained(turns).await;
        control.finish().await;
        Ok(())
    })
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(
        clippy::expect_used,
        reason = "a kernel without entropy cannot run a TLS server either"
    )]
    getrandom::fill(&mut bytes).expect("Linux has getrandom since 3.17");
    bytes
}

impl Server {
    fn new(config: Config, config_file: PathBuf) -> anyhow::Result<Self> {
        let keys = ClientKeys::new(config.clients.iter().flat_map(|c| c.public_keys.clone()));
        let tls = ServerTls::new(&config.private_key, keys.clone())
            .context("cannot set TLS up with the private key of [identity]")?;
        let (mut state, files) = state::State::open(&config.state_directory);
        let deliverer = Deliverer::new(files.deliveries, &config.private_key);
        let mut registry = Registry::new(RegistryConfig {
            session: tund_session::Config {
                instance: Instance(random()),
                buffer_bytes: config.buffer_bytes,
                max_flows: config.max_flows_per_session,
                max_grace: config.max_grace,
                capabilities: deliverer.capabilities() | capability::DATAGRAM,
                datagram_age: tund_session::limits::DATAGRAM_AGE,
            },
            max_sessions: config.max_sessions,
            memory_bytes: config.memory_bytes,
        });
        registry.set_retention(config.retain);
        state.restore(&files.tombstones, &mut registry, clock::now());
        *registry.delivered_mut() = files.delivered;
        registry.forget_deliveries(clock::time_of_day());
        let ready = ReadySet::new();
        let own = own_addresses();
        let admission =
            Admission::new(config.origin_allow.clone(), config.origin_deny.clone(), own);
        let resolver = Resolver::of_this_host(&admission);
        let mut server = Self {
            registry,
            gate: Gate::new(),
            admission,
            proxy: ProxyProtocol::new(config.proxy_protocol.clone()),
            keys,
            client_of: BTreeMap::new(),
            tls,
            listeners: Vec::new(),
            links: FxHashMap::default(),
            departed: FxHashMap::default(),
            origins: BTreeMap::new(),
            mappings: BTreeMap::new(),
            places: Places::default(),
            resolver,
            datagram: vec![0; MAX_DATAGRAM],
            rests: rests::Rests::default(),
            opens: opens::Opens::default(),
            denials: opens::Denials::default(),
            is_unpermitted_told: false,
            echo_sockets: None,
            deliverer,
            sources: FxHashMap::default(),
            next_token: 1,
            ready,
            failures: Failures::new().context("cannot watch origins for failures")?,
            read_buffer: ReadBuffer::new(),
            outbox: Outbox::new(),
            woken: Vec::new(),
            dirty: Vec::new(),
            alarm: Alarm::new().context("cannot make a timer")?,
            timers: BTreeMap::new(),
            refusals: Tally::new(),
            state,
            addresses_at: clock::now(),
            stopping: None,
            config,
            config_file,
        };
        server.index_clients();
        server.listen()?;
        Ok(server)
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        for address in self.config.listen.clone() {
            let socket = links::listen(address).map_err(|error| cannot_listen(address, error))?;
            let token = self.next_token;
            let waker = self.register(Source::Listener(self.listeners.len()));
            waker.wake_by_ref();
            self.listeners.push(Listener {
                socket,
                waker,
                token,
            });
        }
        Ok(())
    }

    fn index_clients(&mut self) {
        let clients = self.config.clients.iter().enumerate();
        self.client_of = clients
            .flat_map(|(index, client)| {
                client
                    .public_keys
                    .iter()
                    .map(move |key| (ClientKey(*key.as_bytes()), index))
            })
            .collect();
    }

    /// A waker that reports `source`, under a number that was never used.
    fn register(&mut self, source: Source) -> Waker {
        let token = self.next_token;
        self.next_token += 1;
        self.sources.insert(token, source);
        self.ready.register(token)
    }

    /// Turns until nothing is left to be done, then sleeps; ready when the daemon has stopped.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        signals: &mut Signals,
        control: &mut ControlServer<ServerCommand>,
    ) -> Poll<()> {
        for _ in 0..ROUNDS {
            let now = clock::now();
            while let Poll::Ready(signal) = signals.poll_signal(cx) {
                if signal == Signal::Reload {
                    control.reload();
                }
                self.on_signal(signal, now);
            }
            while let Poll::Ready(request) = control.poll_request(cx) {
                self.on_request(request, now);
            }
            let expired = self.alarm.poll_expired(cx).is_ready();
            let mut woken = std::mem::take(&mut self.woken);
            let ready = self.ready.poll_ready(cx, &mut woken).is_ready();
            for token in woken.drain(..) {
                self.on_woken(token, now);
            }
            let failed = self.failures.poll_failed(cx, &mut woken).is_ready();
            for token in woken.drain(..) {
                self.on_failed(token, now);
            }
            self.woken = woken;
            self.on_time(now);
            self.opens.next_turn();
            self.deliverer.next_turn();
            self.rests
                .read_on(&mut self.registry, &mut self.read_buffer);
            self.open_waiting(now);
            self.drain(now);
            self.state.poll(cx, &mut self.registry, now);
            self.record_deliveries(cx, now);
            self.drain(now);
            let is_written = self.state.is_idle() && self.deliverer.is_recorded();
            let is_done = self.links.is_empty() && is_written;
            if self.stopping.is_some_and(|until| is_done || until <= now) {
                return Poll::Ready(());
            }
            let is_idle = self.opens.is_empty() && self.rests.is_empty();
            if !(ready || failed || expired) && is_idle {
                self.sleep(cx);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn sleep(&mut self, cx: &Context<'_>) {
        let own = self.timers.first_key_value().map(|((at, _), _)| *at);
        let next = [
            self.registry.poll_timeout(),
            self.gate.poll_timeout(),
            self.refusals.poll_timeout(),
            self.state.poll_timeout(),
            self.stopping,
            self.deliverer.poll_timeout(),
            own,
            Some(self.addresses_at + ADDRESSES_EVERY),
        ];
        if let Err(error) = self.alarm.set(next.into_iter().flatten().min()) {
            tracing::error!(%error, "the timer cannot be set");
            cx.waker().wake_by_ref();
        }
    }

    fn on_woken(&mut self, token: u64, now: Instant) {
        match self.sources.get(&token).copied() {
            Some(Source::Listener(index)) => self.accept(index, now),
            Some(Source::Link(link)) => self.drive_link(link, now),
            Some(Source::Origin(session, flow)) => self.drive_origin(session, flow, now),
            Some(Source::Mapping(session, flow)) => self.drive_mapping(session, flow, now),
            None => {}
        }
    }

    fn on_time(&mut self, now: Instant) {
        while let Some(link) = self.gate.poll_expired(now) {
            self.refusals.add("no handshake within 10 s");
            self.drop_link(link, now);
        }
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Source::Link(link) => self.drop_link(link, now),
                Source::Origin(session, flow) => self.origin_time(session, flow, now),
                Source::Mapping(session, flow) => self.drive_mapping(session, flow, now),
                Source::Listener(index) => self.accept(index, now),
            }
        }
        self.registry.handle_timeout(now);
        if let Some(report) = self.gate.poll_report(now) {
            // Each was counted with its reason, and those are told in one line a minute.
            tracing::debug!(?report, "connections without a listed key were turned away");
        }
        if let Some(summary) = self.refusals.poll_summary(now) {
            tracing::warn!(%summary, "refused in the last minute");
        }
        if self.addresses_at + ADDRESSES_EVERY <= now {
            self.addresses_at = now;
            self.admission.set_own_addresses(own_addresses());
            self.resolver.set_admission(&self.admission);
        }
    }

    /// Carries out what the registry wants, until it wants nothing.
    fn drain(&mut self, now: Instant) {
        while self.take_events(now) | self.send_dirty(now) {}
        self.departed.clear();
    }

    /// Hears what sessions tell; true if there was anything.
    pub(super) fn take_events(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some(event) = self.registry.poll_event() {
            moved = true;
            match event {
                RegistryEvent::Session { session, event } => self.on_event(session, event, now),
                RegistryEvent::Final {
                    key: client,
                    session,
                    flow,
                    taken,
                    released,
                } => {
                    let of = StoredFlow {
                        client,
                        session,
                        flow,
                    };
                    self.note_final(of, (taken, released));
                }
                RegistryEvent::Held { session, flow } => self.read_rest(session, flow),
                RegistryEvent::TurnedAway { link, reason } => {
                    self.on_turned_away(link, reason, now);
                }
            }
        }
        moved
    }

    /// Sends what is due on every link; true if there was anything.
    pub(super) fn send_dirty(&mut self, now: Instant) -> bool {
        let mut moved = false;
        let mut dirty = std::mem::take(&mut self.dirty);
        self.registry.poll_dirty(&mut dirty);
        for link in dirty.drain(..) {
            moved |= self.send(link, now);
        }
        self.dirty = dirty;
        moved
    }

    fn on_signal(&mut self, signal: Signal, now: Instant) {
        match signal {
            Signal::Stop => {
                if self.stopping.is_none() {
                    notify_stopping();
                    tracing::info!("stopping");
                    self.stopping = Some(now + STOP_TIME);
                    // Who comes back at once is not to be put off: the next start may be near.
                    self.listeners.clear();
                    self.registry.close_all(now);
                }
            }
            Signal::Reload => self.reload(now),
        }
    }

    /// Reads the list of clients and what may be reached again; a removed key loses its sessions
    /// at once, flows that are open stay.
    fn reload(&mut self, now: Instant) {
        notify_reloading();
        match crate::config::load(&self.config_file) {
            Ok(loaded) => {
                tund_daemon::telemetry::set_level(loaded.config.log_level);
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                let config = loaded.config;
                self.config.connect_timeout = config.connect_timeout;
                self.admission
                    .set_rules(config.origin_allow, config.origin_deny);
                self.proxy = ProxyProtocol::new(config.proxy_protocol);
                self.config.clients = config.clients;
                self.index_clients();
                let listed = self
                    .config
                    .clients
                    .iter()
                    .flat_map(|c| c.public_keys.clone());
                self.keys.replace(listed);
                let clients = &self.client_of;
                self.registry
                    .retain_keys(|key| clients.contains_key(key), now);
                self.resolver.set_admission(&self.admission);
                self.resolver.set_allow(|session| {
                    flows::client_of(&self.registry, clients, &self.config, session).1
                });
                tracing::info!(
                    clients = self.config.clients.len(),
                    "[[client]], [origin] and [log] were read again; other settings need a restart"
                );
            }
            Err(error) => {
                tracing::error!(%error, "the configuration has mistakes; the old one stays");
            }
        }
        notify_ready();
    }
}

/// Why nothing listens there, and what to do.
fn cannot_listen(address: SocketAddr, error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let purpose = format!("to listen on {address}");
        return MissingPrivilege::new(Capability::NetBindService, purpose).into();
    }
    let remedy = if error.kind() == io::ErrorKind::AddrInUse {
        "another program has the port: stop it, or write another one"
    } else {
        "write an address that a device of this host has"
    };
    anyhow::Error::new(error).context(format!("cannot listen on {address}; {remedy}"))
}

/// The addresses of this host, each with its network.
fn own_addresses() -> Vec<ipnet::IpNet> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
        tracing::warn!("the addresses of this host cannot be read; they are not refused as such");
        return Vec::new();
    };
    let nets = addresses.filter_map(|interface| {
        let address = ip_of(interface.address?)?;
        let mask = interface.netmask.and_then(ip_of);
        let host = if address.is_ipv4() { 32 } else { 128 };
        let prefix = mask
            .and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok())
            .unwrap_or(host);
        ipnet::IpNet::new(address, prefix).ok()
    });
    nets.collect()
}

fn ip_of(address: nix::sys::socket::SockaddrStorage) -> Option<std::net::IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}
