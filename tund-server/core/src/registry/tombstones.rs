//! How sessions ended, as long as it is worth telling who asks for them, also after a restart.

use super::{ClientKey, OFFSETS, OFFSETS_OF_ONE, TOMBSTONES, TOMBSTONES_PER_KEY};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, RejectReason};
use tund_session::{EndReason, FlowId, Instant, Offset, SessionId};

/// How a session ended, as far as its client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its last flow's grace was over.
    Expired,
    /// The same client has begun another one.
    Superseded,
    /// This side ended it for another reason.
    Ended,
}

impl End {
    /// None where nobody is left who could ask, as far as this end knows.
    const fn of(reason: EndReason) -> Option<Self> {
        match reason {
            EndReason::Expired => Some(Self::Expired),
            EndReason::Local(CloseCode::Superseded) => Some(Self::Superseded),
            EndReason::Local(_) | EndReason::Violation { .. } => Some(Self::Ended),
            EndReason::Peer(_) | EndReason::Rejected(_) | EndReason::Abandoned => None,
        }
    }

    /// What RESUME is answered.
    pub(super) const fn told(self) -> RejectReason {
        match self {
            Self::Expired => RejectReason::Expired,
            Self::Superseded => RejectReason::Superseded,
            Self::Ended => RejectReason::Ended,
        }
    }
}

/// What is remembered of a session that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub key: ClientKey,
    /// How.
    pub end: End,
    /// Of each flow whose bytes its client may keep for later: how far they were handed on; at
    /// most [`OFFSETS_OF_ONE`] once it is kept.
    pub released: Vec<(FlowId, Offset)>,
}

#[derive(Debug)]
struct Kept {
    tombstone: Tombstone,
    /// Its place in `order`.
    number: u64,
    ended_at: Age,
}

/// When a session ended: `age` before `at`. A restart may be younger than what it remembers.
#[derive(Clone, Copy, Debug)]
struct Age {
    at: Instant,
    age: Duration,
}

impl Age {
    fn at(self, now: Instant) -> Duration {
        self.age
            .saturating_add(now.saturating_duration_since(self.at))
    }
}

/// Ends of sessions: at most [`TOMBSTONES`] in all and [`TOMBSTONES_PER_KEY`] of one key, where the
/// oldest goes first. [`OFFSETS`] bounds what they hold: there the oldest goes of the key that holds
/// the most. So no client makes others' be forgotten.
#[derive(Debug)]
pub(super) struct Tombstones {
    retain: Duration,
    kept: BTreeMap<SessionId, Kept>,
    /// Oldest first.
    order: BTreeMap<u64, SessionId>,
    of_key: BTreeSet<(ClientKey, u64)>,
    /// Σ of offsets held.
    offsets: usize,
    /// The same of each key that holds any.
    offsets_of: BTreeMap<ClientKey, usize>,
    next: u64,
    /// Not yet handed out to be written down; at most [`TOMBSTONES`].
    fresh: VecDeque<SessionId>,
}

impl Tombstones {
    pub(super) fn new(retain: Duration) -> Self {
        Self {
            retain,
            kept: BTreeMap::new(),
            order: BTreeMap::new(),
            of_key: BTreeSet::new(),
            offsets: 0,
            offsets_of: BTreeMap::new(),
            next: 0,
            fresh: VecDeque::new(),
        }
    }

    pub(super) fn set_retention(&mut self, retain: Duration) {
        self.retain = retain;
    }

    /// A session of `key` has ended just now.
    pub(super) fn add(
        &mut self,
        (session, key): (SessionId, ClientKey),
        reason: EndReason,
        released: &[(FlowId, Offset)],
        now: Instant,
    ) {
        let Some(end) = End::of(reason) else { return };
        let released = match end {
            End::Expired => released.to_vec(),
            End::Superseded | End::Ended => Vec::new(),
        };
        let tombstone = Tombstone {
            session,
            key,
            end,
            released,
        };
        if self.keep(tombstone, Duration::ZERO, now) {
            self.fresh.push_back(session);
            if self.fresh.len() > TOMBSTONES {
                self.fresh.pop_front();
            }
        }
    }

    /// One that was written down; they come oldest first.
    pub(super) fn restore(&mut self, tombstone: Tombstone, age: Duration, now: Instant) {
        self.keep(tombstone, age, now);
    }

    fn keep(&mut self, mut tombstone: Tombstone, age: Duration, now: Instant) -> bool {
        let (session, key) = (tombstone.session, tombstone.key);
        if age >= self.retain || self.kept.contains_key(&session) {
            return false;
        }
        tombstone.released.truncate(OFFSETS_OF_ONE);
        let number = self.next;
        self.next += 1;
        let offsets = tombstone.released.len();
        self.offsets += offsets;
        *self.offsets_of.entry(key).or_default() += offsets;
        self.order.insert(number, session);
        self.of_key.insert((key, number));
        let ended_at = Age { at: now, age };
        let kept = Kept {
            tombstone,
            number,
            ended_at,
        };
        self.kept.insert(session, kept);
        let of_key = (key, 0)..=(key, u64::MAX);
        if self.of_key.range(of_key.clone()).count() > TOMBSTONES_PER_KEY
            && let Some((_, oldest)) = self.of_key.range(of_key).next().copied()
        {
            self.forget(oldest);
        }
        self.forget_old(now);
        while self.kept.len() > TOMBSTONES
            && let Some((oldest, _)) = self.order.first_key_value()
        {
            let oldest = *oldest;
            self.forget(oldest);
        }
        while self.offsets > OFFSETS
            && let Some(oldest) = self.oldest_of_the_heaviest(number)
        {
            self.forget(oldest);
        }
        true
    }

    /// Of the key that holds the most offsets, not counting what has just come, the oldest end that
    /// holds any.
    fn oldest_of_the_heaviest(&self, newest: u64) -> Option<u64> {
        let of = |number: u64| self.kept.get(self.order.get(&number)?);
        let new = of(newest)?;
        let (new_key, new_offsets) = (new.tombstone.key, new.tombstone.released.len());
        let weights = self.offsets_of.iter().map(|(key, offsets)| {
            let beside = if *key == new_key { new_offsets } else { 0 };
            (offsets.saturating_sub(beside), *key)
        });
        let (_, key) = weights.max()?;
        let mut numbers = self.of_key.range((key, 0)..=(key, u64::MAX));
        let holds = |number: u64| of(number).is_some_and(|k| !k.tombstone.released.is_empty());
        let oldest = numbers.find(|(_, number)| *number != newest && holds(*number));
        oldest.map(|(_, number)| *number)
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((oldest, session)) = self.order.first_key_value()
            && let Some(kept) = self.kept.get(session)
            && kept.ended_at.at(now) >= self.retain
        {
            let oldest = *oldest;
            self.forget(oldest);
        }
    }

    fn forget(&mut self, number: u64) {
        if let Some(session) = self.order.remove(&number)
            && let Some(kept) = self.kept.remove(&session)
        {
            let (key, offsets) = (kept.tombstone.key, kept.tombstone.released.len());
            self.of_key.remove(&(key, number));
            self.offsets -= offsets;
            if let Some(of_key) = self.offsets_of.get_mut(&key) {
                *of_key -= offsets;
                if *of_key == 0 {
                    self.offsets_of.remove(&key);
                }
            }
            debug_assert_eq!(kept.number, number, "one place each");
        }
    }

    /// What is known of `session`; nobody learns anything of another key's.
    pub(super) fn of(&self, session: SessionId, key: ClientKey) -> Option<&Tombstone> {
        let kept = self.kept.get(&session)?;
        (kept.tombstone.key == key).then_some(&kept.tombstone)
    }

    /// How far the flows of a session came that has ended; nothing if that is forgotten.
    pub(super) fn released(&self, session: SessionId) -> &[(FlowId, Offset)] {
        let kept = self.kept.get(&session);
        kept.map_or(&[], |kept| &kept.tombstone.released)
    }

    /// The next one to be written down, with its age.
    pub(super) fn poll_fresh(&mut self, now: Instant) -> Option<(&Tombstone, Duration)> {
        loop {
            let session = self.fresh.pop_front()?;
            if self.kept.contains_key(&session) {
                let kept = self.kept.get(&session)?;
                return Some((&kept.tombstone, kept.ended_at.at(now)));
            }
        }
    }

    /// All, oldest first, each with its age.
    pub(super) fn all(&self, now: Instant) -> impl Iterator<Item = (&Tombstone, Duration)> {
        let kept = self.order.values().filter_map(|id| self.kept.get(id));
        kept.map(move |kept| (&kept.tombstone, kept.ended_at.at(now)))
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}
