//! How sessions ended, as long as it is worth telling who asks for them.

use super::{ClientKey, TOMBSTONES, TOMBSTONES_PER_KEY};
use std::collections::{BTreeMap, BTreeSet};
use tund_session::wire::frame::{CloseCode, RejectReason};
use tund_session::{EndReason, SessionId};

/// How one session ended.
#[derive(Debug)]
struct Tombstone {
    key: ClientKey,
    reason: RejectReason,
    /// Its place in the order of ends.
    place: u64,
}

/// Ends that differ from what is said of a session that never was.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    ended: BTreeMap<SessionId, Tombstone>,
    /// Oldest first.
    order: BTreeMap<u64, SessionId>,
    /// The same of each key, so that no client makes the server forget what it owes to others.
    keys: BTreeMap<ClientKey, BTreeSet<u64>>,
    /// The last place given.
    last: u64,
}

impl Tombstones {
    pub(super) fn add(&mut self, id: SessionId, key: ClientKey, reason: EndReason) {
        let reason = match reason {
            EndReason::Expired => RejectReason::Expired,
            EndReason::Local(CloseCode::Superseded) => RejectReason::Superseded,
            EndReason::Local(_)
            | EndReason::Peer(_)
            | EndReason::Rejected(_)
            | EndReason::Abandoned
            | EndReason::Violation { .. } => return,
        };
        self.last += 1;
        let place = self.last;
        let tombstone = Tombstone { key, reason, place };
        if let Some(before) = self.ended.insert(id, tombstone) {
            self.forget_place(before.key, before.place);
        }
        self.order.insert(place, id);
        let of_key = self.keys.entry(key).or_default();
        of_key.insert(place);
        if of_key.len() > TOMBSTONES_PER_KEY {
            let oldest = of_key.first().copied();
            self.forget(oldest);
        }
        if self.order.len() > TOMBSTONES {
            let oldest = self.order.first_key_value().map(|(place, _)| *place);
            self.forget(oldest);
        }
    }

    fn forget(&mut self, place: Option<u64>) {
        let id = place.and_then(|place| self.order.get(&place));
        if let Some(tombstone) = id.copied().and_then(|id| self.ended.remove(&id)) {
            self.forget_place(tombstone.key, tombstone.place);
        }
    }

    fn forget_place(&mut self, key: ClientKey, place: u64) {
        self.order.remove(&place);
        if let Some(of_key) = self.keys.get_mut(&key) {
            of_key.remove(&place);
            if of_key.is_empty() {
                self.keys.remove(&key);
            }
        }
    }

    /// What to tell `key` about `id`; nobody learns anything of another key's session.
    pub(super) fn reason(&self, id: SessionId, key: ClientKey) -> RejectReason {
        match self.ended.get(&id) {
            Some(of) if of.key == key => of.reason,
            Some(_) | None => RejectReason::Ended,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let of_keys = self.keys.values().map(BTreeSet::len).sum();
        assert!(self.keys.len() <= of_keys);
        self.order.len().max(self.ended.len()).max(of_keys)
    }
}
