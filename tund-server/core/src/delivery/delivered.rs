//! How far each stored stream has reached its origin, whatever became of its session.

use crate::registry::ClientKey;
use std::collections::{BTreeMap, BTreeSet};
use tund_session::{FlowId, Offset, SessionId};

/// Seconds for which a stream is remembered after its last change: 30 days, longer than any
/// `retain` is meant to be.
pub const KEPT: u64 = 30 * 24 * 60 * 60;
/// Streams of one client that are remembered; the one that changed longest ago is forgotten.
pub const FLOWS_PER_KEY: usize = 10_000;

/// Names a stream: the half of a flow from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredFlow {
    /// Whose.
    pub client: ClientKey,
    /// In which session its bytes were taken.
    pub session: SessionId,
    /// By which flow.
    pub flow: FlowId,
}

/// What is written down of a stream: everything before `offset` was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Of which.
    pub of: StoredFlow,
    /// How far; FIN counts as one.
    pub offset: Offset,
    /// When it came so far, in seconds of the calendar: it outlasts restarts.
    pub at: u64,
}

/// What the origins' TCP has acknowledged, stream by stream.
#[derive(Debug, Default)]
pub struct Delivered {
    clients: BTreeMap<ClientKey, Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    progress: BTreeMap<(SessionId, FlowId), (Offset, u64)>,
    /// By time of the last change.
    order: BTreeSet<(u64, SessionId, FlowId)>,
}

impl Delivered {
    /// How far a stream is known to have come.
    pub fn offset(&self, of: &StoredFlow) -> Offset {
        let streams = self.clients.get(&of.client);
        let known = streams.and_then(|streams| streams.progress.get(&(of.session, of.flow)));
        known.map_or(Offset(0), |(offset, _)| *offset)
    }

    /// Takes news of a stream, from a socket or from what was written down; true if it is news,
    /// and to be written down.
    pub fn note(&mut self, progress: &Progress) -> bool {
        let Progress { of, offset, at } = *progress;
        if offset <= self.offset(&of) {
            return false;
        }
        let streams = self.clients.entry(of.client).or_default();
        let id = (of.session, of.flow);
        if let Some((_, before)) = streams.progress.insert(id, (offset, at)) {
            streams.order.remove(&(before, of.session, of.flow));
        }
        streams.order.insert((at, of.session, of.flow));
        if streams.progress.len() > FLOWS_PER_KEY {
            streams.forget_oldest();
        }
        true
    }

    /// Forgets what has not changed since then.
    pub fn forget_before(&mut self, at: u64) {
        for streams in self.clients.values_mut() {
            while streams.order.first().is_some_and(|(last, ..)| *last < at) {
                streams.forget_oldest();
            }
        }
        self.clients.retain(|_, streams| !streams.order.is_empty());
    }

    /// The streams of one session, for the client that asks for it too late.
    pub fn of_session(
        &self,
        client: &ClientKey,
        session: SessionId,
    ) -> impl Iterator<Item = (FlowId, Offset)> {
        let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
        let streams = self.clients.get(client).into_iter();
        let of_session = streams.flat_map(move |streams| streams.progress.range(range.clone()));
        of_session.map(|((_, flow), (offset, _))| (*flow, *offset))
    }

    /// Everything that is remembered, to be written down afresh.
    pub fn all(&self) -> impl Iterator<Item = Progress> {
        self.clients.iter().flat_map(|(client, streams)| {
            streams
                .progress
                .iter()
                .map(|((session, flow), (offset, at))| Progress {
                    of: StoredFlow {
                        client: *client,
                        session: *session,
                        flow: *flow,
                    },
                    offset: *offset,
                    at: *at,
                })
        })
    }

    /// How many streams are remembered.
    pub fn len(&self) -> usize {
        self.clients.values().map(|s| s.progress.len()).sum()
    }

    /// None is.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

impl Streams {
    fn forget_oldest(&mut self) {
        if let Some((_, session, flow)) = self.order.pop_first() {
            self.progress.remove(&(session, flow));
        }
    }
}
