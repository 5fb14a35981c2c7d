//! What is held of flows that expired, and who is given it.

use super::{ClientKey, Registry, RegistryEvent};
use crate::offers::{Bound, Offers};
use tund_session::wire::frame::CloseCode;
use tund_session::{EndReason, FlowId, Held, Instant, Session, SessionId};

/// Offers may have this part of the memory, and give that up where sessions need it. Chosen: the next
/// connection, which takes them, has to find room for the longest message.
const OFFERS_SHARE: u64 = 4;

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

    /// Flows of whose what is held would be given to this one, were its origin connected now.
    pub fn wanted_by(&self, id: SessionId, flow: FlowId) -> Vec<(SessionId, FlowId)> {
        let wanted = self
            .entries
            .get(&id)
            .and_then(|entry| Some((entry.key, entry.session.wants_held(flow)?)));
        wanted.map_or(Vec::new(), |(key, (hand_off, destination))| {
            self.offers.wanted(key, hand_off, destination)
        })
    }

    /// How much more is to be read of the socket of a flow that has left something; none if nothing.
    pub fn room_for_rest(&self, id: SessionId, flow: FlowId) -> Option<usize> {
        let key = self.offers.key_of((id, flow))?;
        let room = self.offers.room((id, flow), self.bound(key))?;
        Some(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// What that socket had; with none it was at its end.
    pub fn add_rest(&mut self, id: SessionId, flow: FlowId, rest: Option<&[u8]>) {
        match rest {
            Some(bytes) => {
                if let Some(key) = self.offers.key_of((id, flow)) {
                    let bound = self.bound(key);
                    self.offers.append((id, flow), bytes, bound);
                }
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

    /// How much may be held: for a key no more than a buffer. What waits in its sessions ahead of
    /// their origins' bytes was held for it before, and counts as if it still were: else a client
    /// could take and not read, and leave as much again, without end.
    fn bound(&self, key: ClientKey) -> Bound {
        let sessions = self.sessions_of(&key);
        let sessions = sessions.iter().filter_map(|id| self.session(*id));
        let taken: u64 = sessions.map(Session::prologue_bytes).sum();
        Bound {
            of_key: self.config.session.buffer_bytes.saturating_sub(taken),
            of_all: self.free().min(self.config.memory_bytes / OFFERS_SHARE),
        }
    }

    /// A flow has left something. Its driver reads on before it resets the socket.
    pub(super) fn hold(
        &mut self,
        (id, flow): (SessionId, FlowId),
        key: ClientKey,
        held: Held,
        now: Instant,
    ) {
        let bound = self.bound(key);
        self.offers.hold((id, flow), key, held, bound, now);
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
