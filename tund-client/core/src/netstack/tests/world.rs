//! A netstack and a kernel, the packets between them, and a clock that moves when told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use tund_session::Instant;

use super::kernel::{Inspector, Kernel, tcp_sum};
use crate::netstack::offload::VNET_HEADER_BYTES;
use crate::netstack::{
    Arena, ConnectionId, NetEvent, Netstack, NetstackConfig, RECEIVE_RING_BYTES, RingMemory, Rings,
    SEND_RING_BYTES, Sink,
};

pub(crate) const APP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 111, 0, 2));
pub(crate) const APP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
pub(crate) const ORIGIN_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
pub(crate) const ORIGIN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));

/// Which IP version, and whether the device has offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) is_v6: bool,
    pub(super) offload: bool,
}

pub(super) const V4: Kind = Kind {
    is_v6: false,
    offload: true,
};

pub(super) const KINDS: [Kind; 4] = [
    V4,
    Kind {
        is_v6: true,
        offload: true,
    },
    Kind {
        is_v6: false,
        offload: false,
    },
    Kind {
        is_v6: true,
        offload: false,
    },
];

/// Slots from plain memory; counts how often the first two were idled.
pub(crate) struct Memory {
    pub(crate) receive_bytes: usize,
    pub(crate) send_bytes: usize,
    pub(crate) slots: usize,
    pub(crate) idled: Arc<[AtomicUsize; 2]>,
}

impl Arena for Memory {
    fn rings(&mut self, slot: usize) -> Option<Rings> {
        (slot < self.slots).then(|| Rings {
            receive: RingMemory::Owned(vec![0xee; self.receive_bytes]),
            send: RingMemory::Owned(vec![0xee; self.send_bytes]),
        })
    }

    fn idle(&mut self, slot: usize) {
        if let Some(count) = self.idled.get(slot) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Collects what the netstack sends.
#[derive(Default)]
pub(crate) struct Collector(pub(crate) Vec<Vec<u8>>);

impl Sink for Collector {
    fn packet(&mut self, bytes: &[u8]) {
        self.0.push(bytes.to_vec());
    }
}

/// Loses, repeats and reorders packets, the same ones for the same seed.
pub(super) struct Weather(pub(super) u64);

impl Weather {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695);
        (self.0 >> 33) % below
    }

    fn disturb(&mut self, packets: &mut Vec<Vec<u8>>) {
        let mut after = Vec::new();
        for packet in packets.drain(..) {
            match self.roll(20) {
                0 => {}
                1 => after.extend([packet.clone(), packet]),
                2 => {
                    let at = self.roll(u64::try_from(after.len()).unwrap() + 1);
                    after.insert(usize::try_from(at).unwrap(), packet);
                }
                _ => after.push(packet),
            }
        }
        *packets = after;
    }
}

pub(super) struct World {
    pub(super) kind: Kind,
    pub(super) net: Netstack,
    pub(super) kernel: Kernel,
    pub(super) inspector: Inspector,
    pub(super) now: Instant,
    pub(super) events: Vec<NetEvent>,
    pub(super) idled: Arc<[AtomicUsize; 2]>,
    /// While false, nothing from the netstack reaches the kernel.
    pub(super) hears: bool,
    /// While false, the kernel's SYNs offer no window scale.
    pub(super) scales: bool,
    /// What may happen to packets on their way.
    pub(super) weather: Option<Weather>,
    next_port: u16,
}

pub(super) fn config(kind: Kind) -> NetstackConfig {
    NetstackConfig {
        local_addresses: vec![APP_V4, APP_V6],
        offload: kind.offload,
        seed: 4711,
        ..NetstackConfig::default()
    }
}

/// A netstack without connections, and nothing around it.
pub(crate) fn bare(config: &NetstackConfig) -> Netstack {
    let memory = Memory {
        receive_bytes: RECEIVE_RING_BYTES,
        send_bytes: SEND_RING_BYTES,
        slots: usize::MAX,
        idled: Arc::new([const { AtomicUsize::new(0) }; 2]),
    };
    Netstack::new(config, Box::new(memory), Instant::default())
}

impl World {
    pub(super) fn new(kind: Kind) -> Self {
        Self::with(kind, config(kind), RECEIVE_RING_BYTES, SEND_RING_BYTES)
    }

    pub(super) fn with(
        kind: Kind,
        config: NetstackConfig,
        receive_bytes: usize,
        send_bytes: usize,
    ) -> Self {
        let now = Instant::default() + Duration::from_secs(1000);
        let idled = Arc::new([const { AtomicUsize::new(0) }; 2]);
        let memory = Memory {
            receive_bytes,
            send_bytes,
            slots: usize::MAX,
            idled: idled.clone(),
        };
        Self {
            kind,
            net: Netstack::new(&config, Box::new(memory), now),
            kernel: Kernel::new(1500, now),
            inspector: Inspector {
                offload: kind.offload,
                ..Inspector::default()
            },
            now,
            events: Vec::new(),
            idled,
            hears: true,
            scales: true,
            weather: None,
            next_port: 40_000,
        }
    }

    pub(super) fn app(&self, port: u16) -> SocketAddr {
        SocketAddr::new(if self.kind.is_v6 { APP_V6 } else { APP_V4 }, port)
    }

    pub(super) fn origin(&self) -> SocketAddr {
        SocketAddr::new(
            if self.kind.is_v6 {
                ORIGIN_V6
            } else {
                ORIGIN_V4
            },
            80,
        )
    }

    /// The port of the socket that was opened last.
    pub(super) fn port(&self) -> u16 {
        self.next_port - 1
    }

    /// An application asks for a connection; the SYN is held now.
    pub(super) fn ask(&mut self) -> (SocketHandle, ConnectionId) {
        let (from, to) = (self.app(self.next_port), self.origin());
        self.next_port += 1;
        let handle = self.kernel.connect(from, to, 1 << 20);
        self.run();
        (handle, self.take_syn(from))
    }

    /// A connection that is open on both sides, with all the window there is.
    pub(super) fn open(&mut self) -> (SocketHandle, ConnectionId) {
        self.open_with(u64::MAX)
    }

    pub(super) fn open_with(&mut self, intake: u64) -> (SocketHandle, ConnectionId) {
        let (handle, connection) = self.ask();
        self.net.set_intake(connection, intake);
        self.net.accept(connection).unwrap();
        self.run();
        assert_eq!(self.kernel.socket(handle).state(), tcp::State::Established);
        (handle, connection)
    }

    /// The connection that was asked for from `from`.
    pub(super) fn take_syn(&mut self, from: SocketAddr) -> ConnectionId {
        let is_wanted =
            |event: &NetEvent| matches!(event, NetEvent::Syn { source, .. } if *source == from);
        let at = self
            .events
            .iter()
            .position(is_wanted)
            .expect("a SYN arrived");
        names(&self.events.remove(at))
    }

    /// One batch each way; true if anything moved.
    pub(super) fn step(&mut self) -> bool {
        self.kernel.poll(self.now);
        let mut packets: Vec<_> = self.kernel.wire.from_kernel.drain(..).collect();
        if let Some(weather) = &mut self.weather {
            weather.disturb(&mut packets);
        }
        let mut moved = !packets.is_empty();
        let mut sink = Collector::default();
        for mut packet in packets {
            if !self.scales {
                forget_scale(&mut packet);
            }
            let mut bytes = self.wrap(&packet);
            self.net.handle_packet(&mut bytes, self.now, &mut sink);
        }
        self.net.flush(self.now, &mut sink);
        while let Some(event) = self.net.poll_event() {
            moved = true;
            self.events.push(event);
        }
        moved |= !sink.0.is_empty();
        self.deliver(sink);
        moved
    }

    /// A packet as it is read from the device.
    pub(super) fn wrap(&self, packet: &[u8]) -> Vec<u8> {
        let mut bytes = if self.kind.offload {
            vec![0; VNET_HEADER_BYTES]
        } else {
            Vec::new()
        };
        bytes.extend_from_slice(packet);
        bytes
    }

    pub(super) fn deliver(&mut self, sink: Collector) {
        let mut segments = Vec::new();
        for bytes in sink.0 {
            segments.extend(self.inspector.inspect(&bytes));
        }
        if let Some(weather) = &mut self.weather {
            weather.disturb(&mut segments);
        }
        if self.hears {
            self.kernel.wire.to_kernel.extend(segments);
        }
    }

    /// Steps until nothing moves.
    pub(super) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("never quiet");
    }

    /// Lets time pass, with every deadline of both sides met.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        for _ in 0..100_000 {
            let due = [self.net.poll_timeout(), self.kernel.poll_at(self.now)];
            let next = due.into_iter().flatten().min().unwrap_or(end).max(self.now);
            if next > end {
                break;
            }
            self.now = next;
            self.tick();
            if next == end && self.net.poll_timeout().is_none_or(|due| due > end) {
                break;
            }
        }
        self.now = end;
        self.tick();
    }

    fn tick(&mut self) {
        let mut sink = Collector::default();
        self.net.handle_timeout(self.now, &mut sink);
        if let Some(due) = self.net.poll_timeout() {
            assert!(
                due > self.now,
                "a deadline lies in the past: {due:?} at {:?}",
                self.now
            );
        }
        self.deliver(sink);
        self.run();
    }

    /// How often the first two slots were idled.
    pub(super) fn idled(&self) -> [usize; 2] {
        [0, 1].map(|slot| self.idled[slot].load(Ordering::Relaxed))
    }

    /// Takes all that can be read.
    pub(super) fn read(&mut self, connection: ConnectionId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.net.recv(connection, usize::MAX, |piece| {
            bytes.extend_from_slice(piece)
        });
        bytes
    }

    /// Takes all that the application has got.
    pub(super) fn app_read(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = Vec::new();
        let socket = self.kernel.socket(handle);
        while socket.can_recv() {
            socket
                .recv(|piece| {
                    bytes.extend_from_slice(piece);
                    (piece.len(), ())
                })
                .unwrap();
        }
        bytes
    }

    pub(super) fn app_write(&mut self, handle: SocketHandle, bytes: &[u8]) -> usize {
        self.kernel.socket(handle).send_slice(bytes).unwrap()
    }

    /// The events that were not looked at yet, but for `Writable` and what
    /// was said several times over, in order; they are forgotten.
    pub(super) fn events_of(&mut self, connection: ConnectionId) -> Vec<NetEvent> {
        let (mine, others): (Vec<_>, _) = std::mem::take(&mut self.events)
            .into_iter()
            .partition(|event| names(event) == connection);
        self.events = others;
        let mut mine: Vec<_> = mine
            .into_iter()
            .filter(|event| !matches!(event, NetEvent::Writable { .. }))
            .collect();
        mine.dedup();
        mine
    }
}

/// Takes the window scale out of a SYN.
fn forget_scale(packet: &mut [u8]) {
    let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let end = at + usize::from(packet[at + 12] >> 4) * 4;
    let option = packet[at..end]
        .windows(2)
        .position(|window| window == [3, 3]);
    if packet[at + 13] & 2 != 0
        && let Some(option) = option
    {
        packet[at + option..at + option + 3].fill(1);
        packet[at + 16..at + 18].fill(0);
        let checksum = !tcp_sum(packet, at);
        packet[at + 16..at + 18].copy_from_slice(&checksum.to_be_bytes());
    }
}

pub(super) const fn names(event: &NetEvent) -> ConnectionId {
    match event {
        NetEvent::Closed { connection }
        | NetEvent::Drained { connection }
        | NetEvent::Finished { connection }
        | NetEvent::Readable { connection }
        | NetEvent::ResetByApp { connection }
        | NetEvent::Syn { connection, .. }
        | NetEvent::SynGone { connection }
        | NetEvent::Writable { connection } => *connection,
    }
}

/// Bytes that show where they belong.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}
