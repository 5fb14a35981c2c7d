//! The client's one loop: moves bytes between TUN, links and the core, and decides nothing.

mod accounts;
mod arena;
mod links;
mod names;
mod network;
mod paths;
mod report;
mod rules;
mod spool;
mod steer;

use crate::config::{Config, Connect, buffer_most};
use crate::sys::address::InterfaceAddress;
use crate::sys::tun::{Offload, READ_BYTES, TunDevice, TunName, TunOptions};
use crate::sys::watch::NetworkWatch;
use accounts::AccountLog;
use anyhow::Context as _;
use links::LinkSlot;
use paths::Paths;
use rustc_hash::FxHashMap;
use spool::Files;
use std::future::poll_fn;
use std::path::PathBuf;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use steer::Steered;
use tund_client_core::netstack::{NetstackConfig, Sink};
use tund_client_core::{Client, ClientConfig, ClientEvent};
use tund_daemon::clock::{self, Alarm, SleepWatch};
use tund_daemon::control::{ClientCommand, ControlServer};
use tund_daemon::lifecycle::{
    Capability, MissingPrivilege, Signal, Signals, keep_some_heap, notify_ready, notify_reloading,
    notify_stopping, raise_file_limit,
};
use tund_daemon::link::{ClientTls, LinkError};
use tund_daemon::ready::ReadySet;
use tund_session::wire::frame::capability;
use tund_session::{Instance, Instant, LinkId, Outbox};

/// Rounds of work before other tasks of the runtime get a turn.
const ROUNDS: usize = 32;
/// Packets of one turn: a batch large enough to share an egress poll, small enough to stay fair.
const BATCH_PACKETS: usize = 64;
/// How long the last words of links may take when the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(1);
/// Flows at once. The server may allow fewer.
const MAX_FLOWS: u64 = 16_384;

/// Packets on their way out, straight into the device.
struct TunSink<'a> {
    tun: &'a TunDevice,
    /// Packets that the device did not take.
    refused: &'a mut u64,
}

impl Sink for TunSink<'_> {
    fn packet(&mut self, bytes: &[u8]) {
        if let Err(error) = self.tun.try_write(bytes) {
            *self.refused += 1;
            tracing::debug!(%error, bytes = bytes.len(), "the device did not take a packet");
        }
    }
}

/// The daemon: the core, and what is around it.
struct Daemon {
    config_file: PathBuf,
    client: Client,
    tun: TunDevice,
    tun_waker: Waker,
    /// The device may have packets.
    is_tun_ready: bool,
    packet: Vec<u8>,
    refused_packets: u64,
    tls: ClientTls,
    links: FxHashMap<LinkId, LinkSlot>,
    ready: ReadySet,
    woken: Vec<u64>,
    outbox: Outbox,
    paths: Paths,
    files: Files,
    alarm: Alarm,
    watch: NetworkWatch,
    sleep_watch: SleepWatch,
    /// When the wear of keys is looked at again at the latest.
    wear_at: Option<Instant>,
    wear_seen: Instant,
    /// What last went wrong with an attempt, for `status`.
    last_error: Option<(&'static str, String)>,
    untaken: report::Untaken,
    /// Since the last link attached, somebody else has answered for the server, and the log says so.
    is_impostor_told: bool,
    stopping: Option<Instant>,
    accounts: AccountLog,
    steered: Option<Steered>,
}

/// The token of the TUN device; those of links are their ids.
const TUN_TOKEN: u64 = 0;

/// How long a thread that looks up names and routes waits for more to do. Longer than between two
/// looks of a client without a network: each would be a thread's beginning and end, two wakes.
const IDLE_THREAD: Duration = Duration::from_secs(120);

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// When it cannot start: privileges, the device, the control socket.
pub(crate) fn run(config: Config, config_file: PathBuf) -> anyhow::Result<()> {
    keep_some_heap();
    if let Err(error) = raise_file_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREAD)
        .build()?;
    let result = runtime.block_on(async move {
        let mut signals = Signals::new().context("cannot take over signals")?;
        let mut control = ControlServer::<ClientCommand>::bind(&config.control_socket)?;
        let mut daemon = Daemon::new(config, config_file)?;
        notify_ready();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            device = %daemon.tun.name(),
            mtu = daemon.tun.mtu(),
            offload = ?daemon.tun.offload(),
            "ready"
        );
        // The loop shares its time out itself; tokio's budget would end its turns early.
        let turns = poll_fn(|cx| daemon.poll(cx, &mut signals, &mut control));
        let result = tokio::task::unconstrained(turns).await;
        control.finish().await;
        result
    });
    // Dropping it would wait for a name that is being resolved, for half a minute without a network.
    runtime.shutdown_background();
    result
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(
        clippy::expect_used,
        reason = "a kernel without entropy cannot run a TLS client either"
    )]
    getrandom::fill(&mut bytes).expect("Linux has getrandom since 3.17");
    bytes
}

fn open_tun(config: &Config) -> anyhow::Result<TunDevice> {
    let name: TunName = config.tun_name.parse().context("tun.name")?;
    let addresses = config.tun_addresses.iter();
    let options = TunOptions {
        name,
        mtu: config.tun_mtu,
        addresses: addresses
            .map(|(address, prefix_length)| InterfaceAddress {
                address: *address,
                prefix_length: *prefix_length,
            })
            .collect(),
        offload: Offload::Segmentation,
    };
    TunDevice::open(&options).map_err(|error| {
        if error.is_missing_privilege() {
            let missing = MissingPrivilege::new(Capability::NetAdmin, "to open the TUN device");
            anyhow::Error::new(missing)
        } else {
            anyhow::Error::new(error)
        }
    })
}

fn client_config(config: &Config, tun: &TunDevice) -> ClientConfig {
    let seed = u64::from_le_bytes(random());
    ClientConfig {
        session: tund_session::Config {
            instance: Instance(random()),
            buffer_bytes: config.buffer_bytes.min(buffer_most(config.memory_bytes)),
            max_flows: MAX_FLOWS,
            max_grace: config.grace,
            capabilities: capability::DELIVERY | capability::DATAGRAM | capability::HAND_OFF,
            datagram_age: config.udp.max_age,
        },
        mappings: rules::mappings(config),
        netstack: NetstackConfig {
            accept_forwarded: config.accept_forwarded,
            offload: tun.vnet(),
            mtu: tun.mtu().into(),
            seed,
            ..NetstackConfig::default()
        },
        policies: rules::policies(config),
        stub: config.stub,
        spool_bytes: config.spool.max_bytes,
        linger: match config.connect {
            Connect::Always => None,
            Connect::OnDemand => Some(config.linger),
        },
        standby: config.standby,
        seed,
    }
}

impl Daemon {
    fn new(config: Config, config_file: PathBuf) -> anyhow::Result<Self> {
        let tun = open_tun(&config)?;
        let tls = ClientTls::new(&config.private_key, config.server_keys.clone())
            .context("cannot set TLS up with the private key of [identity]")?;
        let now = clock::now();
        let settings = client_config(&config, &tun);
        let (files, found) = Files::open(&config)?;
        let slots = arena::Slots::reserve(settings.netstack.max_connections)?;
        let ready = ReadySet::new();
        // Before the first look, so that nothing is missed in between.
        let watch = NetworkWatch::open()?;
        let mut client = Client::new(settings, Box::new(slots), now);
        client.load_spool(&found, now);
        let mut daemon = Self {
            client,
            files,
            tun_waker: ready.register(TUN_TOKEN),
            is_tun_ready: true,
            packet: vec![0; READ_BYTES],
            refused_packets: 0,
            tls,
            links: FxHashMap::default(),
            woken: Vec::new(),
            outbox: Outbox::new(),
            paths: Paths::new(&config, tun.name().clone()),
            alarm: Alarm::new().context("cannot make a timer")?,
            watch,
            sleep_watch: SleepWatch::new().context("cannot make a timer")?,
            wear_at: None,
            wear_seen: now,
            last_error: None,
            untaken: report::Untaken::default(),
            is_impostor_told: false,
            stopping: None,
            accounts: AccountLog::default(),
            steered: None,
            ready,
            tun,
            config_file,
        };
        daemon.look_at_network(true, now)?;
        // Last: nothing that fails leaves anything behind.
        daemon.steered = Steered::begin(&config, daemon.tun.name())?;
        Ok(daemon)
    }

    /// Turns until nothing is left to be done, then sleeps; ready when the daemon has stopped.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        signals: &mut Signals,
        control: &mut ControlServer<ClientCommand>,
    ) -> Poll<anyhow::Result<()>> {
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
            if self.sleep_watch.poll_slept(cx).is_ready() {
                self.client.handle_woken(now);
            }
            self.hear_of_network(cx, now);
            if let Some(steered) = &mut self.steered {
                steered.hear(cx, now);
            }
            if self.paths.poll_resolved(cx).is_ready() {
                self.find_paths(now);
            }
            while let Poll::Ready(done) = self.files.poll_done(cx) {
                self.on_done(done, now);
            }
            let expired = self.alarm.poll_expired(cx).is_ready();
            let mut woken = std::mem::take(&mut self.woken);
            let ready = self.ready.poll_ready(cx, &mut woken).is_ready();
            for token in woken.drain(..) {
                if token == TUN_TOKEN {
                    self.is_tun_ready = true;
                } else {
                    self.drive_link(LinkId(token), now);
                }
            }
            self.woken = woken;
            let read = match self.read_tun(now) {
                Ok(read) => read,
                Err(error) => return Poll::Ready(Err(error)),
            };
            self.on_time(now);
            self.drain(now);
            if self.has_stopped(now) {
                self.stop_steering();
                return Poll::Ready(Ok(()));
            }
            if !(ready || expired || read) {
                self.sleep(cx);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Everybody has been told, and what was to be stored is on the disk; or it took too long.
    fn has_stopped(&mut self, now: Instant) -> bool {
        let Some(until) = self.stopping else {
            return false;
        };
        if self.links.is_empty() && self.files.is_idle() {
            return true;
        }
        if until > now {
            return false;
        }
        self.client.give_up_storing();
        self.drain(now);
        true
    }

    /// Takes a batch of packets; true if there were any.
    fn read_tun(&mut self, now: Instant) -> anyhow::Result<bool> {
        let mut count = 0;
        while self.is_tun_ready && count < BATCH_PACKETS {
            let mut cx = Context::from_waker(&self.tun_waker);
            match self.tun.poll_read(&mut cx, &mut self.packet) {
                Poll::Pending => self.is_tun_ready = false,
                Poll::Ready(Ok(len)) => {
                    count += 1;
                    let mut sink = TunSink {
                        tun: &self.tun,
                        refused: &mut self.refused_packets,
                    };
                    if let Some(packet) = self.packet.get_mut(..len) {
                        self.client.handle_packet(packet, now, &mut sink);
                    }
                }
                Poll::Ready(Err(error)) => {
                    return Err(error).with_context(|| {
                        format!("cannot read from {}; was it removed?", self.tun.name())
                    });
                }
            }
        }
        Ok(count > 0)
    }

    fn on_time(&mut self, now: Instant) {
        if self.client.poll_timeout().is_some_and(|at| at <= now) {
            let mut sink = TunSink {
                tun: &self.tun,
                refused: &mut self.refused_packets,
            };
            self.client.handle_timeout(now, &mut sink);
        }
        self.close_overdue(now);
        self.look_for_wear(now);
        if let Some(steered) = &mut self.steered {
            steered.tend(now);
        }
        self.accounts.tell_counted(now);
        self.untaken.tell(self.client.netstack().stats(), now);
    }

    fn sleep(&mut self, cx: &Context<'_>) {
        let next = [
            self.client.poll_timeout(),
            self.next_close(),
            self.accounts.poll_timeout(),
            self.stopping,
            self.wear_at,
            self.untaken.poll_timeout(),
            self.steered.as_ref().and_then(Steered::poll_timeout),
        ];
        if let Err(error) = self.alarm.set(next.into_iter().flatten().min()) {
            tracing::error!(%error, "the timer cannot be set");
            cx.waker().wake_by_ref();
        }
    }

    /// Lets the core write into the device.
    fn flush(&mut self, now: Instant) {
        let mut sink = TunSink {
            tun: &self.tun,
            refused: &mut self.refused_packets,
        };
        self.client.flush(now, &mut sink);
    }

    /// Carries out what the core wants, until it wants nothing.
    fn drain(&mut self, now: Instant) {
        loop {
            self.flush(now);
            let mut moved = false;
            let links: Vec<LinkId> = self.client.links().collect();
            for link in links {
                moved |= self.send(link, now);
            }
            while let Some(event) = self.client.poll_event() {
                moved = true;
                self.on_event(event, now);
            }
            if !moved {
                return;
            }
        }
    }

    fn on_event(&mut self, event: ClientEvent, now: Instant) {
        match event {
            ClientEvent::FindPaths => {
                self.paths.resolve();
                self.find_paths(now);
            }
            ClientEvent::Dial { link, path } => self.dial(link, path, now),
            ClientEvent::CloseLink {
                link,
                has_last_words,
            } => {
                self.close_link(link, has_last_words, now);
            }
            ClientEvent::WantProgress { link } => {
                let progress = self
                    .links
                    .get(&link)
                    .and_then(|slot| slot.link.progress().ok());
                if let Some(progress) = progress {
                    self.client.handle_progress(link, progress, now);
                }
            }
            ClientEvent::Attached { link, number } => {
                self.last_error = None;
                self.is_impostor_told = false;
                let session = self.client.session_id();
                let interface = self.links.get(&link).map(|slot| slot.interface.as_str());
                tracing::info!(session = session.map(tracing::field::display), %number, interface, "attached");
            }
            ClientEvent::Denied { destination, by } => {
                tracing::debug!(%destination, ?by, "the server does not connect there");
                self.untaken.denied(by);
            }
            ClientEvent::Detached => {
                tracing::info!("detached; flows wait");
                // It may be because rules, routes or filter are gone.
                if let Some(steered) = &mut self.steered {
                    steered.news(now);
                }
            }
            ClientEvent::Ended {
                reason,
                flows,
                lost_bytes,
            } if flows > 0 => {
                tracing::warn!(
                    ?reason,
                    flows,
                    lost_bytes,
                    "session ended; applications were reset"
                );
            }
            ClientEvent::Ended { reason, .. } => tracing::info!(?reason, "session ended"),
            ClientEvent::FlowEnded(account) => self.accounts.tell(&account, now),
            ClientEvent::Refused(why) => {
                tracing::error!("{}", report::refusal(why).1);
            }
            ClientEvent::FindUser {
                connection,
                source,
                destination,
            } => self.find_user(connection, (source, destination), now),
            ClientEvent::Spool(order) => self.files.order(order),
            ClientEvent::Stored { .. } | ClientEvent::Undeliverable => report::tell_stored(&event),
        }
    }

    fn find_paths(&mut self, now: Instant) {
        let found = self.paths.find();
        match found {
            Ok(paths) => self.client.handle_paths(&paths, now),
            Err(error) => {
                tracing::debug!(%error, "no path to the server");
                self.last_error = Some(("no_route", error));
                // Now it is known that there is no way to an IPv4 address: is there a translator?
                self.paths.resolve();
                // A name that does not resolve is no lack of routes: asked for again soon.
                if self.paths.waits_for_network() {
                    self.client.handle_paths(&[], now);
                }
            }
        }
    }

    fn on_signal(&mut self, signal: Signal, now: Instant) {
        match signal {
            Signal::Stop => {
                if self.stopping.is_none() {
                    notify_stopping();
                    tracing::info!("stopping");
                    self.stopping = Some(now + STOP_TIME);
                    self.client.disconnect(now);
                }
            }
            Signal::Reload => self.reload(),
        }
    }

    /// Reads the log level again; everything else needs a restart.
    fn reload(&self) {
        notify_reloading();
        match crate::config::load(&self.config_file) {
            Ok(loaded) => tund_daemon::telemetry::set_level(loaded.config.log_level),
            Err(error) => {
                tracing::error!(%error, "the configuration has mistakes; the old one stays")
            }
        }
        notify_ready();
    }

    /// An attempt or a link has failed.
    fn note_failure(&mut self, error: &LinkError) {
        let code = match error {
            LinkError::NotOurServer(_) => {
                if !std::mem::replace(&mut self.is_impostor_told, true) {
                    tracing::warn!("not our server: {error}; attempts go on");
                }
                "server_key_mismatch"
            }
            LinkError::KeyNotListed(_) => return,
            LinkError::Limit(_)
            | LinkError::PeerClosed
            | LinkError::Tls(_)
            | LinkError::Transport(_) => "unreachable",
        };
        self.last_error = Some((code, error.to_string()));
    }
}
