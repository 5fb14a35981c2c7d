//! How far each stored stream has reached its origin, whatever became of its session.

use crate::registry::ClientKey;
use bytes::{Buf as _, BufMut as _};
use std::collections::{BTreeMap, BTreeSet};
use tund_session::{FlowId, Offset, SessionId};

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

/// No clock that goes right has shown less since this was written, in seconds of the calendar: 2020.
pub(super) const EARLIEST: u64 = 1_577_836_800;

/// The only layout so far: version, key, session, flow, offset, time. Numbers are little-endian.
const VERSION: u8 = 1;
const LENGTH: usize = 1 + 32 + 16 + 8 + 8 + 8;

impl Progress {
    /// To be written down.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.put_u8(VERSION);
        bytes.put_slice(&self.of.client.0);
        bytes.put_slice(&self.of.session.0);
        bytes.put_u64_le(self.of.flow.0);
        bytes.put_u64_le(self.offset.0);
        bytes.put_u64_le(self.at);
        bytes
    }

    /// The same read again; none where the bytes are of another version, or damaged.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LENGTH || bytes.get_u8() != VERSION {
            return None;
        }
        let (mut key, mut session) = ([0; 32], [0; 16]);
        bytes.copy_to_slice(&mut key);
        bytes.copy_to_slice(&mut session);
        Some(Self {
            of: StoredFlow {
                client: ClientKey(key),
                session: SessionId(session),
                flow: FlowId(bytes.get_u64_le()),
            },
            offset: Offset(bytes.get_u64_le()),
            at: bytes.get_u64_le(),
        })
    }
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

    /// Takes what an earlier start has written down. A time before there could be any, or still to
    /// come, was told by a clock that went wrong: of the two, forgetting too late costs less, so it
    /// counts as `today`, in seconds of the calendar.
    pub fn restore(&mut self, progress: &Progress, today: u64) {
        let is_believed = (EARLIEST..=today).contains(&progress.at);
        let at = if is_believed { progress.at } else { today };
        self.note(&Progress { at, ..*progress });
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
        if let Some((_, before)) = streams.progress.remove(&id) {
            streams.order.remove(&(before, of.session, of.flow));
        } else if streams.progress.len() >= FLOWS_PER_KEY {
            // Before this one is among them: with a clock that went back it would be the oldest.
            streams.forget_oldest();
        }
        streams.progress.insert(id, (offset, at));
        streams.order.insert((at, of.session, of.flow));
        true
    }

    /// Forgets what has not changed for so long before `today`, both in seconds. A clock that is far
    /// ahead must not make all be forgotten: the newest change says what it may be at most.
    pub fn forget_older(&mut self, retain: u64, today: u64) {
        let newest = self.clients.values().filter_map(|s| s.order.last());
        let newest = newest.map(|(at, ..)| *at).max().unwrap_or(today);
        let at = newest.min(today).saturating_sub(retain);
        for streams in self.clients.values_mut() {
            while streams.order.first().is_some_and(|(last, ..)| *last < at) {
                streams.forget_oldest();
            }
        }
        self.clients.retain(|_, streams| !streams.order.is_empty());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            of: StoredFlow {
                client: ClientKey([9; 32]),
                session: SessionId([7; 16]),
                flow: FlowId(3),
            },
            offset: Offset(1 << 40),
            at: 0x0102,
        }
    }

    #[test]
    fn the_layout_is_what_older_files_have() {
        let mut expected = vec![1];
        expected.extend([9; 32]);
        expected.extend([7; 16]);
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 1, 0, 0]);
        expected.extend([2, 1, 0, 0, 0, 0, 0, 0]);

        assert_eq!(progress().encode(), expected);
        assert_eq!(Progress::decode(&expected), Some(progress()));
    }

    #[test]
    fn bytes_that_are_no_progress_are_none() {
        let bytes = progress().encode();
        for len in 0..bytes.len() {
            assert_eq!(Progress::decode(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(Progress::decode(&[&bytes[..], &[0]].concat()), None);
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(Progress::decode(&other), None);
    }
}
