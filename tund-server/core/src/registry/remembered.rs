//! What is remembered of sessions that are over, and of the streams that their flows left.

use super::{Registry, Tombstone};
use crate::delivery::Delivered;
use std::time::Duration;
use tund_session::Instant;

impl Registry {
    /// How long ends of sessions are remembered from here on; longer than any client keeps bytes.
    pub fn set_retention(&mut self, retain: Duration) {
        self.tombstones.set_retention(retain);
        self.retain = retain;
    }

    /// Forgets of stored streams what has not changed for as long as ends are remembered.
    pub fn forget_deliveries(&mut self, today: Duration) {
        let retain = self.retain.as_secs();
        self.delivered.forget_older(retain, today.as_secs());
    }

    /// Remembers an end that was written down `age` ago, by an earlier start too; the oldest first.
    pub fn restore(&mut self, tombstone: Tombstone, age: Duration, now: Instant) {
        self.tombstones.restore(tombstone, age, now);
    }

    /// The next end that is to be written down, and how long ago it was.
    pub fn poll_tombstone(&mut self, now: Instant) -> Option<(&Tombstone, Duration)> {
        self.tombstones.poll_fresh(now)
    }

    /// All ends that are remembered, oldest first.
    pub fn tombstones(&self, now: Instant) -> impl Iterator<Item = (&Tombstone, Duration)> {
        self.tombstones.all(now)
    }

    /// How many there are.
    pub fn tombstone_count(&self) -> usize {
        self.tombstones.len()
    }

    /// How far stored streams have reached their origins.
    pub fn delivered(&self) -> &Delivered {
        &self.delivered
    }

    /// The same, to be told more.
    pub fn delivered_mut(&mut self) -> &mut Delivered {
        &mut self.delivered
    }
}
