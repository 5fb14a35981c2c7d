//! Datagrams that wait one way: of one mapping in the order in which they came, of all within a room.

use crate::id::FlowId;
use crate::limits;
use crate::time::Instant;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Datagrams of a session that were carried, and those that were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Sent on a link.
    pub sent: u64,
    /// Taken by the local socket.
    pub delivered: u64,
    /// Dropped because they had waited for too long.
    pub stale: u64,
    /// Dropped because too many waited.
    pub crowded_out: u64,
    /// Dropped with the end of their mapping, or because a part of them was lost with a link.
    pub abandoned: u64,
    /// Not given to the local socket, since their sender or remote is not allowed.
    pub unwanted: u64,
}

impl DatagramCounts {
    /// Both together.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self {
            sent: self.sent + more.sent,
            delivered: self.delivered + more.delivered,
            stale: self.stale + more.stale,
            crowded_out: self.crowded_out + more.crowded_out,
            abandoned: self.abandoned + more.abandoned,
            unwanted: self.unwanted + more.unwanted,
        }
    }

    pub(crate) const fn add(&mut self, more: Self) {
        *self = self.plus(more);
    }
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drop {
    Stale,
    CrowdedOut,
    Abandoned,
}

/// What was dropped: counts for the session, bytes for the account of the mapping.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    pub(crate) counts: DatagramCounts,
    pub(crate) bytes: u64,
}

impl Dropped {
    pub(crate) fn add(&mut self, bytes: usize, why: Drop) {
        self.bytes += u64::try_from(bytes).unwrap_or(0);
        match why {
            Drop::Stale => self.counts.stale += 1,
            Drop::CrowdedOut => self.counts.crowded_out += 1,
            Drop::Abandoned => self.counts.abandoned += 1,
        }
    }
}

/// What all mappings of a session hold in one direction, and may hold (INV-9).
#[derive(Debug)]
pub(crate) struct Room {
    count: usize,
    /// With what each costs beside its bytes.
    bytes: usize,
    most_bytes: usize,
    /// An outer bound on what it holds beyond its floor: the daemon's memory is shared.
    bound: usize,
    /// What each mapping holds, so that the one that holds most is known.
    holders: BTreeSet<(usize, FlowId)>,
}

impl Room {
    /// A share of the buffer, in addition to it.
    pub(crate) fn new(buffer_bytes: u64) -> Self {
        let share = usize::try_from(buffer_bytes / limits::DATAGRAM_SHARE).unwrap_or(usize::MAX);
        let (least, most) = (limits::DATAGRAM_BYTES_LEAST, limits::DATAGRAM_BYTES);
        Self {
            count: 0,
            bytes: 0,
            most_bytes: share.clamp(least, most),
            bound: usize::MAX,
            holders: BTreeSet::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn set_bound(&mut self, bytes: u64) {
        self.bound = usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// What it holds beyond its floor, in bytes.
    pub(crate) fn lent(&self) -> u64 {
        let beyond = self.bytes.saturating_sub(limits::DATAGRAM_BYTES_LEAST);
        u64::try_from(beyond).unwrap_or(u64::MAX)
    }

    fn most(&self) -> usize {
        let bound = limits::DATAGRAM_BYTES_LEAST.saturating_add(self.bound);
        self.most_bytes.min(bound)
    }

    /// More than half of it is taken.
    pub(crate) fn is_half_full(&self) -> bool {
        self.bytes > self.most() / 2
    }

    /// Room for one more of that length.
    pub(crate) fn has(&self, len: usize) -> bool {
        self.bytes + len + limits::DATAGRAM_COST <= self.most()
    }

    /// The mapping that holds most.
    pub(crate) fn heaviest(&self) -> Option<FlowId> {
        self.holders.last().map(|(_, flow)| *flow)
    }

    fn add(&mut self, len: usize) {
        self.count += 1;
        self.bytes += len + limits::DATAGRAM_COST;
    }

    fn remove(&mut self, len: usize) {
        self.count -= 1;
        self.bytes -= len + limits::DATAGRAM_COST;
    }

    fn weigh(&mut self, flow: FlowId, before: usize, after: usize) {
        self.holders.remove(&(before, flow));
        if after > 0 {
            self.holders.insert((after, flow));
        }
    }
}

/// A datagram that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) remote: SocketAddr,
    pub(crate) payload: Bytes,
    /// How long it had waited when it came here.
    age: Duration,
    at: Instant,
}

impl Waiting {
    pub(crate) fn new(remote: SocketAddr, payload: Bytes, age: Duration, now: Instant) -> Self {
        Self {
            remote,
            payload,
            age,
            at: now,
        }
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.at)
    }
}

/// Datagrams in the order in which they came; at a bound the oldest goes.
#[derive(Debug)]
pub(crate) struct Queue {
    flow: FlowId,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// The length of one more that is under way in pieces.
    pieces: Option<usize>,
}

impl Queue {
    pub(crate) fn new(flow: FlowId) -> Self {
        Self {
            flow,
            waiting: VecDeque::new(),
            bytes: 0,
            pieces: None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn front(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    fn weight(&self) -> usize {
        let pieces = self.pieces.map_or(0, |len| len + limits::DATAGRAM_COST);
        self.bytes + self.waiting.len() * limits::DATAGRAM_COST + pieces
    }

    /// One of that length is under way in pieces from here on, or none any more. It takes room like
    /// those that wait.
    pub(crate) fn set_pieces(&mut self, len: Option<usize>, room: &mut Room) {
        let before = self.weight();
        if let Some(len) = std::mem::replace(&mut self.pieces, len) {
            room.remove(len);
        }
        if let Some(len) = len {
            room.add(len);
        }
        room.weigh(self.flow, before, self.weight());
    }

    /// Keeps one more, for which its own mapping's oldest make room; the session has made what room
    /// there is for it among all.
    pub(crate) fn push(&mut self, datagram: Waiting, room: &mut Room, dropped: &mut Dropped) {
        let len = datagram.payload.len();
        while !self.is_empty()
            && (self.waiting.len() >= limits::MAPPING_DATAGRAMS
                || self.bytes + len > limits::MAPPING_BYTES)
        {
            self.drop_oldest(room, dropped);
        }
        if !room.has(len) {
            dropped.add(len, Drop::CrowdedOut);
            return;
        }
        let before = self.weight();
        room.add(len);
        self.bytes += len;
        self.waiting.push_back(datagram);
        room.weigh(self.flow, before, self.weight());
    }

    pub(crate) fn pop(&mut self, room: &mut Room) -> Option<Waiting> {
        let before = self.weight();
        let datagram = self.waiting.pop_front()?;
        let len = datagram.payload.len();
        self.bytes -= len;
        room.remove(len);
        room.weigh(self.flow, before, self.weight());
        Some(datagram)
    }

    pub(crate) fn drop_oldest(&mut self, room: &mut Room, dropped: &mut Dropped) {
        if let Some(oldest) = self.pop(room) {
            dropped.add(oldest.payload.len(), Drop::CrowdedOut);
        }
    }

    /// Those that wait do so from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        for datagram in &mut self.waiting {
            (datagram.age, datagram.at) = (Duration::ZERO, now);
        }
    }

    /// Those in front that have waited for too long go.
    pub(crate) fn drop_stale(
        &mut self,
        (most, now): (Duration, Instant),
        room: &mut Room,
        dropped: &mut Dropped,
    ) {
        while self.front().is_some_and(|first| first.age(now) > most)
            && let Some(stale) = self.pop(room)
        {
            dropped.add(stale.payload.len(), Drop::Stale);
        }
    }

    pub(crate) fn clear(&mut self, room: &mut Room, dropped: &mut Dropped) {
        while let Some(datagram) = self.pop(room) {
            dropped.add(datagram.payload.len(), Drop::Abandoned);
        }
    }
}
