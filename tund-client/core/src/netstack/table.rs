//! All connections: from the two ends of a packet, and from the owner's name, to what is known.

use std::collections::HashMap;

use rustc_hash::FxSeededState;
use tund_session::Instant;

use super::answer::Offer;
use super::device::Wire;
use super::event::{ConnectionId, Refusal};
use crate::packet::{FlowKey, Segment};

/// The longest headers of a SYN: IPv4 and TCP, both full of options.
pub(crate) const MAX_HEADERS_BYTES: usize = 120;

/// A SYN that waits for the owner's word.
#[derive(Clone, Debug)]
pub(crate) struct HeldSyn {
    pub(crate) segment: Segment,
    pub(crate) offer: Offer,
    headers: [u8; MAX_HEADERS_BYTES],
    /// When it came last.
    pub(crate) seen: Instant,
    /// When the application must be thought to have given up.
    pub(crate) expires: Instant,
    /// What the owner lets in once it is accepted.
    pub(crate) intake_bytes: u64,
    /// The owner's word, if it was no.
    pub(crate) refusal: Option<Refusal>,
}

impl HeldSyn {
    pub(crate) fn new(packet: &[u8], segment: &Segment, offer: Offer, expires: Instant) -> Self {
        let mut headers = [0; MAX_HEADERS_BYTES];
        let len = segment
            .payload_at()
            .min(MAX_HEADERS_BYTES)
            .min(packet.len());
        headers[..len].copy_from_slice(&packet[..len]);
        Self {
            segment: *segment,
            offer,
            headers,
            seen: Instant::default(),
            expires,
            intake_bytes: 0,
            refusal: None,
        }
    }

    /// The packet without its payload, for an ICMP message to quote.
    pub(crate) fn headers(&self) -> &[u8] {
        &self.headers[..self.segment.payload_at().min(MAX_HEADERS_BYTES)]
    }
}

/// How the owner wants its direction to end; each outdoes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// It does not.
    Open,
    /// By FIN, after all that was sent.
    Finish,
    /// By RST, once all that was sent is acknowledged.
    ResetWhenDrained,
    /// By RST, at once; the owner has forgotten the connection.
    Abandon,
}

/// Something that the owner is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It happened; the owner does not know.
    Due,
    /// The owner knows.
    Given,
    /// It did not happen.
    None,
}

/// A connection with a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) slot: u32,
    pub(crate) wire: Wire,
    pub(crate) ending: Ending,
    /// Bytes that the send ring has ever taken.
    pub(crate) sent: u64,
    pub(crate) drained: Notice,
    pub(crate) finished: Notice,
    pub(crate) reset_by_app: Notice,
    /// TCP is over; only bytes that nobody has read yet are left.
    pub(crate) is_over: bool,
    /// Of these, what the application's kernel had acknowledged when the owner was last told.
    pub(crate) acknowledged: u64,
    pub(crate) readable_queued: bool,
    pub(crate) writable_queued: bool,
    /// A deadline of the socket has passed since it was last asked for packets.
    pub(crate) timed_out: bool,
    /// It waits for an answer, but smoltcp has no deadline for asking again.
    pub(crate) is_stuck: bool,
    /// The window field of the last segment from the application.
    pub(crate) peer_window: u16,
    /// Packets sent because of a deadline since the application's host was last heard.
    pub(crate) unanswered: u8,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Boxed, as most connections are live, and half as large.
    Held(Box<HeldSyn>),
    Live(Live),
}

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) key: FlowKey,
    pub(crate) phase: Phase,
    /// The earliest deadline that the timers hold for it.
    pub(crate) armed: Option<Instant>,
    /// It stands in the list of connections to flush.
    pub(crate) dirty: bool,
}

impl Connection {
    pub(crate) const fn new(key: FlowKey, phase: Phase) -> Self {
        Self {
            key,
            phase,
            armed: None,
            dirty: false,
        }
    }

    /// The owner may still speak of it.
    const fn is_owned(&self) -> bool {
        match &self.phase {
            Phase::Held(held) => held.refusal.is_none(),
            Phase::Live(live) => !matches!(live.ending, Ending::Abandon),
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    connection: Option<Connection>,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    by_key: HashMap<FlowKey, u32, FxSeededState>,
    held: usize,
}

impl Table {
    pub(crate) fn new(seed: u64) -> Self {
        let seed = usize::try_from(seed & u64::from(u32::MAX)).unwrap_or(0);
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::with_hasher(FxSeededState::with_seed(seed)),
            held: 0,
        }
    }

    /// How many connections there are, held SYNs among them.
    pub(crate) const fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// How many SYNs are held.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// Takes a connection in; nobody else has its key.
    pub(crate) fn insert(&mut self, connection: Connection) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            // The configuration bounds the table far below this.
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.held += usize::from(matches!(connection.phase, Phase::Held(_)));
        self.by_key.insert(connection.key, index);
        let entry = &mut self.entries[place(index)];
        entry.connection = Some(connection);
        ConnectionId {
            index,
            generation: entry.generation,
        }
    }

    /// Takes a connection out; its name is not used again.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Connection> {
        let entry = self.entries.get_mut(place(index))?;
        let connection = entry.connection.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        self.held -= usize::from(matches!(connection.phase, Phase::Held(_)));
        self.unlink(&connection.key, index);
        Some(connection)
    }

    /// Gives the connection a socket.
    pub(crate) fn enliven(&mut self, index: u32, live: Live) {
        if let Some(connection) = self.at(index) {
            let old = std::mem::replace(&mut connection.phase, Phase::Live(live));
            self.held -= usize::from(matches!(old, Phase::Held(_)));
        }
    }

    /// Segments with this key no longer belong to the connection at `index`.
    pub(crate) fn unlink(&mut self, key: &FlowKey, index: u32) {
        if self.by_key.get(key) == Some(&index) {
            self.by_key.remove(key);
        }
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn at(&mut self, index: u32) -> Option<&mut Connection> {
        self.entries.get_mut(place(index))?.connection.as_mut()
    }

    pub(crate) fn live_at(&mut self, index: u32) -> Option<&mut Live> {
        match &mut self.at(index)?.phase {
            Phase::Live(live) => Some(live),
            Phase::Held(_) => None,
        }
    }

    /// The name of the connection at `index`, if its owner may still hear of it.
    pub(crate) fn owned_id(&self, index: u32) -> Option<ConnectionId> {
        let entry = self.entries.get(place(index))?;
        let is_owned = entry.connection.as_ref().is_some_and(Connection::is_owned);
        is_owned.then_some(ConnectionId {
            index,
            generation: entry.generation,
        })
    }

    /// The name of whatever is at `index`, for telling it from what comes there later.
    pub(crate) fn id(&self, index: u32) -> ConnectionId {
        let generation = self
            .entries
            .get(place(index))
            .map_or(0, |entry| entry.generation);
        ConnectionId { index, generation }
    }

    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let entry = self.entries.get_mut(place(id.index))?;
        entry
            .connection
            .as_mut()
            .filter(|_| entry.generation == id.generation)
    }

    /// What the owner means by `id`; nothing once it has forgotten the connection itself.
    pub(crate) fn owned(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.get(id).filter(|connection| connection.is_owned())
    }

    pub(crate) fn owned_live(&mut self, id: ConnectionId) -> Option<&mut Live> {
        match &mut self.owned(id)?.phase {
            Phase::Live(live) => Some(live),
            Phase::Held(_) => None,
        }
    }
}

fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
