//! Shares of one direction's buffer: a floor for every possible flow, and one pool for growth.

use crate::limits;

/// The memory of one direction of a session (rule 6).
///
/// The buffer is `max_flows × floor` plus the pool. A flow may always hold its floor and takes
/// more from the pool only; floors of flows not yet opened are never lent. The sum of what all
/// flows hold never exceeds the buffer (INV-5).
#[derive(Debug)]
pub(crate) struct Budget {
    floor: u64,
    pool: u64,
    /// An outer bound on the pool: the daemon's memory is shared with other sessions.
    bound: u64,
    /// Σ over flows of what they hold beyond their floor.
    lent: u64,
}

/// What one flow holds of a [`Budget`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share(u64);

impl Share {
    /// Bytes held.
    pub(crate) fn held(self) -> u64 {
        self.0
    }
}

impl Budget {
    pub(crate) fn new(buffer: u64, max_flows: u64) -> Self {
        let floor = floor_bytes(buffer, max_flows);
        Self {
            floor,
            pool: buffer.saturating_sub(floor.saturating_mul(max_flows)),
            bound: u64::MAX,
            lent: 0,
        }
    }

    pub(crate) fn set_bound(&mut self, bytes: u64) {
        self.bound = bytes;
    }

    /// What is left of the pool.
    pub(crate) fn free(&self) -> u64 {
        self.pool.min(self.bound).saturating_sub(self.lent)
    }

    /// What a flow that grows without draining may hold: its floor, and what is left of the pool
    /// up to a part that is set aside.
    pub(crate) fn spare(&self, share: Share) -> u64 {
        let set_aside = self.pool / limits::GROWING_SHARE;
        share.0.max(self.floor) + self.free().saturating_sub(set_aside)
    }

    /// Bytes lent out of the pool.
    pub(crate) fn lent(&self) -> u64 {
        self.lent
    }

    /// What a new flow may hold at once.
    pub(crate) fn initial(&self) -> u64 {
        let free = self.free();
        let wish = if free >= self.pool / 2 {
            limits::INITIAL_SHARE
        } else {
            limits::INITIAL_SHARE_SCARCE
        };
        self.floor.max(wish.min(free / 16))
    }

    /// A flow could hold so much, if no other held anything.
    pub(crate) fn could_hold(&self, bytes: u64) -> bool {
        bytes <= self.floor + self.pool
    }

    /// Takes `bytes` for a flow that holds nothing yet, all or nothing.
    pub(crate) fn reserve(&mut self, share: &mut Share, bytes: u64) -> bool {
        let has_room = self.resize(share, bytes) >= bytes;
        if !has_room {
            self.resize(share, 0);
        }
        has_room
    }

    /// Grows or shrinks a share; growth stops where floor and pool end. Returns what it holds then.
    pub(crate) fn resize(&mut self, share: &mut Share, wanted: u64) -> u64 {
        let beyond = share.0.saturating_sub(self.floor);
        let wanted_beyond = wanted.saturating_sub(self.floor);
        let granted = if wanted_beyond > beyond {
            beyond + (wanted_beyond - beyond).min(self.free())
        } else {
            wanted_beyond
        };
        self.lent = self.lent - beyond + granted;
        share.0 = if granted > 0 {
            self.floor + granted
        } else {
            wanted.min(self.floor)
        };
        share.0
    }
}

/// The floor of one flow: the floors of all take at most 1/32 of the buffer; at least 1.
pub(crate) fn floor_bytes(buffer: u64, max_flows: u64) -> u64 {
    (buffer / limits::FLOOR_SHARE / max_flows.max(1)).clamp(1, limits::FLOOR_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hog_leaves_every_floor() {
        let mut budget = Budget::new(1000, 10);
        let floor = floor_bytes(1000, 10);
        let mut hog = Share::default();
        let mut late = Share::default();

        let held = budget.resize(&mut hog, 5000);
        let rest = budget.resize(&mut late, 5000);

        assert_eq!(held, 1000 - 9 * floor);
        assert_eq!(rest, floor);
    }

    #[test]
    fn what_is_reserved_is_all_or_nothing() {
        let mut budget = Budget::new(1000, 10);
        let (mut one, mut two) = (Share::default(), Share::default());

        assert!(budget.reserve(&mut one, 600));
        assert!(!budget.reserve(&mut two, 600));

        assert_eq!((one.held(), two.held()), (600, 0));
        assert!(budget.could_hold(700));
        assert!(!budget.could_hold(1001));
    }

    #[test]
    fn what_shrinks_can_be_lent_again() {
        let mut budget = Budget::new(1 << 20, 16);
        let mut one = Share::default();
        budget.resize(&mut one, 1 << 20);
        let free = budget.free();

        budget.resize(&mut one, 0);

        assert_eq!(free, 0);
        assert_eq!(one.held(), 0);
        assert_eq!(budget.lent(), 0);
    }
}
