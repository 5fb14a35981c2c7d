//! Flows that wait for their turn to be connected, and how many refusals are told one by one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;
use tund_session::wire::frame::Open;
use tund_session::{FlowId, Instant, SessionId};

/// Origins connected to in one turn of the loop, about 50 µs each: a client that asks for thousands
/// at once must not silence the links of the others.
const OPENS_PER_TURN: usize = 64;
/// Refused origins that are told one by one in a minute; the others are counted.
const DENIALS_TOLD: u32 = 60;
/// That minute.
const DENIALS_PERIOD: Duration = Duration::from_secs(60);

/// A flow that waits to be connected.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) open: Open,
    /// From where the link came that asked for it.
    pub(super) source: Option<SocketAddr>,
}

/// Flows that wait for their turn to be connected: at most as many as all sessions may have.
#[derive(Debug, Default)]
pub(super) struct Opens {
    queue: BTreeMap<(SessionId, FlowId), Asked>,
    /// The session that had its turn last.
    last: Option<SessionId>,
    /// Connected in this turn of the loop.
    served: usize,
}

impl Opens {
    /// A new turn of the loop.
    pub(super) fn next_turn(&mut self) {
        self.served = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn ask(&mut self, session: SessionId, asked: Asked) {
        self.queue.insert((session, asked.open.flow), asked);
    }

    pub(super) fn forget(&mut self, session: SessionId, flow: FlowId) {
        self.queue.remove(&(session, flow));
    }

    /// The next flow to be connected in this turn: the oldest of the next session in a circle.
    pub(super) fn next(&mut self) -> Option<(SessionId, Asked)> {
        if self.served >= OPENS_PER_TURN {
            return None;
        }
        let behind = self.last.and_then(|last| {
            let from = Bound::Excluded((last, FlowId(u64::MAX)));
            self.queue.range((from, Bound::Unbounded)).next()
        });
        let key = *behind.or_else(|| self.queue.first_key_value())?.0;
        self.served += 1;
        self.last = Some(key.0);
        self.queue.remove(&key).map(|asked| (key.0, asked))
    }

    pub(super) fn forget_session(&mut self, session: SessionId) {
        let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
        let waiting: Vec<_> = self.queue.range(range).map(|(key, _)| *key).collect();
        for key in waiting {
            self.queue.remove(&key);
        }
    }
}

/// How many refused origins were told of late.
#[derive(Debug, Default)]
pub(super) struct Denials {
    told: u32,
    since: Instant,
}

impl Denials {
    /// Whether one more may be told.
    pub(super) fn may_tell(&mut self, now: Instant) -> bool {
        if self.since + DENIALS_PERIOD <= now {
            (self.told, self.since) = (0, now);
        }
        self.told = self.told.saturating_add(1);
        self.told <= DENIALS_TOLD
    }
}
