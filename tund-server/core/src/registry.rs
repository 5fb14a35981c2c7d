//! Sessions by proved key and id: who is greeted, who resumes, who is turned away.

use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tund_session::Instant;
use tund_session::session::VERSION;
use tund_session::wire::codec;
use tund_session::wire::frame::{
    CloseCode, Frame, Hello, LinkCloseReason, RejectReason, Resume, ResumeReject,
};
use tund_session::{
    Config, EndReason, Event, LinkDeath, LinkId, Outbox, Progress, Secret, Session, SessionId,
};

/// How long an attached session has to answer before a newcomer with its key takes over.
pub const KEY_IN_USE_WAIT: Duration = Duration::from_secs(2);
/// Ended sessions whose end is remembered; the oldest is forgotten, and reads `ended` then.
pub const TOMBSTONES: usize = 10_000;
/// Provisional sessions of one key: overlapping attempts of one client.
pub const PROVISIONAL_PER_KEY: usize = 32;

/// A client's public key, as proved by TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientKey(pub [u8; 32]);

/// What the registry is made with.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// For every session.
    pub session: Config,
    /// Sessions at once.
    pub max_sessions: usize,
    /// Bytes that all sessions together may hold beyond their floors.
    pub memory_bytes: u64,
}

/// A link that has proved a key, before it is part of a session.
#[derive(Debug)]
struct Greeting {
    key: ClientKey,
    secret: Secret,
    /// The id a new session would get: drawn by the driver.
    fresh: SessionId,
    partial: BytesMut,
    /// HELLO waits for the answer of an attached session of the same key, asked then.
    waits: Option<(Hello, SessionId, Instant)>,
}

#[derive(Debug)]
enum LinkState {
    Greeting(Box<Greeting>),
    Member(SessionId),
    /// Only the answer is left to be sent.
    TurnedAway(Option<Frame>),
}

#[derive(Debug)]
struct Entry {
    session: Session,
    key: ClientKey,
    /// The deadline that stands in `timers`.
    timer: Option<Instant>,
    /// What `lent` counts of it.
    lent: u64,
}

/// What the driver learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// Of one session.
    Session {
        /// Which.
        session: SessionId,
        /// What.
        event: Event,
    },
    /// A link that belongs to no session is to be closed once its answer is out.
    TurnedAway {
        /// Which.
        link: LinkId,
        /// What it was told.
        reason: TurnedAway,
    },
}

/// Why a link was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// RESUME or HELLO was answered by RESUME_REJECT.
    Rejected(RejectReason),
    /// HELLO was answered by KEY_IN_USE.
    KeyInUse,
    /// The first frame was neither HELLO nor RESUME.
    NotUnderstood,
    /// The key was removed from the list.
    KeyRemoved,
}

/// All sessions of a server. The contract is that of [`Session`], link by link.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    entries: BTreeMap<SessionId, Entry>,
    links: BTreeMap<LinkId, LinkState>,
    /// How ended sessions ended, oldest first.
    tombstones: VecDeque<(SessionId, ClientKey, RejectReason)>,
    timers: BTreeSet<(Instant, SessionId)>,
    /// Sessions with input since the last drain.
    dirty: BTreeSet<SessionId>,
    /// HELLOs that wait for KEY_IN_USE.
    waiting: BTreeSet<LinkId>,
    /// Σ over sessions of what they hold beyond their floors.
    lent: u64,
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
            tombstones: VecDeque::new(),
            timers: BTreeSet::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            lent: 0,
            draining: false,
            events: VecDeque::new(),
            answers: Vec::new(),
        }
    }

    /// A link has proved `key`. `fresh` is drawn at random, for the case that it asks for a session.
    pub fn handle_link_up(
        &mut self,
        link: LinkId,
        key: ClientKey,
        secret: Secret,
        fresh: SessionId,
    ) {
        let partial = BytesMut::new();
        let greeting = Greeting {
            key,
            secret,
            fresh,
            partial,
            waits: None,
        };
        self.links
            .insert(link, LinkState::Greeting(Box::new(greeting)));
    }

    /// Bytes of a link, in any pieces.
    pub fn handle_bytes(&mut self, link: LinkId, bytes: Bytes, now: Instant) {
        match self.links.get_mut(&link) {
            Some(LinkState::Member(id)) => {
                let id = *id;
                self.with(id, now, |session| session.handle_bytes(link, bytes, now));
                self.answer_waiting(id, now);
            }
            Some(LinkState::Greeting(greeting)) if greeting.waits.is_none() => {
                greeting.partial.extend_from_slice(&bytes);
                if greeting.partial.len() > codec::HEADER + codec::MAX_BODY {
                    self.turn_away(link, None, TurnedAway::NotUnderstood);
                    return;
                }
                let mut input = greeting.partial.clone().freeze();
                match codec::decode(&mut input) {
                    Ok(None) => {}
                    Ok(Some(Frame::Hello(hello))) => self.on_hello(link, hello, now),
                    Ok(Some(Frame::Resume(resume))) => self.on_resume(link, &resume, now),
                    Ok(Some(_)) | Err(_) => {
                        self.turn_away(link, None, TurnedAway::NotUnderstood);
                    }
                }
            }
            Some(LinkState::Greeting(_) | LinkState::TurnedAway(_)) | None => {}
        }
    }

    /// The transport connection is gone.
    pub fn handle_link_down(&mut self, link: LinkId, now: Instant) {
        self.waiting.remove(&link);
        if let Some(LinkState::Member(id)) = self.links.remove(&link) {
            self.with(id, now, |session| session.handle_link_down(link, now));
            self.bury(id);
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
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now
        {
            self.with(id, now, |session| session.handle_timeout(now));
            self.bury(id);
        }
        let over = self
            .waiting
            .iter()
            .filter(|link| self.wait_over(**link, now))
            .copied();
        for link in over.collect::<Vec<_>>() {
            self.admit_waiting(link, now);
        }
    }

    fn wait_over(&self, link: LinkId, now: Instant) -> bool {
        match self.links.get(&link) {
            Some(LinkState::Greeting(greeting)) => greeting
                .waits
                .is_some_and(|(_, _, since)| since + KEY_IN_USE_WAIT <= now),
            Some(LinkState::Member(_) | LinkState::TurnedAway(_)) | None => false,
        }
    }

    /// The next deadline.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waits = self
            .waiting
            .iter()
            .filter_map(|link| match self.links.get(link)? {
                LinkState::Greeting(greeting) => {
                    greeting.waits.map(|(.., at)| at + KEY_IN_USE_WAIT)
                }
                LinkState::Member(_) | LinkState::TurnedAway(_) => None,
            });
        waits.chain(self.timers.first().map(|(at, _)| *at)).min()
    }

    fn on_hello(&mut self, link: LinkId, hello: Hello, now: Instant) {
        let Some(LinkState::Greeting(greeting)) = self.links.get_mut(&link) else {
            return;
        };
        let key = greeting.key;
        if hello.versions.0 > VERSION || hello.versions.1 < VERSION {
            self.reject(link, RejectReason::Version);
            return;
        }
        let of_key = self
            .entries
            .iter()
            .filter(|(_, e)| e.key == key && !e.session.is_ended());
        let provisional = of_key
            .clone()
            .filter(|(_, e)| !e.session.is_confirmed())
            .count();
        let rival = of_key.clone().find(|(_, e)| {
            e.session.is_confirmed()
                && e.session.is_attached()
                && e.session.peer_instance() != Some(hello.instance)
        });
        let rival = rival.map(|(id, _)| *id);
        let full = self.entries.len() >= self.config.max_sessions;
        if self.draining || full || provisional >= PROVISIONAL_PER_KEY {
            self.reject(link, RejectReason::Busy);
            return;
        }
        if let Some(rival) = rival {
            if let Some(LinkState::Greeting(greeting)) = self.links.get_mut(&link) {
                greeting.waits = Some((hello, rival, now));
                self.waiting.insert(link);
            }
            self.with(rival, now, |session| session.probe(now));
            return;
        }
        self.admit(link, &hello, now);
    }

    fn admit(&mut self, link: LinkId, hello: &Hello, now: Instant) {
        let Some(LinkState::Greeting(greeting)) = self.links.remove(&link) else {
            return;
        };
        let Greeting {
            key, secret, fresh, ..
        } = *greeting;
        let session = Session::new_server(&self.config.session, fresh, hello, (link, secret), now);
        self.links.insert(link, LinkState::Member(fresh));
        self.entries.insert(
            fresh,
            Entry {
                session,
                key,
                timer: None,
                lent: 0,
            },
        );
        self.with(fresh, now, |_| {});
    }

    /// Whether a session that was asked for its newcomer's sake has answered.
    fn answer_waiting(&mut self, rival: SessionId, now: Instant) {
        let links = &self.links;
        let heard = self
            .entries
            .get(&rival)
            .and_then(|entry| entry.session.last_heard());
        let answered = self
            .waiting
            .iter()
            .copied()
            .filter(|link| match links.get(link) {
                Some(LinkState::Greeting(greeting)) => {
                    greeting.waits.is_some_and(|(_, of, since)| {
                        of == rival && heard.is_some_and(|at| at > since && at <= now)
                    })
                }
                Some(LinkState::Member(_) | LinkState::TurnedAway(_)) | None => false,
            });
        for link in answered.collect::<Vec<_>>() {
            self.turn_away(link, Some(Frame::KeyInUse), TurnedAway::KeyInUse);
        }
    }

    fn admit_waiting(&mut self, link: LinkId, now: Instant) {
        self.waiting.remove(&link);
        let Some(LinkState::Greeting(greeting)) = self.links.get_mut(&link) else {
            return;
        };
        let Some((hello, ..)) = greeting.waits.take() else {
            return;
        };
        self.admit(link, &hello, now);
    }

    fn on_resume(&mut self, link: LinkId, resume: &Resume, now: Instant) {
        let Some(LinkState::Greeting(greeting)) = self.links.get(&link) else {
            return;
        };
        if resume.instance != self.config.session.instance {
            self.reject(link, RejectReason::Restarted);
            return;
        }
        let (key, secret, id) = (greeting.key, greeting.secret.clone(), resume.session);
        let theirs = self
            .entries
            .get(&id)
            .is_some_and(|e| e.key == key && !e.session.is_ended());
        if !theirs {
            let known = self
                .tombstones
                .iter()
                .rev()
                .find(|(of, by, _)| *of == id && *by == key);
            let reason = known.map_or(RejectReason::Ended, |(.., reason)| *reason);
            self.reject(link, reason);
            return;
        }
        let mut verdict = Err(RejectReason::Ended);
        self.with(id, now, |session| {
            verdict = session.handle_resume(link, resume, secret, now);
        });
        match verdict {
            Ok(()) => {
                self.links.insert(link, LinkState::Member(id));
            }
            Err(reason) => self.reject(link, reason),
        }
    }

    fn reject(&mut self, link: LinkId, reason: RejectReason) {
        let retry_after = match reason {
            RejectReason::Busy => Duration::from_secs(5),
            RejectReason::Proof
            | RejectReason::Restarted
            | RejectReason::Expired
            | RejectReason::Superseded
            | RejectReason::Ended
            | RejectReason::Version => Duration::ZERO,
        };
        let reject = ResumeReject {
            reason,
            released: Vec::new(),
            retry_after,
        };
        let frame = Frame::ResumeReject(reject);
        self.turn_away(link, Some(frame), TurnedAway::Rejected(reason));
    }

    fn turn_away(&mut self, link: LinkId, answer: Option<Frame>, reason: TurnedAway) {
        self.waiting.remove(&link);
        self.links.insert(link, LinkState::TurnedAway(answer));
        self.answers.push(link);
        self.events
            .push_back(RegistryEvent::TurnedAway { link, reason });
    }

    /// Works on one session, and keeps its deadline, its share of memory and its place in line.
    pub fn with(&mut self, id: SessionId, now: Instant, work: impl FnOnce(&mut Session)) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let free = self.config.memory_bytes.saturating_sub(self.lent);
        entry.session.set_growth_bound(free / 2);
        work(&mut entry.session);
        self.lent = self.lent - entry.lent + entry.session.lent();
        entry.lent = entry.session.lent();
        let timer = entry.session.poll_timeout().map(|(at, _)| at);
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
                self.remember(id, key, reason);
            }
            self.events
                .push_back(RegistryEvent::Session { session: id, event });
        }
    }

    /// A confirmed session ends all others of its key (rule 9).
    fn supersede(&mut self, newest: SessionId, key: ClientKey, now: Instant) {
        let others = self
            .entries
            .iter()
            .filter(|(id, e)| **id != newest && e.key == key && !e.session.is_ended());
        for id in others.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.with(id, now, |session| session.close(CloseCode::Superseded, now));
            self.bury(id);
        }
    }

    fn remember(&mut self, id: SessionId, key: ClientKey, reason: EndReason) {
        let reason = match reason {
            EndReason::Expired => RejectReason::Expired,
            EndReason::Local(CloseCode::Superseded) => RejectReason::Superseded,
            EndReason::Local(_)
            | EndReason::Peer(_)
            | EndReason::Rejected(_)
            | EndReason::Abandoned
            | EndReason::Violation { .. } => RejectReason::Ended,
        };
        if self.tombstones.len() >= TOMBSTONES {
            self.tombstones.pop_front();
        }
        self.tombstones.push_back((id, key, reason));
    }

    /// Forgets an ended session once its last link is closed.
    fn bury(&mut self, id: SessionId) {
        let over = |entry: &Entry| entry.session.is_ended() && entry.session.link_count() == 0;
        if self.entries.get(&id).is_some_and(over)
            && let Some(entry) = self.entries.remove(&id)
        {
            self.lent -= entry.lent;
            if let Some(at) = entry.timer {
                self.timers.remove(&(at, id));
            }
            self.dirty.remove(&id);
        }
    }

    /// Ends every session, and turns away every link, whose key is no longer listed.
    pub fn retain_keys(&mut self, listed: impl Fn(&ClientKey) -> bool, now: Instant) {
        let gone = self
            .entries
            .iter()
            .filter(|(_, e)| !listed(&e.key) && !e.session.is_ended());
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.with(id, now, |session| session.close(CloseCode::KeyRemoved, now));
            self.bury(id);
        }
        let greeted = self.links.iter().filter(|(_, state)| match state {
            LinkState::Greeting(greeting) => !listed(&greeting.key),
            LinkState::Member(_) | LinkState::TurnedAway(_) => false,
        });
        for link in greeted.map(|(link, _)| *link).collect::<Vec<_>>() {
            self.turn_away(link, None, TurnedAway::KeyRemoved);
        }
    }

    /// Ends one session from this side.
    pub fn close(&mut self, id: SessionId, code: CloseCode, now: Instant) {
        self.with(id, now, |session| session.close(code, now));
        self.bury(id);
    }

    /// Ends all sessions: the daemon stops.
    pub fn close_all(&mut self, now: Instant) {
        for id in self.entries.keys().copied().collect::<Vec<_>>() {
            self.close(id, CloseCode::Asked, now);
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
            Some(LinkState::TurnedAway(answer)) => {
                let close = Frame::LinkClose {
                    reason: LinkCloseReason::Unneeded,
                };
                answer.take().is_some_and(|frame| {
                    out.push(&frame);
                    out.push(&close);
                    true
                })
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

    /// Whether a link death leaves anything to be said on it.
    pub fn has_last_words(death: LinkDeath) -> bool {
        match death {
            LinkDeath::SessionEnded | LinkDeath::Retired => true,
            LinkDeath::Transport
            | LinkDeath::Silent
            | LinkDeath::PeerClosed
            | LinkDeath::AttachFailed => false,
        }
    }
}
