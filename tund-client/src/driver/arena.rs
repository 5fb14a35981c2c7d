//! The rings of connection A in memory that the kernel lends: the arena as the netstack asks for it.

use crate::sys::arena::{Arena, SlotLayout};
use crate::sys::error::SystemError;
use tund_client_core::netstack::{
    Arena as Memory, RECEIVE_RING_BYTES, RingMemory, Rings, SEND_RING_BYTES,
};

/// Slots of the netstack.
#[derive(Debug)]
pub(super) struct Slots(Arena);

impl Slots {
    /// Address space for so many slots; memory only where it is used.
    pub(super) fn reserve(slots: usize) -> Result<Self, SystemError> {
        let layout = SlotLayout {
            receive_bytes: RECEIVE_RING_BYTES,
            send_bytes: SEND_RING_BYTES,
        };
        Arena::reserve(layout, slots).map(Self)
    }
}

impl Memory for Slots {
    fn rings(&mut self, slot: usize) -> Option<Rings> {
        let memory = self.0.rings(slot)?;
        Some(Rings {
            receive: RingMemory::Lent(memory.receive),
            send: RingMemory::Lent(memory.send),
        })
    }

    fn idle(&mut self, slot: usize) {
        self.0.idle(slot);
    }
}
