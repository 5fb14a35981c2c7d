//! One simulated client: the core of the client daemon, its links, and an application.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tund_client_core::netstack::{
    Arena, NetstackConfig, RECEIVE_RING_BYTES, RingMemory, Rings, SEND_RING_BYTES, Sink,
};
use tund_client_core::{
    Client, ClientConfig, ClientEvent, DuringOutage, Filtering, MappingConfig, Path, PathId,
    Policies, Refused, Rules, State,
};
use tund_daemon::identity::PrivateKey;
use tund_daemon::link::{ClientTls, Link, LinkError, SocketOptions};
use tund_daemon::ready::ReadySet;
use tund_session::{EndReason, Instance, Instant, LinkId, Outbox, SessionId};

use super::application::{Application, News};
use super::{LINK_BITS, Target};

/// Connections of one member at once: the application's, and one that is being ended.
const SLOTS: usize = 4;
/// The largest piece taken from a link at once.
const READ_BYTES: usize = 64 * 1024;
/// The one way to the server.
const PATH: Path = Path {
    id: PathId {
        interface: 1,
        address: 0,
    },
    is_metered: false,
};

/// What a member has seen so far.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Its session has a working link.
    pub is_attached: bool,
    /// Its session's name.
    pub session: Option<SessionId>,
    /// The application's connection is open.
    pub is_open: bool,
    /// Bytes that came back from the origin.
    pub echoes: usize,
    /// Connections of the application that were reset or refused.
    pub resets: u64,
    /// When the last one was.
    pub reset_at: Option<Instant>,
    /// When a link attached last.
    pub attached_at: Option<Instant>,
    /// Handshakes begun: connections to the server that it answered.
    pub handshakes: u64,
    /// Why the last session ended.
    pub ended: Option<EndReason>,
    /// An error that needs a person.
    pub refused: Option<Refused>,
}

/// Rings of its own; the kernel gives pages only where they are used.
struct Memory;

impl Arena for Memory {
    fn rings(&mut self, slot: usize) -> Option<Rings> {
        (slot < SLOTS).then(|| Rings {
            receive: RingMemory::Owned(vec![0; RECEIVE_RING_BYTES]),
            send: RingMemory::Owned(vec![0; SEND_RING_BYTES]),
        })
    }

    fn idle(&mut self, _slot: usize) {}
}

/// Takes the packets for the application.
#[derive(Default)]
struct Device(Vec<Vec<u8>>);

impl Sink for Device {
    fn packet(&mut self, bytes: &[u8]) {
        self.0.push(bytes.to_vec());
    }
}

/// Nobody listens there: no handshake was begun.
fn is_refused<T>(result: &Poll<Result<T, LinkError>>) -> bool {
    matches!(result, Poll::Ready(Err(LinkError::Transport(error)))
        if error.kind() == io::ErrorKind::ConnectionRefused)
}

struct Slot {
    link: Link,
    waker: Waker,
    is_answered: bool,
    is_up: bool,
}

pub(super) struct Member {
    number: u64,
    target: Target,
    source: Ipv4Addr,
    client: Client,
    tls: ClientTls,
    links: BTreeMap<LinkId, Slot>,
    application: Application,
    device: Device,
    outbox: Outbox,
    /// Links that have news.
    woken: Vec<LinkId>,
    view: View,
}

impl Member {
    pub(super) fn new(
        target: Target,
        key: &PrivateKey,
        (number, source): (u64, Ipv4Addr),
        now: Instant,
    ) -> Self {
        let mut instance = [0x5a; 16];
        instance[..8].copy_from_slice(&number.to_le_bytes());
        let rules = Rules {
            grace: Duration::from_secs(60),
            during_outage: DuringOutage::Hold,
            store: None,
            hand_off: None,
        };
        let config = ClientConfig {
            mappings: MappingConfig {
                idle: Duration::from_secs(300),
                filtering: Filtering::Address,
                grace: Duration::from_secs(600),
            },
            session: tund_session::Config {
                instance: Instance(instance),
                buffer_bytes: 1 << 20,
                max_flows: 64,
                max_grace: Duration::from_secs(60),
                capabilities: 0,
                datagram_age: tund_session::limits::DATAGRAM_AGE,
            },
            netstack: NetstackConfig {
                local_addresses: vec![Ipv4Addr::new(10, 111, 0, 2).into()],
                offload: false,
                max_connections: SLOTS,
                max_held: SLOTS,
                seed: number,
                ..NetstackConfig::default()
            },
            policies: Policies::new(rules, Vec::new()),
            stub: None,
            spool_bytes: 0,
            linger: Some(Duration::from_secs(60)),
            standby: true,
            seed: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        let mut application = Application::new(target.origin);
        application.connect(now);
        let tls = ClientTls::new(key, vec![target.key]).expect("our TLS takes our keys");
        Self {
            number,
            target,
            source,
            client: Client::new(config, Box::new(Memory), now),
            tls,
            links: BTreeMap::new(),
            application,
            device: Device::default(),
            outbox: Outbox::new(),
            woken: Vec::new(),
            view: View::default(),
        }
    }

    pub(super) fn view(&self) -> View {
        View {
            is_attached: self.client.state() == State::Attached,
            session: self.client.session_id(),
            is_open: self.application.is_open(),
            refused: self.client.refused(),
            ..self.view.clone()
        }
    }

    pub(super) fn exchange(&mut self) {
        if self.application.is_open() {
            self.application.request(false);
        }
    }

    pub(super) fn wake(&mut self, link: LinkId) {
        self.woken.push(link);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let both = [self.client.poll_timeout(), self.application.poll_timeout()];
        both.into_iter().flatten().min()
    }

    /// Does what there is to do.
    pub(super) fn turn(&mut self, ready: &ReadySet, now: Instant) {
        self.application.handle_timeout(now);
        self.client.handle_timeout(now, &mut self.device);
        for link in std::mem::take(&mut self.woken) {
            self.drive_link(link, now);
        }
        loop {
            let mut moved = self.carry_packets(now);
            self.client.flush(now, &mut self.device);
            moved |= !self.device.0.is_empty();
            let links: Vec<_> = self.links.keys().copied().collect();
            for link in links {
                moved |= self.send(link, now);
            }
            while let Some(event) = self.client.poll_event() {
                moved = true;
                self.on_event(event, ready, now);
            }
            if !moved {
                return;
            }
        }
    }

    /// Packets both ways between application and netstack; true if there were any.
    fn carry_packets(&mut self, now: Instant) -> bool {
        let mut any = false;
        for packet in std::mem::take(&mut self.device.0) {
            any = true;
            match self.application.handle_packet(&packet) {
                News::Connected => self.application.request(true),
                News::Nothing => {}
                News::Received(count) => self.view.echoes += count,
                News::Reset => {
                    self.view.resets += 1;
                    self.view.reset_at = Some(now);
                    self.application.connect(now);
                }
            }
        }
        for mut packet in std::mem::take(&mut self.application.out) {
            any = true;
            self.client
                .handle_packet(&mut packet, now, &mut self.device);
        }
        any
    }

    fn on_event(&mut self, event: ClientEvent, ready: &ReadySet, now: Instant) {
        match event {
            ClientEvent::FindPaths => self.client.handle_paths(&[PATH], now),
            ClientEvent::Dial { link, .. } => self.dial(link, ready, now),
            ClientEvent::CloseLink { link, .. } => {
                // Last words go out as far as the kernel takes them at once.
                self.send(link, now);
                self.links.remove(&link);
                self.client.handle_link_down(link, false, now);
            }
            ClientEvent::WantProgress { link } => {
                let slot = self.links.get(&link);
                if let Some(progress) = slot.and_then(|slot| slot.link.progress().ok()) {
                    self.client.handle_progress(link, progress, now);
                }
            }
            ClientEvent::FindUser { .. }
            | ClientEvent::Spool(_)
            | ClientEvent::Stored { .. }
            | ClientEvent::Undeliverable => {}
            ClientEvent::Attached { .. } => self.view.attached_at = Some(now),
            ClientEvent::Ended { reason, .. } => self.view.ended = Some(reason),
            ClientEvent::Denied { .. }
            | ClientEvent::Detached
            | ClientEvent::FlowEnded(_)
            | ClientEvent::Refused(_) => {}
        }
    }

    fn dial(&mut self, id: LinkId, ready: &ReadySet, now: Instant) {
        let connect = || -> Result<Link, LinkError> {
            let kind = Type::STREAM.nonblocking().cloexec();
            let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
            socket.bind(&std::net::SocketAddr::new(self.source.into(), 0).into())?;
            Link::connect(
                socket,
                self.target.server,
                &self.tls,
                &SocketOptions::default(),
            )
        };
        match connect() {
            Ok(link) => {
                let slot = Slot {
                    link,
                    waker: ready.register(self.number << LINK_BITS | id.0),
                    is_answered: false,
                    is_up: false,
                };
                self.links.insert(id, slot);
                self.drive_link(id, now);
            }
            Err(_) => self.client.handle_link_down(id, false, now),
        }
    }

    fn drive_link(&mut self, id: LinkId, now: Instant) {
        let Some(slot) = self.links.get_mut(&id) else {
            return;
        };
        if !slot.is_up {
            let mut cx = Context::from_waker(&slot.waker);
            let result = slot.link.poll_handshake(&mut cx);
            if slot.link.is_connected() && !slot.is_answered {
                slot.is_answered = true;
                self.view.handshakes += u64::from(!is_refused(&result));
                self.client.handle_answered(id, now);
            }
            match result {
                Poll::Pending => return,
                Poll::Ready(Ok(proved)) => {
                    slot.is_up = true;
                    self.client.handle_link_up(id, proved.secret, now);
                }
                Poll::Ready(Err(error)) => return self.fail(id, Some(&error), now),
            }
        }
        self.receive(id, now);
        self.send(id, now);
    }

    fn fail(&mut self, id: LinkId, error: Option<&LinkError>, now: Instant) {
        self.links.remove(&id);
        let refused = matches!(error, Some(LinkError::KeyNotListed(_)));
        self.client.handle_link_down(id, refused, now);
    }

    fn receive(&mut self, id: LinkId, now: Instant) {
        while let Some(slot) = self.links.get_mut(&id) {
            let mut cx = Context::from_waker(&slot.waker);
            match slot.link.poll_recv(&mut cx, READ_BYTES) {
                Poll::Pending => return,
                Poll::Ready(Ok(Some(bytes))) => self.client.handle_bytes(id, bytes, now),
                Poll::Ready(Ok(None)) => self.fail(id, None, now),
                Poll::Ready(Err(error)) => self.fail(id, Some(&error), now),
            }
        }
    }

    /// Sends what is due on a link; true if anything was.
    fn send(&mut self, id: LinkId, now: Instant) -> bool {
        let mut moved = false;
        loop {
            let Some(slot) = self.links.get_mut(&id).filter(|slot| slot.is_up) else {
                return moved;
            };
            match slot.link.poll_flush(&mut Context::from_waker(&slot.waker)) {
                Poll::Pending => return moved,
                Poll::Ready(Err(error)) => {
                    self.fail(id, Some(&error), now);
                    return true;
                }
                Poll::Ready(Ok(())) => {}
            }
            let room = slot.link.room();
            self.outbox.clear();
            if !self.client.poll_transmit(id, room, &mut self.outbox, now) {
                return moved;
            }
            moved = true;
            if let Err(error) = slot.link.send(self.outbox.slices()) {
                self.fail(id, Some(&error), now);
                return true;
            }
        }
    }
}
