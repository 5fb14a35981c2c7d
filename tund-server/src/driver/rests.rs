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

    pub(super) fn add(&mut self, name: Name, slot: OriginSlot) {
        self.waiting.insert(name, slot);
    }

    fn count_asking(&mut self) {
        self.left = self.left.saturating_sub(ASKING_BYTES);
    }
}

impl Server {
    /// A flow has expired, and what its application does not get is held: the socket's rest, too.
    /// What is not read at once is in later turns, when the flow is gone.
    pub(super) fn read_rest(&mut self, session: SessionId, flow: FlowId) {
        let name = (session, flow);
        if let Some(slot) = self.origins.get_mut(&name) {
            let (registry, buffer) = (&mut self.registry, &mut self.read_buffer);
            let is_all = slot.read_rest(name, registry, buffer, &mut self.rests.left);
            slot.has_rest = !is_all;
            self.rests.count_asking();
        }
    }

    /// A new turn of the loop: reads on.
    pub(super) fn read_rests(&mut self) {
        self.rests.left = REST_TURN_BYTES;
        while self.rests.left > 0
            && let Some((name, mut slot)) = self.rests.waiting.pop_first()
        {
            let (registry, buffer) = (&mut self.registry, &mut self.read_buffer);
            if slot.read_rest(name, registry, buffer, &mut self.rests.left) {
                slot.origin.reset();
            } else {
                self.rests.waiting.insert(name, slot);
            }
            self.rests.count_asking();
        }
    }

    /// C is connected, and its application is given what is held: the rest of that is read before.
    pub(super) fn read_wanted(&mut self, session: SessionId, flow: FlowId) {
        if self.rests.is_empty() {
            return;
        }
        let session = self.registry.session(session);
        let wanted = session.and_then(|session| session.wants_held(flow));
        let takes = wanted.map_or(Vec::new(), |(hand_off, _)| hand_off.takes.clone());
        for take in takes {
            let name = (take.session, take.flow);
            if let Some(mut slot) = self.rests.waiting.remove(&name) {
                let (registry, buffer) = (&mut self.registry, &mut self.read_buffer);
                // No more than may be held of one key.
                let mut most = usize::MAX;
                slot.read_rest(name, registry, buffer, &mut most);
                slot.origin.reset();
            }
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
