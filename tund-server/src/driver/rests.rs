//! What sockets still have to be read when their flows have expired, a part of it in each turn.

use super::Server;
use super::flows::OriginSlot;
use super::origin::ReadBuffer;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::task::{Context, Poll};
use tund_server_core::registry::Registry;
use tund_session::{FlowId, SessionId};

/// Bytes read of all of them in one turn of the loop: thousands of flows expire with their session
/// at once, and each socket may have megabytes. Chosen: as one flow in its turn.
const REST_TURN_BYTES: usize = 512 * 1024;
/// What asking a socket counts as beside its bytes, as it costs system calls. Chosen: more than a
/// hundred sockets that have nothing are asked in a turn.
const ASKING_BYTES: usize = 4 * 1024;

/// Whose rest it is.
type Name = (SessionId, FlowId);

/// Sockets without a flow that are read on, as long as what they have is held.
#[derive(Default)]
pub(super) struct Rests {
    waiting: BTreeMap<Name, OriginSlot>,
    /// Bytes that may be read in this turn.
    left: usize,
}

impl Rests {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What a flow that has expired has still to be read: what is not read at once is in later turns,
    /// when the flow is gone. A socket that still sends is read at once, as far as there is room: what
    /// its origin has not acknowledged counts as not delivered, and must not go on to be.
    pub(super) fn begin(
        &mut self,
        name: Name,
        slot: &mut OriginSlot,
        registry: &mut Registry,
        buffer: &mut ReadBuffer,
    ) {
        let sends = slot.origin.unsent().is_ok_and(|bytes| bytes > 0);
        let mut all = usize::MAX;
        let left = if sends { &mut all } else { &mut self.left };
        slot.has_rest = !slot.read_rest(name, registry, buffer, left);
        self.count_asking();
    }

    /// Its flow is gone, and its socket is read on.
    pub(super) fn add(&mut self, name: Name, slot: OriginSlot) {
        self.waiting.insert(name, slot);
    }

    /// A new turn of the loop: reads on.
    pub(super) fn read_on(&mut self, registry: &mut Registry, buffer: &mut ReadBuffer) {
        self.left = REST_TURN_BYTES;
        while self.left > 0
            && let Some((name, mut slot)) = self.waiting.pop_first()
        {
            if slot.read_rest(name, registry, buffer, &mut self.left) {
                slot.origin.reset();
            } else {
                self.waiting.insert(name, slot);
            }
            self.count_asking();
        }
    }

    /// C is connected, and its application is given what is held: the rest of that is read before.
    pub(super) fn read_wanted(
        &mut self,
        (id, flow): Name,
        registry: &mut Registry,
        buffer: &mut ReadBuffer,
    ) {
        if self.is_empty() {
            return;
        }
        for name in registry.wanted_by(id, flow) {
            if let Some(mut slot) = self.waiting.remove(&name) {
                // No more than may be held of one key.
                let mut most = usize::MAX;
                slot.read_rest(name, registry, buffer, &mut most);
                slot.origin.reset();
            }
        }
    }

    fn count_asking(&mut self) {
        self.left = self.left.saturating_sub(ASKING_BYTES);
    }
}

impl Server {
    /// What the application does not get of a flow is held: what the socket has still to be read, too.
    pub(super) fn read_rest(&mut self, session: SessionId, flow: FlowId) {
        let name = (session, flow);
        if let Some(slot) = self.origins.get_mut(&name) {
            let (registry, buffer) = (&mut self.registry, &mut self.read_buffer);
            self.rests.begin(name, slot, registry, buffer);
        }
    }
}

impl OriginSlot {
    /// Reads at most `left` bytes for what is held of the flow; true if there is no more to be read,
    /// and then what found no room is counted.
    pub(super) fn read_rest(
        &mut self,
        (session, flow): Name,
        registry: &mut Registry,
        buffer: &mut ReadBuffer,
        left: &mut usize,
    ) -> bool {
        let mut cx = Context::from_waker(&self.waker);
        while !self.is_read_over
            && let Some(room) = registry.room_for_rest(session, flow)
            && room > 0
        {
            if *left == 0 {
                return false;
            }
            let most = room.min(*left);
            let Poll::Ready(read) = self.origin.poll_read(&mut cx, buffer, most) else {
                break;
            };
            let rest = read.ok().filter(|bytes| !bytes.is_empty());
            self.is_read_over = rest.is_none();
            *left = left.saturating_sub(rest.as_ref().map_or(0, Bytes::len));
            registry.add_rest(session, flow, rest.as_deref());
        }
        registry.lose_rest(self.origin.unread().unwrap_or_default());
        true
    }
}
