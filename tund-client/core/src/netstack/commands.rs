//! What the owner may do with a connection. A name that means nothing any more does nothing.

use smoltcp::socket::tcp;
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};

use super::answer;
use super::device::{Occasion, Port, Sink, Wire};
use super::event::{AcceptError, ConnectionId, Refusal};
use super::table::{Ending, HeldSyn, Live, Notice, Phase};
use super::window::ReceiveWindow;
use super::{Netstack, to_smoltcp};
use crate::packet::FlowKey;

/// The segment size of a kernel that does not say (RFC 9293 §3.7.1).
const DEFAULT_SEGMENT_V4_BYTES: u16 = 536;
const DEFAULT_SEGMENT_V6_BYTES: u16 = 1220;
/// smoltcp believes no kernel that takes less.
const LEAST_SEGMENT_BYTES: u16 = 48;

/// Takes what is never sent: smoltcp answers no SYN before it is asked for packets.
struct Nowhere;

impl Sink for Nowhere {
    fn packet(&mut self, _bytes: &[u8]) {
        debug_assert!(
            false,
            "smoltcp answers a SYN when it is polled, not at once"
        );
    }
}

impl Netstack {
    /// Answers a held SYN: the application's `connect` succeeds.
    ///
    /// # Errors
    /// If the SYN is not held any more, or the arena is full; then it is still held.
    pub fn accept(&mut self, connection: ConnectionId) -> Result<(), AcceptError> {
        let found = self.table.owned(connection).ok_or(AcceptError::Gone)?;
        let key = found.key;
        let Phase::Held(held) = &found.phase else {
            return Err(AcceptError::Gone);
        };
        let held = held.clone();
        let slot = self.slots.take().ok_or(AcceptError::NoMemory)?;
        let mut live = self.live(slot, &key, &held);
        if !self.feed_syn(&mut live, &key, &held) {
            self.slots.give_back(slot);
            return Err(AcceptError::Gone);
        }
        self.table.enliven(connection.index, live);
        self.stats.accepted += 1;
        self.mark_dirty(connection.index);
        Ok(())
    }

    fn live(&mut self, slot: u32, key: &FlowKey, held: &HeldSyn) -> Live {
        let capacity = self.slots.get(slot).socket().recv_capacity();
        // As smoltcp chooses it: the ring's size must fit into the 16 bits of a window field.
        let bits = usize::BITS - capacity.leading_zeros();
        let own_shift = u8::try_from(bits.saturating_sub(16)).unwrap_or(0);
        let capacity = u64::try_from(capacity).unwrap_or(0);
        let (ip_header_bytes, default) = if key.source().is_ipv4() {
            (20, DEFAULT_SEGMENT_V4_BYTES)
        } else {
            (40, DEFAULT_SEGMENT_V6_BYTES)
        };
        let offered = held
            .offer
            .segment_bytes
            .unwrap_or(default)
            .max(LEAST_SEGMENT_BYTES);
        Live {
            slot,
            wire: Wire {
                window: ReceiveWindow::new(
                    held.segment.sequence,
                    held.offer.window_scale.map_or(0, |_| own_shift),
                    capacity,
                    held.intake_bytes,
                ),
                segment_bytes: offered.min(self.outlet.segment_bytes(ip_header_bytes)),
                isn: None,
            },
            ending: Ending::Open,
            sent: 0,
            drained: Notice::None,
            finished: Notice::None,
            reset_by_app: Notice::None,
            is_over: false,
            acknowledged: 0,
            readable_queued: false,
            writable_queued: false,
            timed_out: false,
            is_stuck: false,
            peer_window: held.offer.window,
            unanswered: 0,
        }
    }

    /// Shows smoltcp the SYN; false if it does not take it.
    fn feed_syn(&mut self, live: &mut Live, key: &FlowKey, held: &HeldSyn) -> bool {
        let slot = self.slots.get(live.slot);
        let destination = IpEndpoint::from(key.destination());
        if slot
            .socket()
            .listen(IpListenEndpoint::from(destination))
            .is_err()
        {
            return false;
        }
        // With offloads, smoltcp must think that segments may be as large as a packet.
        let ip_header_bytes = if key.source().is_ipv4() { 20 } else { 40 };
        let segment_bytes = if self.offload {
            self.outlet.smoltcp_segment_bytes(ip_header_bytes)
        } else {
            live.wire.segment_bytes
        };
        let mut buf = [0; 128];
        let sequence = held.segment.sequence;
        let Some(len) = answer::syn(key, sequence, &held.offer, segment_bytes, &mut buf) else {
            return false;
        };
        let mut port = Port {
            incoming: Some(&buf[..len]),
            occasion: Occasion::Reply,
            wire: &mut live.wire,
            outlet: &mut self.outlet,
            stats: &mut self.stats,
            sink: &mut Nowhere,
        };
        self.interface
            .poll_ingress_single(to_smoltcp(self.now), &mut port, &mut slot.sockets);
        slot.socket().state() == tcp::State::SynReceived
    }

    /// Turns a held SYN down. The owner has forgotten it.
    pub fn refuse(&mut self, connection: ConnectionId, refusal: Refusal) {
        let Some(found) = self.table.owned(connection) else {
            return;
        };
        if let Phase::Held(held) = &mut found.phase {
            held.refusal = Some(refusal);
            self.stats.refused += 1;
            self.mark_dirty(connection.index);
        }
    }

    /// Bytes that `recv` would yield.
    pub fn readable(&mut self, connection: ConnectionId) -> usize {
        self.socket(connection)
            .map_or(0, |socket| socket.recv_queue())
    }

    /// The application has sent FIN; nothing comes behind what `recv` still yields.
    pub fn has_finished(&mut self, connection: ConnectionId) -> bool {
        let live = self.table.owned_live(connection);
        live.is_some_and(|live| live.finished != Notice::None)
    }

    /// Takes up to `max` bytes out of the receive ring, in one or two pieces; returns how many.
    pub fn recv(
        &mut self,
        connection: ConnectionId,
        max: usize,
        mut take: impl FnMut(&[u8]),
    ) -> usize {
        let mut left = max;
        while left > 0
            && let Some(socket) = self.socket(connection)
            && socket.can_recv()
        {
            let piece = socket.recv(|bytes| {
                let count = bytes.len().min(left);
                take(&bytes[..count]);
                (count, count)
            });
            match piece {
                Ok(count) if count > 0 => left -= count,
                Ok(_) | Err(_) => break,
            }
        }
        let count = max - left;
        if count > 0
            && let Some(live) = self.table.owned_live(connection)
        {
            live.wire.window.take(u64::try_from(count).unwrap_or(0));
            let slot = live.slot;
            self.slots.touch(slot, self.now);
            self.mark_dirty(connection.index);
            self.conclude(connection.index);
        }
        count
    }

    /// Lets the application send `bytes` beyond what `recv` has taken. What it was told once it may
    /// send; a smaller number than before only stops the window from growing.
    pub fn set_intake(&mut self, connection: ConnectionId, bytes: u64) {
        let has_grown = match self.table.owned(connection).map(|found| &mut found.phase) {
            Some(Phase::Live(live)) => {
                if bytes == 0 {
                    self.slots.rest(live.slot);
                }
                live.wire.window.let_in(bytes)
            }
            Some(Phase::Held(held)) => {
                held.intake_bytes = bytes;
                false
            }
            None => false,
        };
        if has_grown {
            self.mark_dirty(connection.index);
        }
    }

    /// Puts bytes into the send ring; returns how many it took. Zero before the application has
    /// completed the handshake, and after any end of this direction. `Writable` follows
    /// as the application's kernel acknowledges them.
    pub fn send(&mut self, connection: ConnectionId, bytes: &[u8]) -> usize {
        let Some(live) = self.table.owned_live(connection) else {
            return 0;
        };
        if live.is_over || live.ending != Ending::Open {
            return 0;
        }
        let slot = live.slot;
        let count = self.slots.get(slot).socket().send_slice(bytes).unwrap_or(0);
        live.sent += u64::try_from(count).unwrap_or(0);
        if count > 0 {
            self.slots.touch(slot, self.now);
            self.mark_dirty(connection.index);
        }
        count
    }

    /// How many bytes `send` would take.
    pub fn send_room(&mut self, connection: ConnectionId) -> usize {
        match self.table.owned_live(connection) {
            Some(live) if live.ending == Ending::Open && !live.is_over => {
                let socket = self.slots.get(live.slot).socket();
                if socket.may_send() {
                    socket.send_capacity() - socket.send_queue()
                } else {
                    0
                }
            }
            Some(_) | None => 0,
        }
    }

    /// Bytes that `send` took and the application's kernel has not acknowledged.
    pub fn unsent(&mut self, connection: ConnectionId) -> usize {
        self.socket(connection)
            .map_or(0, |socket| socket.send_queue())
    }

    /// The same of all connections, also of those that the owner has forgotten.
    #[cfg(test)]
    pub(crate) fn unsent_in_all(&mut self) -> u64 {
        self.slots.unsent_in_all()
    }

    /// Ends this direction by FIN, after all that `send` took. The other direction goes on.
    pub fn finish(&mut self, connection: ConnectionId) {
        self.end(connection, Ending::Finish);
    }

    /// Ends both directions by RST as soon as all that `send` took is acknowledged; also after
    /// `finish`.
    pub fn reset_when_drained(&mut self, connection: ConnectionId) {
        self.end(connection, Ending::ResetWhenDrained);
    }

    /// Ends both directions by RST at once, whatever is in the rings. The owner has forgotten the
    /// connection. A held SYN is answered by RST too.
    pub fn reset(&mut self, connection: ConnectionId) {
        self.refuse(connection, Refusal::Reset);
        self.end(connection, Ending::Abandon);
    }

    fn end(&mut self, connection: ConnectionId, ending: Ending) {
        if let Some(live) = self.table.owned_live(connection)
            && live.ending < ending
        {
            live.ending = ending;
            live.drained = Notice::None;
            self.mark_dirty(connection.index);
        }
    }

    fn socket(&mut self, connection: ConnectionId) -> Option<&mut tcp::Socket<'static>> {
        let slot = self.table.owned_live(connection)?.slot;
        Some(self.slots.get(slot).socket())
    }
}
