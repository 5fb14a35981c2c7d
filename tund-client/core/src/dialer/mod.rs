//! When to dial, where, and which attempts to give up.

use std::collections::BTreeMap;
use std::time::Duration;
use tund_session::{Instant, LinkId};

/// Two looks because of news are at least so far apart: they come in swarms.
const NEWS_EVERY: Duration = Duration::from_millis(50);
/// Without a path nothing is dialled. News tell of a new one; should one be missed, this finds it.
const NO_PATH: Duration = Duration::from_secs(60);
/// The first pause between attempts for a link that is not needed at once; it doubles.
const FURTHER_FIRST: Duration = Duration::from_secs(1);
/// The longest.
const FURTHER_LAST: Duration = Duration::from_secs(60);
/// Between two attempts on one path while the outage is young.
const EVERY: Duration = Duration::from_millis(500);
/// How long an outage is young.
const YOUNG: Duration = Duration::from_secs(300);
/// After that, attempts start at a random moment within so much after the last one (full jitter).
const LATER: Duration = Duration::from_secs(10);
/// An attempt lives so long: slow paths need three round trips, lossy ones some retransmissions.
const LIFETIME: Duration = Duration::from_secs(15);
/// Attempts on one path whose SYN is unanswered; the oldest but one gives way to a fresher one.
const UNANSWERED: usize = 6;
/// Attempts on one path whose SYN is answered; never displaced, and none new starts beside them.
const ANSWERED: usize = 4;
/// An attempt whose SYN was answered has so long before another starts beside it: its path works,
/// and a server that was just restarted meets all of its clients at once.
const HEAD_START: Duration = Duration::from_secs(2);
/// A SYN that is answered so late has been sent three times, a second apart (RFC 6298 §2). The kernel
/// lets such a connection begin with a single segment (RFC 5681 §3.1), and what moves there stalls.
const SYN_IS_OLD: Duration = Duration::from_secs(2);
/// After an error that needs a person, the daemon looks again so often.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
/// The longest that a server's hint is believed.
const HINT_MAX: Duration = Duration::from_secs(300);
/// Paths that are tried at once, best first.
const PATHS: usize = 16;
/// Attempts on one path that may follow each other at once, as when links are lost soon after they
/// were made.
const BURST: u32 = 3;
/// Unanswered attempts on all paths together, though each may have two.
const UNANSWERED_IN_ALL: usize = 48;

/// A way to a server address, as the driver numbers them: interface and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathId {
    /// The interface's index.
    pub interface: u32,
    /// Which of the server's addresses.
    pub address: u16,
}

/// An attempt to make a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) path: PathId,
    pub(crate) started: Instant,
    is_answered: bool,
    /// It replaces one whose SYN was old.
    is_afresh: bool,
    /// The server has been asked to take it for a link.
    is_committed: bool,
}

impl Attempt {
    /// How long no other attempt starts on its path.
    const fn head_start(&self) -> Duration {
        if self.is_answered { HEAD_START } else { EVERY }
    }
}

/// Attempts of late on one path.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    count: u32,
    since: Instant,
}

impl Recent {
    /// Forgets one attempt for each `EVERY` that has passed.
    fn recover(&mut self, now: Instant) {
        while self.count > 0 && self.since + EVERY <= now {
            self.count -= 1;
            self.since = self.since + EVERY;
        }
    }
}

/// What a link is wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing.
    Nothing,
    /// No link works: any one, as soon as can be.
    Link,
    /// A further link beside the one that works, by one of these paths, without haste.
    Further(Vec<PathId>),
}

/// What the dialer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialOrder {
    /// Dial.
    Start(LinkId, PathId),
    /// Close an attempt.
    GiveUp(LinkId),
}

/// Attempts to make a link: overlapping, since a fresh SYN beats one that has backed off.
#[derive(Debug)]
pub(crate) struct Dialer {
    attempts: BTreeMap<LinkId, Attempt>,
    /// Attempts of late on each path: how many, and from when on one less is counted each `EVERY`.
    recent: BTreeMap<PathId, Recent>,
    wanted: Want,
    /// A link is wanted since then.
    wanted_since: Option<Instant>,
    /// The outage counts as young from then on.
    young_from: Instant,
    /// Looks for a further link that came to nothing.
    in_vain: u32,
    /// The paths are asked for then.
    next_look: Instant,
    /// They were asked for last then.
    last_look: Option<Instant>,
    /// Not sooner: the server's hint, or an error that needs a person.
    not_before: Instant,
    next_link: u64,
    random: u64,
}

impl Dialer {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            attempts: BTreeMap::new(),
            recent: BTreeMap::new(),
            wanted: Want::Nothing,
            wanted_since: None,
            young_from: Instant::default(),
            in_vain: 0,
            next_look: Instant::default(),
            last_look: None,
            not_before: Instant::default(),
            next_link: 1,
            random: seed | 1,
        }
    }

    /// A link is wanted, or not any more. Attempts that lead to nothing wanted are given up, but for
    /// those where the server has been asked: it may take the new link for the only one already.
    pub(crate) fn want(&mut self, want: Want, now: Instant, orders: &mut Vec<DialOrder>) {
        let is_new = match (&self.wanted, &want) {
            (_, Want::Nothing) | (Want::Link, Want::Link) => false,
            (Want::Further(known), Want::Further(paths)) => {
                paths.iter().any(|path| !known.contains(path))
            }
            (Want::Nothing | Want::Link | Want::Further(_), Want::Link | Want::Further(_)) => true,
        };
        if is_new {
            self.wanted_since = Some(now);
            self.young_from = now;
            self.next_look = now;
            self.in_vain = 0;
        }
        match &want {
            Want::Nothing => {
                self.wanted_since = None;
                self.give_up(|attempt| !attempt.is_committed, orders);
            }
            Want::Link => {}
            Want::Further(paths) => {
                let is_unwanted = |of: &Attempt| !of.is_committed && !paths.contains(&of.path);
                self.give_up(is_unwanted, orders);
            }
        }
        self.wanted = want;
    }

    fn give_up(&mut self, unwanted: impl Fn(&Attempt) -> bool, orders: &mut Vec<DialOrder>) {
        self.attempts.retain(|link, attempt| {
            let is_unwanted = unwanted(attempt);
            if is_unwanted {
                orders.push(DialOrder::GiveUp(*link));
            }
            !is_unwanted
        });
    }

    /// The network has changed: worth another attempt at once, and a young outage again.
    pub(crate) fn news(&mut self, now: Instant) {
        self.young_from = now;
        self.in_vain = 0;
        let soon = self
            .last_look
            .map_or(now, |last| now.max(last + NEWS_EVERY));
        self.next_look = self.next_look.min(soon);
    }

    /// Something has happened that makes an attempt worth while: an application sends.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if self.wanted == Want::Link && self.last_look.is_none_or(|last| last + EVERY <= now) {
            self.next_look = self.next_look.min(now);
        }
    }

    /// How long a link has been wanted without being there.
    pub(crate) fn wanted_for(&self, now: Instant) -> Duration {
        self.wanted_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// A link is there: what was waited for is over.
    pub(crate) fn attached(&mut self) {
        self.not_before = Instant::default();
    }

    /// The server asks for patience, or an error needs a person.
    pub(crate) fn wait(&mut self, hint: Option<Duration>, now: Instant) {
        let pause = hint.unwrap_or(REFUSED_EVERY).min(HINT_MAX);
        let jitter = self.draw(pause.max(EVERY) / 2);
        self.not_before = now + pause + jitter;
    }

    /// No pause any more: a person asks.
    pub(crate) fn clear_wait(&mut self, now: Instant) {
        self.not_before = now;
        self.next_look = now;
    }

    /// Whether the paths should be looked up; then [`paths`](Self::paths) is to be called.
    pub(crate) fn is_look_due(&mut self, now: Instant) -> bool {
        let due = self.next_look.max(self.not_before);
        if self.wanted_since.is_none() || due > now {
            return false;
        }
        self.last_look = Some(now);
        let pause = match self.wanted {
            Want::Further(_) => {
                let doubled = FURTHER_FIRST * 2_u32.pow(self.in_vain.min(6));
                self.in_vain = self.in_vain.saturating_add(1);
                let pause = doubled.min(FURTHER_LAST);
                pause + self.draw(pause / 4)
            }
            Want::Link if self.young_from + YOUNG > now => EVERY,
            Want::Nothing | Want::Link => EVERY + self.draw(LATER),
        };
        self.next_look = now + pause;
        true
    }

    /// The usable paths, best first: starts what may start.
    pub(crate) fn paths(&mut self, paths: &[PathId], now: Instant, orders: &mut Vec<DialOrder>) {
        if self.wanted_since.is_none() || self.not_before > now {
            return;
        }
        if paths.is_empty() {
            self.next_look = self.next_look.max(now + NO_PATH);
            return;
        }
        let paths = paths.get(..PATHS).unwrap_or(paths);
        let most = (UNANSWERED_IN_ALL / paths.len().max(1)).clamp(2, UNANSWERED);
        for recent in self.recent.values_mut() {
            recent.recover(now);
        }
        let wanted = match &self.wanted {
            Want::Further(wanted) => Some(wanted.clone()),
            Want::Nothing | Want::Link => None,
        };
        let is_wanted = |path: &PathId| wanted.as_ref().is_none_or(|w| w.contains(path));
        for path in paths.iter().filter(|path| is_wanted(path)) {
            let on_path = || self.attempts.iter().filter(|(_, a)| a.path == *path);
            let not_before = self.not_before_on(*path);
            if not_before > now {
                self.next_look = self.next_look.min(not_before);
                continue;
            }
            if on_path().filter(|(_, a)| a.is_answered).count() >= ANSWERED {
                continue;
            }
            let unanswered = on_path().filter(|(_, a)| !a.is_answered);
            let unanswered: Vec<_> = unanswered.map(|(id, _)| *id).collect();
            if unanswered.len() >= most
                && let Some(second) = unanswered.get(1)
            {
                self.attempts.remove(second);
                orders.push(DialOrder::GiveUp(*second));
            }
            self.start(*path, false, now, orders);
        }
        self.recent
            .retain(|path, recent| recent.count > 0 || paths.contains(path));
    }

    /// When the next attempt may start on a path: not beside one that has just started, as when a
    /// name is resolved in between, and not too many in a row.
    fn not_before_on(&self, path: PathId) -> Instant {
        let newest = self.attempts.values().filter(|a| a.path == path);
        let newest = newest.map(|a| a.started + a.head_start()).max();
        let spent = self
            .recent
            .get(&path)
            .filter(|recent| recent.count >= BURST);
        newest
            .max(spent.map(|recent| recent.since + EVERY))
            .unwrap_or_default()
    }

    fn start(&mut self, path: PathId, is_afresh: bool, now: Instant, orders: &mut Vec<DialOrder>) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let recent = self.recent.entry(path).or_default();
        if recent.count == 0 {
            recent.since = now;
        }
        recent.count += 1;
        let attempt = Attempt {
            path,
            started: now,
            is_answered: false,
            is_afresh,
            is_committed: false,
        };
        self.attempts.insert(link, attempt);
        orders.push(DialOrder::Start(link, path));
    }

    /// An attempt that is under way.
    pub(crate) fn attempt(&self, link: LinkId) -> Option<&Attempt> {
        self.attempts.get(&link)
    }

    /// The SYN was answered. Where nobody waits for the link, an old SYN is followed by a fresh one in
    /// its place, once: a slow path may answer no sooner.
    pub(crate) fn answered(&mut self, link: LinkId, now: Instant, orders: &mut Vec<DialOrder>) {
        let Some(attempt) = self.attempts.get_mut(&link) else {
            return;
        };
        attempt.is_answered = true;
        let is_old = attempt.started + SYN_IS_OLD <= now;
        let path = attempt.path;
        if is_old && !attempt.is_afresh && matches!(self.wanted, Want::Further(_)) {
            self.attempts.remove(&link);
            orders.push(DialOrder::GiveUp(link));
            self.start(path, true, now, orders);
        }
    }

    /// The server was reached, and is asked to take the attempt for a link.
    pub(crate) fn committed(&mut self, link: LinkId) {
        if let Some(attempt) = self.attempts.get_mut(&link) {
            attempt.is_committed = true;
        }
    }

    /// The attempt has ended, one way or the other.
    pub(crate) fn ended(&mut self, link: LinkId) -> Option<Attempt> {
        self.attempts.remove(&link)
    }

    /// Gives all attempts up.
    pub(crate) fn give_up_all(&mut self, orders: &mut Vec<DialOrder>) {
        self.give_up(|_| true, orders);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self
            .attempts
            .values()
            .map(|attempt| attempt.started + LIFETIME)
            .min();
        let look = self
            .wanted_since
            .map(|_| self.next_look.max(self.not_before));
        [oldest, look].into_iter().flatten().min()
    }

    /// Gives up what has lived long enough.
    pub(crate) fn handle_timeout(&mut self, now: Instant, orders: &mut Vec<DialOrder>) {
        let old = self
            .attempts
            .iter()
            .filter(|(_, a)| a.started + LIFETIME <= now);
        for link in old.map(|(link, _)| *link).collect::<Vec<_>>() {
            self.attempts.remove(&link);
            orders.push(DialOrder::GiveUp(link));
        }
    }

    /// A duration below `below`, from the seed (xorshift64*).
    fn draw(&mut self, below: Duration) -> Duration {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let drawn = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        let millis = u64::try_from(below.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(drawn % millis)
    }
}

#[cfg(test)]
mod tests;
