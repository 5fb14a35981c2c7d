//! The files for one destination: the oldest first, one at a time, with pauses behind failures.

use super::{Dead, FileId, FileState, Spool};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::Instant;

/// The pause behind a first failure; doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(5 * 60);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(60 * 60);

/// What there is no room for, or does not move, for so long has failed: new connections to its
/// destination wait no longer. Chosen: the longest message passes at 28 kbit/s.
pub(super) const STALLED_AFTER: Duration = PAUSE_FIRST;

/// What waits for one destination.
#[derive(Debug)]
pub(super) struct Lane {
    /// In the order in which they were stored.
    files: BTreeSet<FileId>,
    turn: Turn,
    /// The last pause; zero behind a success.
    pause: Duration,
    /// Since when there has been no room for it.
    postponed_since: Option<Instant>,
    /// It failed because nothing of it moved: that the origin answers others proves nothing.
    has_stalled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// One of its files is being delivered.
    Busy,
    /// It is in the queue of those that may begin.
    Ready,
    /// There was no room for it; it is tried again then.
    Postponed(Instant),
    /// It failed, and is tried again then.
    Resting(Instant),
}

impl Turn {
    /// When a lane goes on that may not begin yet.
    const fn paused_until(self) -> Option<Instant> {
        match self {
            Self::Busy | Self::Ready => None,
            Self::Postponed(at) | Self::Resting(at) => Some(at),
        }
    }
}

impl Spool {
    /// A file waits for delivery.
    pub(super) fn line_up(&mut self, id: FileId) {
        let Some(file) = self.files.get(&id) else {
            return;
        };
        let destination = file.head.destination;
        let ready = &mut self.ready;
        let lane = self.lanes.entry(destination).or_insert_with(|| {
            ready.push_back(destination);
            Lane {
                files: BTreeSet::new(),
                turn: Turn::Ready,
                pause: Duration::ZERO,
                postponed_since: None,
                has_stalled: false,
            }
        });
        lane.files.insert(id);
    }

    /// A file does not wait any more.
    pub(super) fn leave_lane(&mut self, id: FileId) {
        let Some(destination) = self.files.get(&id).map(|file| file.head.destination) else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(&destination) else {
            return;
        };
        lane.files.remove(&id);
        if lane.files.is_empty() && lane.turn != Turn::Busy {
            self.end_lane(destination);
        }
    }

    fn end_lane(&mut self, destination: SocketAddr) {
        if let Some(lane) = self.lanes.remove(&destination) {
            if lane.turn == Turn::Ready {
                self.ready.retain(|other| *other != destination);
            } else if let Some(at) = lane.turn.paused_until() {
                self.paused.remove(&(at, destination));
            }
        }
    }

    /// The next lane that may begin, with its oldest file; it is busy from now on.
    pub(super) fn next_turn(&mut self) -> Option<(SocketAddr, FileId)> {
        while let Some(destination) = self.ready.pop_front() {
            let Some(lane) = self.lanes.get_mut(&destination) else {
                continue;
            };
            lane.turn = Turn::Busy;
            if let Some(file) = lane.files.first().copied() {
                return Some((destination, file));
            }
            self.end_lane(destination);
        }
        None
    }

    /// The turn of a lane is over: it goes on at once, after `again`, or with what is left to do
    /// it ends.
    pub(super) fn end_turn(&mut self, destination: SocketAddr, outcome: Outcome, now: Instant) {
        let Some(lane) = self.lanes.get_mut(&destination) else {
            return;
        };
        if lane.turn != Turn::Busy {
            return;
        }
        let since = lane.postponed_since.take();
        lane.has_stalled = outcome == Outcome::Stalled;
        match outcome {
            Outcome::Done => {
                lane.pause = Duration::ZERO;
                lane.turn = Turn::Ready;
            }
            Outcome::Interrupted => lane.turn = Turn::Ready,
            Outcome::Postponed(pause) if since.is_none_or(|at| now < at + STALLED_AFTER) => {
                lane.postponed_since = since.or(Some(now));
                lane.turn = Turn::Postponed(now + pause);
            }
            Outcome::Postponed(_) | Outcome::Failed | Outcome::Stalled => {
                lane.pause = (lane.pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST);
                lane.turn = Turn::Resting(now + lane.pause);
            }
        }
        if lane.files.is_empty() {
            lane.turn = Turn::Busy;
            self.end_lane(destination);
            return;
        }
        if let Some(at) = lane.turn.paused_until() {
            self.paused.insert((at, destination));
        } else {
            self.ready.push_back(destination);
        }
    }

    /// Lanes whose pause is over may begin.
    pub(super) fn wake_lanes(&mut self, now: Instant) {
        while let Some((at, destination)) = self.paused.first().copied()
            && at <= now
        {
            self.wake(destination);
        }
    }

    /// The origin has answered others: a lane that pauses may begin at once.
    pub(crate) fn on_answered(&mut self, destination: SocketAddr) {
        if self
            .lanes
            .get(&destination)
            .is_some_and(|lane| !lane.has_stalled)
        {
            self.wake(destination);
        }
    }

    /// A lane that pauses may begin at once.
    pub(super) fn wake(&mut self, destination: SocketAddr) {
        if let Some(lane) = self.lanes.get_mut(&destination)
            && let Some(at) = lane.turn.paused_until()
        {
            lane.turn = Turn::Ready;
            self.paused.remove(&(at, destination));
            self.ready.push_back(destination);
        }
    }

    /// When a lane that failed is tried again.
    pub(super) fn rests_until(&self, destination: SocketAddr) -> Option<Instant> {
        match self.lanes.get(&destination)?.turn {
            Turn::Resting(at) => Some(at),
            Turn::Busy | Turn::Postponed(_) | Turn::Ready => None,
        }
    }

    /// Something for this destination is being delivered, or would be: it has not failed.
    pub(crate) fn is_draining(&self, destination: SocketAddr) -> bool {
        let turn = self.lanes.get(&destination).map(|lane| lane.turn);
        turn.is_some_and(|turn| !matches!(turn, Turn::Resting(_)))
    }

    /// Something is being delivered, or would be.
    pub(crate) fn is_wanting(&self) -> bool {
        !self.ready.is_empty() || !self.deliveries.is_empty()
    }

    /// The state of a file that is in a lane.
    pub(super) fn set_state(&mut self, id: FileId, state: FileState) {
        if let Some(file) = self.files.get_mut(&id) {
            file.state = state;
        }
    }

    /// A file that is in a lane is not written or delivered any more, and waits: unless its time has
    /// ended meanwhile.
    pub(super) fn wait_again(&mut self, id: FileId, now: Instant) {
        self.set_state(id, FileState::Waiting);
        if self
            .files
            .get(&id)
            .is_some_and(|file| file.expires_at <= now)
        {
            self.bury(id, Dead::Overdue);
        }
    }
}

/// How a lane's turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A file is delivered, or kept for a person: the next one.
    Done,
    /// The origin could not be had, or has reset the connection.
    Failed,
    /// The session has ended, or a person has dropped the file.
    Interrupted,
    /// There is no room in the session for so long.
    Postponed(Duration),
    /// Nothing of it moved.
    Stalled,
}
