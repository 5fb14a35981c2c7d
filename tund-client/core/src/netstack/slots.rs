//! Fixed slots of ring memory and the socket that lives in each, used by one connection after
//! another, the last one used first.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::storage::RingBuffer;
use tund_session::Instant;

/// Receive ring of each slot; with [`SEND_RING_BYTES`] the fastest of those measured.
pub const RECEIVE_RING_BYTES: usize = 256 * 1024;
/// Send ring of each slot.
pub const SEND_RING_BYTES: usize = 512 * 1024;

/// smoltcp refuses larger receive rings.
const MAX_RING_BYTES: usize = 1 << 30;

/// Slots whose pages are given back per turn, 7 µs each: a burst of idle ones must not stall bulk.
const IDLED_PER_TURN: usize = 32;
/// Pause between two such turns.
const IDLE_TURN: Duration = Duration::from_millis(1);

/// Memory of one ring.
#[derive(Debug)]
pub enum RingMemory {
    /// A piece of something that lives as long as the process, as an arena of mapped memory.
    Lent(&'static mut [u8]),
    /// Memory of its own.
    Owned(Vec<u8>),
}

impl RingMemory {
    const fn len(&self) -> usize {
        match self {
            Self::Lent(bytes) => bytes.len(),
            Self::Owned(bytes) => bytes.len(),
        }
    }

    fn into_ring(self) -> RingBuffer<'static, u8> {
        match self {
            Self::Lent(bytes) => RingBuffer::new(bytes),
            Self::Owned(bytes) => RingBuffer::new(bytes),
        }
    }
}

/// Memory of both rings of a slot.
#[derive(Debug)]
pub struct Rings {
    /// What applications send is put here.
    pub receive: RingMemory,
    /// What is sent to applications is kept here.
    pub send: RingMemory,
}

/// Where the memory of slots comes from.
pub trait Arena {
    /// Hands out the memory of `slot` for good. Called once per slot; slots are counted from 0
    /// upwards, and a new one is asked for only while all before it are in use. `None` if there
    /// is no more.
    fn rings(&mut self, slot: usize) -> Option<Rings>;

    /// Nothing in the memory of `slot` is needed: its pages may be given back to the system, and
    /// its bytes may be anything afterwards.
    fn idle(&mut self, slot: usize);
}

/// One socket with its rings.
pub(crate) struct Slot {
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) handle: SocketHandle,
    /// The connection that uses it holds bytes behind a gap, which lie in the unused part of the
    /// receive ring.
    pub(crate) has_gap: bool,
    in_use: bool,
    /// Its pages were written since they were last given back; it stands in the sweep.
    touched: bool,
    /// Its pages were given back before the sweep came to it.
    rested: bool,
    used_at: Instant,
}

impl Slot {
    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn is_empty(&mut self) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.recv_queue() == 0 && socket.send_queue() == 0 && !self.has_gap
    }
}

/// With so many slots in use or fewer, pages are left to the sweep: giving them back costs about
/// 7 µs each time, which a few busy connections need not pay. Chosen.
const BUSY_SLOTS: usize = 64;

/// All slots.
pub(crate) struct Slots {
    arena: Box<dyn Arena + Send>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots with touched pages, with the time to look at each.
    sweep: VecDeque<(Instant, u32)>,
    /// No sweep before this.
    next_turn: Instant,
    idle_after: Duration,
    /// Slots that were touched and not given back.
    busy: usize,
}

impl Slots {
    pub(crate) fn new(arena: Box<dyn Arena + Send>, idle_after: Duration) -> Self {
        Self {
            arena,
            slots: Vec::new(),
            free: Vec::new(),
            sweep: VecDeque::new(),
            next_turn: Instant::default(),
            // A sweep must lie strictly ahead of the moment that arms it.
            idle_after: idle_after.max(IDLE_TURN),
            busy: 0,
        }
    }

    /// A slot whose socket is closed and empty; the one that was given back last, if any.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.make()?,
        };
        let slot = self.slots.get_mut(usize::try_from(index).ok()?)?;
        slot.in_use = true;
        slot.has_gap = false;
        Some(index)
    }

    fn make(&mut self) -> Option<u32> {
        let index = u32::try_from(self.slots.len()).ok()?;
        let rings = self.arena.rings(self.slots.len())?;
        let sizes = [rings.receive.len(), rings.send.len()];
        if sizes
            .iter()
            .any(|size| *size == 0 || *size > MAX_RING_BYTES)
        {
            return None;
        }
        let mut socket = tcp::Socket::new(rings.receive.into_ring(), rings.send.into_ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_congestion_control(tcp::CongestionControl::None);
        socket.set_keep_alive(Some(super::KEEP_ALIVE.into()));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        self.slots.push(Slot {
            sockets,
            handle,
            has_gap: false,
            in_use: false,
            touched: false,
            rested: false,
            used_at: Instant::default(),
        });
        Some(index)
    }

    /// The connection in `index` is over; its bytes are out of reach from here on.
    pub(crate) fn give_back(&mut self, index: u32) {
        let slot = self.get(index);
        slot.in_use = false;
        slot.has_gap = false;
        // `accept` makes it listen, which clears the rings before anything is shown.
        slot.socket().abort();
        self.free.push(index);
    }

    /// The slot of a living connection.
    pub(crate) fn get(&mut self, index: u32) -> &mut Slot {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        // Indices come from `take` only, and slots are never removed.
        &mut self.slots[index]
    }

    /// The rings of `index` are being written.
    pub(crate) fn touch(&mut self, index: u32, now: Instant) {
        let idle_after = self.idle_after;
        let slot = self.get(index);
        slot.used_at = now;
        let was_resting = std::mem::take(&mut slot.rested) || !slot.touched;
        if !slot.touched {
            slot.touched = true;
            self.sweep.push_back((now + idle_after, index));
        }
        self.busy += usize::from(was_resting);
    }

    /// The window of the connection in `index` is closed: if its rings are empty they stay so for
    /// a while. With many slots in use its pages are given back at once, since a thousand stalled
    /// connections must not keep their rings beside the bytes that were taken out of them.
    pub(crate) fn rest(&mut self, index: u32) {
        if self.busy <= BUSY_SLOTS {
            return;
        }
        let slot = self.get(index);
        if slot.touched && !slot.rested && slot.is_empty() {
            slot.rested = true;
            self.busy = self.busy.saturating_sub(1);
            self.arena
                .idle(usize::try_from(index).unwrap_or(usize::MAX));
        }
    }

    /// When there may be pages to give back.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sweep
            .front()
            .map(|(due, _)| (*due).max(self.next_turn))
    }

    /// Gives back the pages of slots that were not used for a while and hold nothing; returns how
    /// many.
    pub(crate) fn sweep(&mut self, now: Instant) -> u64 {
        let mut idled = 0;
        if now < self.next_turn {
            return idled;
        }
        for _ in 0..IDLED_PER_TURN {
            let Some((due, index)) = self.sweep.front().copied() else {
                return idled;
            };
            if due > now {
                return idled;
            }
            self.sweep.pop_front();
            let idle_after = self.idle_after;
            let slot = self.get(index);
            let rested = now.saturating_duration_since(slot.used_at) >= idle_after;
            if rested && (!slot.in_use || slot.is_empty()) {
                slot.touched = false;
                if !std::mem::take(&mut slot.rested) {
                    self.busy = self.busy.saturating_sub(1);
                    self.arena
                        .idle(usize::try_from(index).unwrap_or(usize::MAX));
                    idled += 1;
                }
            } else {
                self.sweep.push_back((now + idle_after, index));
            }
        }
        self.next_turn = now + IDLE_TURN;
        idled
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots")
            .field("slots", &self.slots.len())
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}
