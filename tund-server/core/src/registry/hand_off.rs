//! What is held of flows that expired, and who is given it.

use super::{ClientKey, Registry, RegistryEvent};
use crate::offers::Offers;
use tund_session::wire::frame::CloseCode;
use tund_session::{EndReason, FlowId, Held, Instant, SessionId};

impl Registry {
    /// C is connected: the application gets what is held for it, then what C says.
    pub fn accept_flow(&mut self, id: SessionId, flow: FlowId, now: Instant) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let wanted = entry.session.wants_held(flow);
        let prologue = wanted
            .map(|(hand_off, destination)| self.offers.take(entry.key, hand_off, destination));
        let prologue = prologue.unwrap_or_default();
        // What was held is the session's now, and does not make room for more.
        let given = prologue.iter().map(|piece| piece.len()).sum::<usize>();
        let given = u64::try_from(given).unwrap_or(u64::MAX);
        let free = self.free().saturating_sub(given);
        self.with(id, now, |session| {
            session.set_growth_bound(free / 2);
            session.accept_flow_after(flow, prologue, now);
        });
    }

    /// How much more is to be read of the socket of a flow that has left something; none if nothing.
    pub fn room_for_rest(&self, id: SessionId, flow: FlowId) -> Option<usize> {
        let room = self.offers.room((id, flow))?;
        Some(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// What that socket had; with none it was at its end.
    pub fn add_rest(&mut self, id: SessionId, flow: FlowId, rest: Option<&[u8]>) {
        match rest {
            Some(bytes) => {
                let most = self.most_held();
                self.offers.append((id, flow), bytes, most);
            }
            None => self.offers.finish((id, flow)),
        }
    }

    /// So many bytes of such a socket found no room.
    pub fn lose_rest(&mut self, bytes: usize) {
        self.offers
            .lose_unread(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// What is held, for `status`.
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// What all offers may have together: sessions go first.
    fn most_held(&self) -> u64 {
        self.config.memory_bytes.saturating_sub(self.lent)
    }

    /// A flow has left something. Its driver reads on before it resets the socket.
    pub(super) fn hold(
        &mut self,
        (id, flow): (SessionId, FlowId),
        key: ClientKey,
        held: Held,
        now: Instant,
    ) {
        let most = self.most_held();
        self.offers.hold((id, flow), key, held, most, now);
        self.events
            .push_back(RegistryEvent::Held { session: id, flow });
    }

    /// A session has ended: by a wish, and then nothing is held for its key.
    pub(super) fn end_offers(&mut self, key: ClientKey, reason: EndReason) {
        let is_wished = matches!(
            reason,
            EndReason::Peer(CloseCode::Asked)
                | EndReason::Local(CloseCode::Asked | CloseCode::KeyRemoved)
        );
        if is_wished {
            self.offers.erase_key(key);
        }
    }
}
