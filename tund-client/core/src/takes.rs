//! What users' connections have left at the server when they expired, for their next ones to the
//! same destination (PROTOCOL.md §5.9).

use crate::flow_table::NOBODY;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::codec::MAX_TAKES;
use tund_session::wire::frame::Take;
use tund_session::{FlowId, Instant, SessionId};

/// Takes of all users and destinations; of more, those that were never answered are forgotten, then
/// the oldest of the user who has most. Chosen: 64 destinations that each were lost as often as an
/// OPEN can name.
const TAKES: usize = 1024;

/// A user, and where the connections lead.
type Place = (u32, SocketAddr);

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    take: Take,
    /// OPEN_OK of the flow had come. One that was still being opened has most probably left nothing,
    /// and goes first: an application that tries again and again must not have forgotten what
    /// others left.
    is_answered: bool,
    /// It is worth asking for until then.
    until: Instant,
}

/// The users' takes, in memory only.
#[derive(Debug, Default)]
pub(crate) struct Takes {
    /// Oldest first.
    of: BTreeMap<Place, VecDeque<Entry>>,
    /// Where each is, oldest first.
    places: BTreeMap<u64, Place>,
    /// Those of each user.
    users: BTreeMap<u32, BTreeSet<u64>>,
    unanswered: BTreeSet<u64>,
    expiries: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl Takes {
    /// A connection has left something, perhaps. Of a user who is not known nothing is remembered.
    pub(crate) fn leave(
        &mut self,
        place: Place,
        (take, is_answered): (Take, bool),
        retain: Duration,
        now: Instant,
    ) {
        if place.0 == NOBODY {
            return;
        }
        if let Some(of) = self.of.get(&place).filter(|of| of.len() >= MAX_TAKES)
            && let Some(worst) = of
                .iter()
                .find(|entry| !entry.is_answered)
                .or_else(|| of.front())
        {
            self.forget(worst.number);
        }
        if self.places.len() >= TAKES
            && let Some(worst) = self.worst()
        {
            self.forget(worst);
        }
        self.next += 1;
        let until = now + retain;
        let queue = self.of.entry(place).or_default();
        queue.push_back(Entry {
            number: self.next,
            take,
            is_answered,
            until,
        });
        self.places.insert(self.next, place);
        self.users.entry(place.0).or_default().insert(self.next);
        if !is_answered {
            self.unanswered.insert(self.next);
        }
        self.expiries.insert((until, self.next));
    }

    /// Which of all goes first.
    fn worst(&self) -> Option<u64> {
        let of_most = self.users.values().max_by_key(|numbers| numbers.len());
        let unanswered = self.unanswered.first();
        unanswered.or_else(|| of_most?.first()).copied()
    }

    /// OPEN_OK of this flow has come after it was left: the server holds what it was given.
    pub(crate) fn answered(&mut self, session: SessionId, flow: FlowId) {
        let of_flow = |entry: &&mut Entry| (entry.take.session, entry.take.flow) == (session, flow);
        let mut all = self.of.values_mut().flatten();
        if let Some(entry) = all.find(of_flow) {
            entry.is_answered = true;
            self.unanswered.remove(&entry.number);
        }
    }

    /// What a connection of this user may ask for, oldest first, and the number of the last of it.
    pub(crate) fn wanted(&self, place: Place) -> (Vec<Take>, u64) {
        let of = self.of.get(&place).into_iter().flatten();
        let takes = of.clone().map(|entry| entry.take).collect();
        (takes, of.last().map_or(0, |entry| entry.number))
    }

    /// The server has given what there was of these, up to the one with that number.
    pub(crate) fn given(&mut self, place: Place, last: u64) {
        let of = self.of.get(&place).into_iter().flatten();
        let numbers = of.map(|entry| entry.number);
        for number in numbers.filter(|n| *n <= last).collect::<Vec<_>>() {
            self.forget(number);
        }
    }

    /// Nothing is left of any.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The user has disconnected, or the server holds nothing more.
    pub(crate) fn clear(&mut self) {
        self.of.clear();
        self.places.clear();
        self.users.clear();
        self.unanswered.clear();
        self.expiries.clear();
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, number)) = self.expiries.first().copied()
            && at <= now
        {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(place) = self.places.remove(&number) else {
            return;
        };
        self.unanswered.remove(&number);
        if let Some(of_user) = self.users.get_mut(&place.0) {
            of_user.remove(&number);
            if of_user.is_empty() {
                self.users.remove(&place.0);
            }
        }
        let Some(queue) = self.of.get_mut(&place) else {
            return;
        };
        if let Some(index) = queue.iter().position(|entry| entry.number == number)
            && let Some(entry) = queue.remove(index)
        {
            self.expiries.remove(&(entry.until, number));
        }
        if queue.is_empty() {
            self.of.remove(&place);
        }
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        let queued: usize = self.of.values().map(VecDeque::len).sum();
        let of_users: usize = self.users.values().map(BTreeSet::len).sum();
        let most = queued.max(self.places.len()).max(self.expiries.len());
        most.max(of_users).max(self.unanswered.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tund_session::Offset;

    const START: Instant = Instant::from_nanos(1_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Of a flow whose origin had answered.
    fn take(flow: u64) -> (Take, bool) {
        let take = Take {
            session: SessionId([1; 16]),
            flow: FlowId(flow),
            delivered: Offset(0),
        };
        (take, true)
    }

    fn to(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 514).into()
    }

    fn flows(takes: &Takes, user: u32, destination: SocketAddr) -> Vec<u64> {
        let (wanted, _) = takes.wanted((user, destination));
        wanted.iter().map(|take| take.flow.0).collect()
    }

    #[test]
    fn each_user_and_destination_has_its_own() {
        let mut takes = Takes::default();
        takes.leave((1000, to(1)), take(1), HOUR, START);
        takes.leave((1000, to(1)), take(2), HOUR, START);
        takes.leave((1001, to(1)), take(3), HOUR, START);
        takes.leave((1000, to(2)), take(4), HOUR, START);
        takes.leave((NOBODY, to(1)), take(5), HOUR, START);

        assert_eq!(flows(&takes, 1000, to(1)), [1, 2]);
        assert_eq!(flows(&takes, 1001, to(1)), [3]);
        assert_eq!(flows(&takes, 1000, to(2)), [4]);
        assert_eq!(flows(&takes, NOBODY, to(1)), [0; 0]);
        assert_eq!(takes.kept(), 4);
        takes.clear();
        assert_eq!(takes.kept(), 0);
    }

    #[test]
    fn what_was_left_since_is_not_given_with_what_was_asked_for() {
        let mut takes = Takes::default();
        takes.leave((1000, to(1)), take(1), HOUR, START);
        let (_, last) = takes.wanted((1000, to(1)));
        takes.leave((1000, to(1)), take(2), HOUR, START);

        takes.given((1000, to(1)), last);

        assert_eq!(flows(&takes, 1000, to(1)), [2]);
        assert_eq!(takes.kept(), 1);
    }

    #[test]
    fn each_is_forgotten_when_its_time_is_over_and_not_before() {
        let mut takes = Takes::default();
        takes.leave((1000, to(1)), take(1), 2 * HOUR, START);
        takes.leave((1000, to(1)), take(2), HOUR, START);

        assert_eq!(takes.poll_timeout(), Some(START + HOUR));
        takes.handle_timeout(START + (HOUR - Duration::from_nanos(1)));
        assert_eq!(flows(&takes, 1000, to(1)), [1, 2]);
        takes.handle_timeout(START + HOUR);
        assert_eq!(flows(&takes, 1000, to(1)), [1]);
        takes.handle_timeout(START + 2 * HOUR);
        assert_eq!((takes.kept(), takes.poll_timeout()), (0, None));
    }

    #[test]
    fn one_that_has_most_probably_left_nothing_goes_first() {
        let mut takes = Takes::default();
        for flow in 1..=16 {
            let (take, _) = take(flow);
            let is_answered = flow % 8 != 0;
            takes.leave((1000, to(1)), (take, is_answered), HOUR, START);
        }

        takes.leave((1000, to(1)), take(17), HOUR, START);
        takes.leave((1000, to(1)), take(18), HOUR, START);
        takes.leave((1000, to(1)), take(19), HOUR, START);

        let left = (2..=7).chain(9..=15).chain(17..=19);
        assert_eq!(flows(&takes, 1000, to(1)), left.collect::<Vec<_>>());
    }

    #[test]
    fn one_that_was_idle_outlives_all_that_were_never_opened() {
        let mut takes = Takes::default();
        takes.leave((1000, to(1)), take(1), HOUR, START);

        for flow in 2..=40 {
            let (take, _) = take(flow);
            takes.leave((1000, to(1)), (take, false), HOUR, START);
        }

        let left = [1].into_iter().chain(26..=40);
        assert_eq!(flows(&takes, 1000, to(1)), left.collect::<Vec<_>>());
    }

    #[test]
    fn at_the_bounds_the_oldest_go() {
        let mut takes = Takes::default();
        for flow in 1..=17 {
            takes.leave((1000, to(1)), take(flow), HOUR, START);
        }
        assert_eq!(flows(&takes, 1000, to(1)), (2..=17).collect::<Vec<_>>());

        for last in 2..=64 {
            for flow in 1..=16 {
                takes.leave((2000, to(last)), take(flow), HOUR, START);
            }
        }
        assert_eq!(takes.kept(), 1024);
        takes.leave((9, to(1)), take(1), HOUR, START);
        assert_eq!(takes.kept(), 1024);
        assert_eq!(flows(&takes, 1000, to(1)), (2..=17).collect::<Vec<_>>());
        assert_eq!(flows(&takes, 2000, to(2)), (2..=16).collect::<Vec<_>>());
    }

    #[test]
    fn of_all_those_that_were_never_opened_go_first() {
        let mut takes = Takes::default();
        takes.leave((1000, to(1)), take(1), HOUR, START);

        for flow in 2..=3_000_u64 {
            let ([last, port, ..], (take, _)) = (flow.to_le_bytes(), take(flow));
            let place = SocketAddr::from(([192, 0, 2, last], u16::from(port)));
            takes.leave((2000, place), (take, false), HOUR, START);
        }

        assert_eq!(takes.kept(), 1024);
        assert_eq!(flows(&takes, 1000, to(1)), [1]);
    }

    #[test]
    fn one_whose_answer_came_late_is_as_good_as_others() {
        let mut takes = Takes::default();
        let (late, _) = take(1);
        takes.leave((1000, to(1)), (late, false), HOUR, START);
        takes.leave((1000, to(1)), take(2), HOUR, START);

        takes.answered(late.session, late.flow);

        for flow in 3..=30 {
            let (take, _) = take(flow);
            takes.leave((1000, to(1)), (take, false), HOUR, START);
        }
        let left = [1, 2].into_iter().chain(17..=30);
        assert_eq!(flows(&takes, 1000, to(1)), left.collect::<Vec<_>>());
    }
}
