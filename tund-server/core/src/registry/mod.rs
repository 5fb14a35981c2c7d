//! Sessions by proved key and id: who is greeted, who resumes, who is turned away.

mod answer;
mod contract;
mod epitaph;
mod farewell;
mod greeting;
mod hand_off;
mod remembered;
#[cfg(test)]
mod tests;
mod tombstones;

use crate::delivery::Delivered;
use crate::offers::Offers;
use answer::Answer;
use bytes::Bytes;
pub use contract::{ClientKey, RegistryConfig, RegistryEvent};
pub use farewell::{Farewell, LAST_WORDS, LAST_WORDS_REVOKED};
use greeting::Greeting;
pub use greeting::TurnedAway;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tombstones::Tombstones;
pub use tombstones::{End, Tombstone};
use tund_session::wire::frame::{CloseCode, Frame, Hello, LinkCloseReason, RejectReason};
use tund_session::{Event, Instant, LinkId, Outbox, Progress, Secret, Session, SessionId};

/// How long an attached session has to answer before a newcomer with its key takes over.
pub const KEY_IN_USE_WAIT: Duration = Duration::from_secs(2);
/// How long a link that has proved a key may take to say HELLO or RESUME.
pub const GREETING_TIME: Duration = Duration::from_secs(10);
/// Ended sessions whose end is remembered; the oldest is forgotten, and reads `ended` then.
pub const TOMBSTONES: usize = 10_000;
/// The same of one key: chosen; a client asks for its last sessions only.
pub const TOMBSTONES_PER_KEY: usize = 64;
/// Offsets that all of them hold together: chosen, 16 MiB.
pub const OFFSETS: usize = 1 << 20;
/// Offsets of one of them; of more, those of the flows that were opened last are not kept. Chosen:
/// more than the flows of a session, unless it is configured otherwise, and 1 MiB.
pub const OFFSETS_OF_ONE: usize = 1 << 16;
/// How long an end is remembered unless told otherwise: a client keeps bytes for 30 days at most,
/// and clocks differ.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(31 * 24 * 3600);
/// Provisional sessions of one key: overlapping attempts of one client.
pub const PROVISIONAL_PER_KEY: usize = 32;
/// Links of one key that are not yet part of a session, or were turned away and are not closed yet:
/// the same, before their HELLO is answered. With twice as many, further ones are not answered.
pub const GREETINGS_PER_KEY: usize = 64;
/// When a server that has no room may be asked again.
pub const BUSY_HINT: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum LinkState {
    /// Has proved a key; not part of a session.
    Greeting(Box<Greeting>),
    Member(SessionId),
    /// Only the answer is left to be sent.
    TurnedAway {
        key: ClientKey,
        answer: Answer,
    },
}

#[derive(Debug)]
struct Entry {
    session: Session,
    key: ClientKey,
    /// Its place in the order in which sessions were made.
    made: u64,
    /// The deadline that stands in `timers`.
    timer: Option<Instant>,
    /// What `lent` counts of it.
    lent: u64,
}

/// What belongs to one key; forgotten when empty.
#[derive(Debug, Default)]
struct PerKey {
    /// Those that have not ended.
    sessions: BTreeSet<SessionId>,
    greetings: BTreeSet<LinkId>,
    /// Links that were turned away and are not closed yet.
    parting: usize,
}

/// All sessions of a server. The contract is that of [`Session`], link by link.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    entries: BTreeMap<SessionId, Entry>,
    links: BTreeMap<LinkId, LinkState>,
    keys: BTreeMap<ClientKey, PerKey>,
    tombstones: Tombstones,
    /// How far stored streams have reached their origins.
    delivered: Delivered,
    /// What applications did not get of flows that expired.
    offers: Offers,
    /// For so long ends of sessions and stored streams are remembered.
    retain: Duration,
    timers: BTreeSet<(Instant, SessionId)>,
    /// When each greeting is over, or its wait.
    greeting_timers: BTreeSet<(Instant, LinkId)>,
    /// Which links wait for which session to answer or not.
    waiting: BTreeSet<(SessionId, LinkId)>,
    /// Sessions with input since the last drain.
    dirty: BTreeSet<SessionId>,
    /// Σ over sessions of what they hold beyond their floors, never above `memory_bytes` (INV-5).
    lent: u64,
    /// Sessions ever made.
    made: u64,
    /// No new sessions.
    draining: bool,
    events: VecDeque<RegistryEvent>,
    answers: Vec<LinkId>,
}

impl Registry {
    /// An empty registry.
    pub fn new(config: RegistryConfig) -> Self {
        Self {
            config,
            entries: BTreeMap::new(),
            links: BTreeMap::new(),
            keys: BTreeMap::new(),
            tombstones: Tombstones::new(REMEMBERED_FOR),
            delivered: Delivered::default(),
            offers: Offers::default(),
            retain: REMEMBERED_FOR,
            timers: BTreeSet::new(),
            greeting_timers: BTreeSet::new(),
            waiting: BTreeSet::new(),
            dirty: BTreeSet::new(),
            lent: 0,
            made: 0,
            draining: false,
            events: VecDeque::new(),
            answers: Vec::new(),
        }
    }

    /// Bytes of a link, in any pieces.
    pub fn handle_bytes(&mut self, link: LinkId, bytes: Bytes, now: Instant) {
        match self.links.get(&link) {
            Some(LinkState::Member(id)) => {
                let id = *id;
                let is_answer = self.is_waited_for(id, link);
                self.with(id, now, |session| session.handle_bytes(link, bytes, now));
                if is_answer {
                    self.note_heard(id);
                }
            }
            Some(LinkState::Greeting(_)) => self.greet(link, &bytes, now),
            Some(LinkState::TurnedAway { .. }) | None => {}
        }
    }

    /// So many datagrams have come by this link that their sockets should have them before it is read
    /// on from.
    pub fn has_datagrams_waiting(&self, link: LinkId) -> bool {
        let Some(LinkState::Member(id)) = self.links.get(&link) else {
            return false;
        };
        let entry = self.entries.get(id);
        entry.is_some_and(|entry| entry.session.has_datagrams_waiting())
    }

    /// The transport connection is gone.
    pub fn handle_link_down(&mut self, link: LinkId, now: Instant) {
        match self.links.remove(&link) {
            Some(LinkState::Member(id)) => {
                self.with(id, now, |session| session.handle_link_down(link, now));
                self.bury(id);
            }
            Some(LinkState::Greeting(greeting)) => self.forget_greeting(link, &greeting),
            Some(LinkState::TurnedAway { key, .. }) => self.forget_parting(key),
            None => {}
        }
    }

    /// The answer to `WantProgress`.
    pub fn handle_progress(&mut self, link: LinkId, progress: Progress, now: Instant) {
        if let Some(LinkState::Member(id)) = self.links.get(&link) {
            self.with(*id, now, |session| {
                session.handle_progress(link, progress, now)
            });
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_due = |(at, _): &&(Instant, SessionId)| *at <= now;
        let due: Vec<_> = self.timers.iter().take_while(is_due).copied().collect();
        for (_, id) in due {
            self.with(id, now, |session| session.handle_timeout(now));
            self.bury(id);
        }
        while let Some((at, link)) = self.greeting_timers.first().copied()
            && at <= now
        {
            self.greeting_timers.remove(&(at, link));
            self.greeting_over(link, now);
        }
        self.offers.handle_timeout(now);
    }

    /// The next deadline.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self.timers.first().map(|(at, _)| *at);
        let greeting = self.greeting_timers.first().map(|(at, _)| *at);
        let held = self.offers.poll_timeout();
        [session, greeting, held].into_iter().flatten().min()
    }

    /// A session for HELLO, provisional until the client speaks again (rule 9).
    fn admit(
        &mut self,
        link: LinkId,
        key: ClientKey,
        hello: &Hello,
        offer: (Secret, SessionId),
        now: Instant,
    ) {
        let (secret, id) = offer;
        self.made += 1;
        let session = Session::new_server(&self.config.session, id, hello, (link, secret), now);
        self.links.insert(link, LinkState::Member(id));
        self.keys.entry(key).or_default().sessions.insert(id);
        let entry = Entry {
            session,
            key,
            made: self.made,
            timer: None,
            lent: 0,
        };
        self.entries.insert(id, entry);
        self.with(id, now, |_| {});
    }

    /// Works on one session, and keeps its deadline, its share of memory and its place in line.
    ///
    /// A session may hold, in each direction, at most half of what no session holds: a greedy one
    /// leaves room for the next, and many share alike. What it needs of that, offers give up.
    pub fn with(&mut self, id: SessionId, now: Instant, work: impl FnOnce(&mut Session)) {
        let free = self.free();
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.session.set_growth_bound(free / 2);
        work(&mut entry.session);
        let (lent, timer) = if entry.session.is_ended() {
            (0, None)
        } else {
            let timer = entry.session.poll_timeout().map(|(at, _)| at);
            (entry.session.lent(), timer)
        };
        self.lent = self.lent - entry.lent + lent;
        entry.lent = lent;
        debug_assert!(
            self.lent <= self.config.memory_bytes,
            "INV-5 over all sessions"
        );
        let left = self.config.memory_bytes.saturating_sub(self.lent);
        self.offers.give_up(left);
        if timer != entry.timer {
            if let Some(at) = entry.timer {
                self.timers.remove(&(at, id));
            }
            if let Some(at) = timer {
                self.timers.insert((at, id));
            }
            entry.timer = timer;
        }
        self.dirty.insert(id);
        self.take_events(id, now);
    }

    /// What sessions do not hold.
    fn free(&self) -> u64 {
        self.config.memory_bytes.saturating_sub(self.lent)
    }

    fn take_events(&mut self, id: SessionId, now: Instant) {
        loop {
            let Some(entry) = self.entries.get_mut(&id) else {
                return;
            };
            let Some(event) = entry.session.poll_event() else {
                return;
            };
            let key = entry.key;
            if event == Event::Confirmed {
                self.supersede(id, key, now);
            } else if let Event::Ended { reason } = event {
                let released = entry.session.released_at_end();
                self.tombstones.add((id, key), reason, released, now);
                self.forget_session(id, key);
                self.end_offers(key, reason);
                self.judge_waiting(id, now);
            } else if matches!(event, Event::LinkDead { .. })
                && entry.session.live_links().next().is_none()
            {
                self.judge_waiting(id, now);
            }
            self.tell(id, key, event, now);
        }
    }

    fn tell(&mut self, id: SessionId, key: ClientKey, event: Event, now: Instant) {
        if event == Event::ForgetHeld {
            // Flows that this session had before it was said may have left something since.
            self.offers.erase_others(key, id);
            return;
        }
        if let Event::FlowHeld { flow, held } = event {
            self.hold((id, flow), key, *held, now);
            return;
        }
        let told = if let Event::FlowFinal {
            flow,
            taken,
            released,
        } = event
        {
            RegistryEvent::Final {
                key,
                session: id,
                flow,
                taken,
                released,
            }
        } else {
            RegistryEvent::Session { session: id, event }
        };
        self.events.push_back(told);
    }

    /// A confirmed session ends those of its key that were made before it (rule 9). One made later
    /// has another fate: what confirms the older one may have been under way for long.
    fn supersede(&mut self, confirmed: SessionId, key: ClientKey, now: Instant) {
        let made = |id: SessionId| self.entries.get(&id).map(|entry| entry.made);
        let this = made(confirmed);
        let mut older = self.sessions_of(&key);
        older.retain(|id| made(*id) < this);
        for id in older {
            self.close(id, CloseCode::Superseded, now);
        }
    }

    fn sessions_of(&self, key: &ClientKey) -> Vec<SessionId> {
        let of_key = self.keys.get(key).into_iter();
        of_key.flat_map(|of| of.sessions.iter().copied()).collect()
    }

    fn forget_session(&mut self, id: SessionId, key: ClientKey) {
        if let Some(of) = self.keys.get_mut(&key) {
            of.sessions.remove(&id);
        }
        self.forget_key(key);
    }

    fn forget_key(&mut self, key: ClientKey) {
        let is_empty =
            |of: &PerKey| of.sessions.is_empty() && of.greetings.is_empty() && of.parting == 0;
        if self.keys.get(&key).is_some_and(is_empty) {
            self.keys.remove(&key);
        }
    }

    /// Forgets an ended session once its last link is closed.
    fn bury(&mut self, id: SessionId) {
        let over = |entry: &Entry| entry.session.is_ended() && entry.session.link_count() == 0;
        if self.entries.get(&id).is_some_and(over) {
            // `with` has taken it out of `timers` and `lent`, `take_events` out of `keys`.
            self.entries.remove(&id);
            self.dirty.remove(&id);
        }
    }

    /// Ends one session from this side.
    pub fn close(&mut self, id: SessionId, code: CloseCode, now: Instant) {
        self.with(id, now, |session| session.close(code, now));
        self.bury(id);
    }

    /// Ends all sessions: the daemon stops.
    pub fn close_all(&mut self, now: Instant) {
        self.draining = true;
        for key in self.keys.keys().copied().collect::<Vec<_>>() {
            for link in self.greetings_of(&key) {
                self.reject(link, RejectReason::Busy);
            }
            for id in self.sessions_of(&key) {
                self.close(id, CloseCode::Asked, now);
            }
        }
    }

    /// No new sessions from here on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Appends what is due on a link; see [`Session::poll_transmit`].
    pub fn poll_transmit(
        &mut self,
        link: LinkId,
        budget: usize,
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        match self.links.get_mut(&link) {
            Some(LinkState::Member(id)) => {
                let id = *id;
                let Some(entry) = self.entries.get_mut(&id) else {
                    return false;
                };
                let sent = entry.session.poll_transmit(link, budget, out, now);
                if sent {
                    self.with(id, now, |_| {});
                }
                sent
            }
            Some(LinkState::TurnedAway { answer, .. }) => {
                let Some(frame) = answer.take(&self.tombstones) else {
                    return false;
                };
                out.push(&frame);
                if answer.is_over() {
                    out.push(&Frame::LinkClose {
                        reason: LinkCloseReason::Unneeded,
                    });
                }
                true
            }
            Some(LinkState::Greeting(_)) | None => false,
        }
    }

    /// What the driver should know next.
    pub fn poll_event(&mut self) -> Option<RegistryEvent> {
        self.events.pop_front()
    }

    /// Links that may have something to send since the last call.
    pub fn poll_dirty(&mut self, out: &mut Vec<LinkId>) {
        out.append(&mut self.answers);
        while let Some(id) = self.dirty.pop_first() {
            let Some(entry) = self.entries.get(&id) else {
                continue;
            };
            let links = entry.session.live_links().map(|(link, _)| link);
            out.extend(links.filter(|link| entry.session.has_transmit(*link)));
        }
    }

    /// All sessions, for `status`.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, ClientKey, &Session)> {
        self.entries
            .iter()
            .map(|(id, entry)| (*id, entry.key, &entry.session))
    }

    /// One session.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.entries.get(&id).map(|entry| &entry.session)
    }

    /// The key that a session belongs to.
    pub fn key(&self, id: SessionId) -> Option<ClientKey> {
        self.entries.get(&id).map(|entry| entry.key)
    }

    /// Bytes that all sessions hold beyond their floors.
    pub fn lent(&self) -> u64 {
        self.lent
    }

    /// Everything kept for links and sessions that are not over; none of it may outlive them.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> [usize; 8] {
        [
            self.entries.len(),
            self.links.len(),
            self.keys.len(),
            self.timers.len(),
            self.greeting_timers.len(),
            self.waiting.len(),
            self.dirty.len() + self.answers.len() + self.events.len(),
            usize::try_from(self.lent).unwrap_or(usize::MAX),
        ]
    }
}
