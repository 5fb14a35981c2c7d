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
    /// It stands in the line of busy slots.
    in_line: bool,
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

/// With so many busy slots or fewer, pages are left to the sweep: giving them back costs about
/// 7 µs each time, which a few busy connections need not pay. Beyond it, those that are empty give
/// theirs back at once: a thousand connections that write 64 KiB each within a moment must not
/// leave 64 MiB in rings beside the same bytes in the session. Chosen.
const BUSY_SLOTS: usize = 64;
/// Busy slots that are looked at when another one becomes busy: more than one, so that their
/// number sinks again once they are empty.
const LOOKS: usize = 4;

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
    /// All of these, in the order in which they became so, and some that are no more; each once.
    line: VecDeque<u32>,
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
            line: VecDeque::new(),
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
            in_line: false,
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

    /// Bytes in the send rings of slots in use.
    #[cfg(test)]
    pub(crate) fn unsent_in_all(&mut self) -> u64 {
        let used = self.slots.iter_mut().filter(|slot| slot.in_use);
        used.map(|slot| u64::try_from(slot.socket().send_queue()).unwrap())
            .sum()
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
        if was_resting {
            self.busy += 1;
            if !std::mem::replace(&mut self.get(index).in_line, true) {
                self.line.push_back(index);
            }
            self.make_room();
        }
    }

    /// Gives back the pages of empty slots while too many are busy, those first that have been busy
    /// for longest.
    fn make_room(&mut self) {
        for _ in 0..LOOKS {
            if self.busy <= BUSY_SLOTS {
                return;
            }
            let Some(index) = self.line.pop_front() else {
                return;
            };
            let slot = self.get(index);
            slot.in_line = false;
            if slot.touched && !slot.rested && !self.give_pages_back(index) {
                self.get(index).in_line = true;
                self.line.push_back(index);
            }
        }
    }

    /// Gives the pages of a busy slot back, if nothing is in them.
    fn give_pages_back(&mut self, index: u32) -> bool {
        let slot = self.get(index);
        if slot.in_use && !slot.is_empty() {
            return false;
        }
        slot.rested = true;
        self.busy = self.busy.saturating_sub(1);
        self.arena
            .idle(usize::try_from(index).unwrap_or(usize::MAX));
        true
    }

    /// The window of the connection in `index` is closed: if its rings are empty they stay so for
    /// a while. With many slots in use its pages are given back at once, since a thousand stalled
    /// connections must not keep their rings beside the bytes that were taken out of them.
    pub(crate) fn rest(&mut self, index: u32) {
        if self.busy <= BUSY_SLOTS {
            return;
        }
        let slot = self.get(index);
        if slot.touched && !slot.rested {
            self.give_pages_back(index);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts how often pages were given back.
    struct Counting(Arc<AtomicUsize>);

    impl Arena for Counting {
        fn rings(&mut self, _slot: usize) -> Option<Rings> {
            Some(Rings {
                receive: RingMemory::Owned(vec![0; 16]),
                send: RingMemory::Owned(vec![0; 16]),
            })
        }

        fn idle(&mut self, _slot: usize) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// 1,000 slots that were all written in one moment; the first `kept` still hold something.
    fn burst(kept: u32) -> (Slots, Arc<AtomicUsize>) {
        let idled = Arc::new(AtomicUsize::new(0));
        let arena = Box::new(Counting(Arc::clone(&idled)));
        let mut slots = Slots::new(arena, Duration::from_secs(2));
        for index in 0..1000 {
            assert_eq!(slots.take(), Some(index));
            slots.get(index).has_gap = index < kept;
            slots.touch(index, Instant::default());
        }
        (slots, idled)
    }

    #[test]
    fn a_burst_over_many_connections_keeps_the_pages_of_few() {
        let (mut slots, idled) = burst(0);
        assert_eq!(idled.load(Ordering::Relaxed), 1000 - BUSY_SLOTS);

        // Nothing is counted twice, however often a slot becomes busy and rests.
        for index in (0..1000).chain(0..1000) {
            slots.touch(index, Instant::default());
        }
        assert_eq!(slots.busy, BUSY_SLOTS);
        assert!(slots.line.len() <= 1000, "{}", slots.line.len());
        let mut now = Instant::default();
        for _ in 0..100 {
            now = now + Duration::from_secs(3);
            slots.sweep(now);
        }
        assert_eq!(slots.busy, 0);
    }

    #[test]
    fn a_burst_gives_back_no_pages_that_hold_something() {
        let (mut slots, idled) = burst(500);
        assert!((0..500).all(|index| !slots.get(index).rested));
        assert!(idled.load(Ordering::Relaxed) > 250);

        for index in 0..500 {
            slots.get(index).has_gap = false;
        }
        for index in 500..1000 {
            slots.touch(index, Instant::default());
        }
        assert_eq!(slots.busy, BUSY_SLOTS);
    }

    #[test]
    fn a_few_busy_connections_keep_their_pages() {
        let idled = Arc::new(AtomicUsize::new(0));
        let arena = Box::new(Counting(Arc::clone(&idled)));
        let mut slots = Slots::new(arena, Duration::from_secs(2));
        for index in 0..u32::try_from(BUSY_SLOTS).unwrap() {
            slots.take();
            slots.touch(index, Instant::default());
            slots.rest(index);
        }
        assert_eq!(idled.load(Ordering::Relaxed), 0);
    }
}
