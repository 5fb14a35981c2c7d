//! How sessions ended, as long as it is worth telling who asks for them.

use super::{ClientKey, TOMBSTONES};
use std::collections::{BTreeMap, VecDeque};
use tund_session::wire::frame::{CloseCode, RejectReason};
use tund_session::{EndReason, SessionId};

/// Ends that differ from what is said of a session that never was.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    reasons: BTreeMap<SessionId, (ClientKey, RejectReason)>,
    /// Oldest first.
    order: VecDeque<SessionId>,
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
        if self.reasons.insert(id, (key, reason)).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > TOMBSTONES
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
        }
    }

    /// What to tell `key` about `id`; nobody learns anything of another key's session.
    pub(super) fn reason(&self, id: SessionId, key: ClientKey) -> RejectReason {
        match self.reasons.get(&id) {
            Some((of, reason)) if *of == key => *reason,
            Some(_) | None => RejectReason::Ended,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len().max(self.reasons.len())
    }
}
