//! Connection A: raw IP packets of the TUN device on one side, one byte stream per connection on
//! the other.

mod answer;
mod commands;
mod datagram;
mod device;
mod event;
mod flush;
mod fragments;
mod ingress;
mod nudge;
pub mod offload;
mod slots;
mod table;
mod timers;
mod window;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use smoltcp::iface::{Config, Interface};
use smoltcp::wire::HardwareAddress;
use tund_session::Instant;

pub use datagram::{Bounce, Taken};
pub use device::Sink;
pub use event::{AcceptError, ConnectionId, NetEvent, Refusal, Stats};
pub use slots::{Arena, RECEIVE_RING_BYTES, RingMemory, Rings, SEND_RING_BYTES};

use crate::packet::FlowKey;
use device::{Blank, Outlet};
use fragments::Fragments;
use slots::Slots;
use table::Table;
use timers::Timers;

/// How long a connection may be silent before its application's host is asked whether it still
/// knows it: two hours, as hosts do by default (RFC 1122 §4.2.3.6), so that idle flows live on and
/// those of a vanished host do not live for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(2 * 60 * 60);

/// A connection is given up after so many packets, each sent because its deadline had passed, to
/// which nothing came back: about ten minutes for data, 30 hours for keep-alive probes. They are
/// counted, not timed, because sleep counts as time. (Linux: `tcp_retries2`, RFC 9293 §3.8.3 R2.)
const GIVE_UP_AFTER: u8 = 15;
/// The same before the application's ACK has completed the handshake: about a minute.
const GIVE_UP_SYN_AFTER: u8 = 6;

/// A held SYN that is not repeated is taken for repeated after this.
const FIRST_SYN_GAP: Duration = Duration::from_secs(1);
/// A held SYN lives so much longer than twice its last gap.
const SYN_GRACE: Duration = Duration::from_secs(1);

/// What the netstack is to be.
#[derive(Clone, Debug)]
pub struct NetstackConfig {
    /// Addresses of this host: packets come from them, and none goes to them.
    pub local_addresses: Vec<IpAddr>,
    /// Take packets from other sources too.
    pub accept_forwarded: bool,
    /// The device has virtio-net headers with checksum and TCP segmentation offload.
    pub offload: bool,
    /// MTU of the device in bytes, 576 to 65,535; anything else counts as the nearer of the two.
    pub mtu: usize,
    /// For initial sequence numbers and for hashing.
    pub seed: u64,
    /// Connections at once, held SYNs among them; beyond that SYNs are dropped, and repeated by
    /// the application's kernel. Memory per idle connection is about 1.5 KiB, and a slot of the
    /// arena while bytes are under way.
    pub max_connections: usize,
    /// SYNs held at once; beyond that the same.
    pub max_held: usize,
    /// The pages of a slot that holds nothing are given back once it was not used for this long,
    /// at most twice this.
    pub idle_after: Duration,
}

impl Default for NetstackConfig {
    fn default() -> Self {
        Self {
            local_addresses: Vec::new(),
            accept_forwarded: false,
            offload: true,
            mtu: 1500,
            seed: 0,
            max_connections: 65_536,
            max_held: 16_384,
            idle_after: Duration::from_secs(2),
        }
    }
}

/// Terminates the TCP connections of applications.
///
/// A turn of its owner: `handle_packet` for a batch of packets; `poll_event` until it yields
/// nothing, with commands in between as the owner sees fit (`accept`, `recv`, `send`, …); then
/// `flush`, which asks each connection that anything happened to for its packets, once. Commands
/// take effect on the wire with the next `flush` only. `handle_timeout` is due at `poll_timeout`
/// and flushes too; early calls are harmless.
///
/// All bytes are acknowledged to the application when they are in the receive ring. How many it
/// may send is said by `set_intake`, how many are taken out by `recv`. What `send` took is kept
/// until the application's kernel has acknowledged it.
pub struct Netstack {
    interface: Interface,
    outlet: Outlet,
    table: Table,
    slots: Slots,
    timers: Timers,
    /// Connections that `flush` has to look at.
    dirty: Vec<u32>,
    /// The other list, so that `flush` allocates nothing.
    spare: Vec<u32>,
    /// At most eight per connection and per SYN of the current batch.
    events: VecDeque<NetEvent>,
    stats: Stats,
    fragments: Fragments,
    /// The name of the last packet that was, or could have been, sent in fragments.
    fragment_id: u32,
    /// The latest time that was told.
    now: Instant,
    local_addresses: Vec<IpAddr>,
    local_networks: Vec<IpNet>,
    link_keys: Vec<FlowKey>,
    accept_forwarded: bool,
    offload: bool,
    max_connections: usize,
    max_held: usize,
}

impl Netstack {
    /// A netstack without connections.
    pub fn new(config: &NetstackConfig, arena: Box<dyn Arena + Send>, now: Instant) -> Self {
        let outlet = Outlet::new(config.offload, config.mtu);
        let mut smoltcp_config = Config::new(HardwareAddress::Ip);
        smoltcp_config.random_seed = config.seed;
        let mut interface = Interface::new(smoltcp_config, &mut Blank(&outlet), to_smoltcp(now));
        interface.set_any_ip(true);
        Self {
            interface,
            outlet,
            table: Table::new(config.seed),
            slots: Slots::new(arena, config.idle_after),
            timers: Timers::default(),
            dirty: Vec::new(),
            spare: Vec::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
            fragments: Fragments::default(),
            fragment_id: u32::from_le_bytes(
                *config.seed.to_le_bytes().first_chunk().unwrap_or(&[0; 4]),
            ),
            now,
            local_addresses: config.local_addresses.clone(),
            local_networks: Vec::new(),
            link_keys: Vec::new(),
            accept_forwarded: config.accept_forwarded,
            offload: config.offload,
            max_connections: config.max_connections,
            max_held: config.max_held.min(config.max_connections),
        }
    }

    /// This host's addresses have changed. Connections from others go on.
    pub fn set_local_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.local_addresses = addresses;
    }

    /// The networks that this host is on have changed.
    pub fn set_local_networks(&mut self, networks: Vec<IpNet>) {
        self.local_networks = networks;
    }

    /// The daemon's own link connections, each from here to the server: packets of theirs that
    /// come out of the TUN device would run in a circle, and are dropped.
    pub fn set_links(&mut self, links: &[(SocketAddr, SocketAddr)]) {
        self.link_keys = links
            .iter()
            .map(|(from, to)| FlowKey::new(*from, *to))
            .collect();
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<NetEvent> {
        let event = self.events.pop_front()?;
        match event {
            NetEvent::Readable { connection } => {
                if let Some(live) = self.table.owned_live(connection) {
                    live.readable_queued = false;
                }
            }
            NetEvent::Writable { connection } => {
                if let Some(live) = self.table.owned_live(connection) {
                    live.writable_queued = false;
                }
            }
            NetEvent::Closed { .. }
            | NetEvent::Drained { .. }
            | NetEvent::Finished { .. }
            | NetEvent::ResetByApp { .. }
            | NetEvent::Syn { .. }
            | NetEvent::SynGone { .. } => {}
        }
        Some(event)
    }

    /// When `handle_timeout` is due; at once if something waits for `flush`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.dirty.is_empty() {
            return Some(self.now);
        }
        match (self.timers.next(), self.slots.deadline()) {
            (Some(timer), Some(sweep)) => Some(timer.min(sweep)),
            (timer, sweep) => timer.or(sweep),
        }
    }

    /// Counters.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Connections, held SYNs among them.
    pub const fn connections(&self) -> usize {
        self.table.len()
    }

    /// Sees to it that `flush` looks at the connection at `index`.
    fn mark_dirty(&mut self, index: u32) {
        if let Some(connection) = self.table.at(index)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Time does not run backwards here, whatever the caller says.
    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }
}

impl fmt::Debug for Netstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netstack")
            .field("connections", &self.table.len())
            .field("held", &self.table.held())
            .field("slots", &self.slots)
            .field("now", &self.now)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// smoltcp counts microseconds, ours are nanoseconds.
fn to_smoltcp(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// The first of our moments that smoltcp takes for `at` or later.
fn from_smoltcp(at: smoltcp::time::Instant) -> Instant {
    let micros = u64::try_from(at.total_micros()).unwrap_or(0);
    Instant::from_nanos(micros.saturating_mul(1000))
}
