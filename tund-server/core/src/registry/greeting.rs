//! Links before they belong to a session: the first frame, and the verdict on it.

use super::{
    Answer, ClientKey, GREETING_TIME, GREETINGS_PER_KEY, KEY_IN_USE_WAIT, LinkState,
    PROVISIONAL_PER_KEY, Registry, RegistryEvent,
};
use bytes::{Bytes, BytesMut};
use tund_session::limits::EARLY_ACKS;
use tund_session::session::VERSION;
use tund_session::wire::codec::{self, HEADER, max_body};
use tund_session::wire::frame::{Frame, Hello, RejectReason, Resume};
use tund_session::{Instant, LinkId, Secret, Session, SessionId};

/// The longest first frame: RESUME, or HELLO.
const FIRST_FRAME_MAX: usize = HEADER + {
    if max_body::RESUME > max_body::HELLO {
        max_body::RESUME
    } else {
        max_body::HELLO
    }
};

/// The longest that may come before the verdict: a first frame, and the state of flows behind RESUME.
const FIRST_BYTES_MAX: usize = FIRST_FRAME_MAX + HEADER + EARLY_ACKS * ACK_MAX;
/// An entry of FLOW_STATE: four integers.
const ACK_MAX: usize = 4 * 8;

/// Why a link was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// RESUME or HELLO was answered by RESUME_REJECT.
    Rejected(RejectReason),
    /// Its key has far too many links that were turned away; it is not even answered.
    Crowded,
    /// HELLO was answered by KEY_IN_USE.
    KeyInUse,
    /// The first frame was neither HELLO nor RESUME, or more came before the answer.
    NotUnderstood,
    /// There was no first frame in time.
    Silent,
    /// The key was removed from the list.
    KeyRemoved,
}

/// A link that has proved a key, before it is part of a session.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) key: ClientKey,
    secret: Secret,
    /// The id a new session would get: drawn by the driver.
    fresh: SessionId,
    partial: BytesMut,
    /// HELLO waits for an attached session of the same key to answer, or not.
    wait: Option<Wait>,
    /// Nothing takes longer.
    until: Instant,
    /// What stands in `greeting_timers`.
    timer: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    hello: Hello,
    rival: SessionId,
    /// Something of the rival has come since.
    is_heard: bool,
}

impl Registry {
    /// A link has proved `key`. `fresh` is drawn at random, for the case that it asks for a session.
    pub fn handle_link_up(
        &mut self,
        link: LinkId,
        key: ClientKey,
        secret: Secret,
        fresh: SessionId,
        now: Instant,
    ) {
        let until = now + GREETING_TIME;
        let greeting = Greeting {
            key,
            secret,
            fresh,
            partial: BytesMut::new(),
            wait: None,
            until,
            timer: until,
        };
        self.handle_link_down(link, now);
        self.links
            .insert(link, LinkState::Greeting(Box::new(greeting)));
        self.greeting_timers.insert((until, link));
        let of = self.keys.entry(key).or_default();
        of.greetings.insert(link);
        let count = of.greetings.len() + of.parting;
        if count > GREETINGS_PER_KEY * 2 {
            self.turn_away(link, Answer::Nothing, TurnedAway::Crowded);
        } else if count > GREETINGS_PER_KEY {
            self.reject(link, RejectReason::Busy);
        }
    }

    fn greeting(&mut self, link: LinkId) -> Option<&mut Greeting> {
        match self.links.get_mut(&link)? {
            LinkState::Greeting(greeting) => Some(greeting),
            LinkState::Member(_) | LinkState::TurnedAway { .. } => None,
        }
    }

    /// Bytes before the verdict: HELLO and nothing behind it, as nothing could be known yet, or RESUME
    /// and perhaps what the client has of flows.
    pub(super) fn greet(&mut self, link: LinkId, bytes: &Bytes, now: Instant) {
        let Some(greeting) = self.greeting(link) else {
            return;
        };
        let is_too_much = greeting.partial.len() + bytes.len() > FIRST_BYTES_MAX;
        if greeting.wait.is_some() || is_too_much {
            self.turn_away(link, Answer::Nothing, TurnedAway::NotUnderstood);
            return;
        }
        greeting.partial.extend_from_slice(bytes);
        let is_too_long = |len: usize| len > FIRST_FRAME_MAX;
        if codec::frame_len(&greeting.partial).is_ok_and(|len| len.is_some_and(is_too_long)) {
            self.turn_away(link, Answer::Nothing, TurnedAway::NotUnderstood);
            return;
        }
        let mut input = Bytes::copy_from_slice(&greeting.partial);
        let frame = codec::decode(&mut input);
        match frame {
            Ok(None) => {}
            Ok(Some(Frame::Hello(hello))) if input.is_empty() => {
                self.judge(link, &hello, None, now);
            }
            Ok(Some(Frame::Resume(resume))) => {
                self.on_resume(link, &resume, now);
                if !input.is_empty() {
                    self.handle_bytes(link, input, now);
                }
            }
            Ok(Some(_)) | Err(_) => {
                self.turn_away(link, Answer::Nothing, TurnedAway::NotUnderstood);
            }
        }
    }

    /// The one verdict on a HELLO. `silent`: an attached session that did not answer in time.
    fn judge(&mut self, link: LinkId, hello: &Hello, silent: Option<SessionId>, now: Instant) {
        let Some(key) = self.greeting(link).map(|greeting| greeting.key) else {
            return;
        };
        if hello.versions.0 > VERSION || hello.versions.1 < VERSION {
            self.reject(link, RejectReason::Version);
            return;
        }
        if self.draining || self.is_full(&key) {
            self.reject(link, RejectReason::Busy);
            return;
        }
        if let Some(rival) = self.rival(&key, hello, silent) {
            self.wait_for(link, hello, rival, now);
            return;
        }
        let Some(LinkState::Greeting(greeting)) = self.links.remove(&link) else {
            return;
        };
        self.forget_greeting(link, &greeting);
        let offer = (greeting.secret, greeting.fresh);
        self.admit(link, key, hello, offer, now);
    }

    /// No room for another session of this key.
    fn is_full(&self, key: &ClientKey) -> bool {
        let of_key = self.keys.get(key).map(|of| &of.sessions);
        let sessions = of_key.into_iter().flatten();
        let (mut any, mut provisional) = (false, 0);
        for id in sessions {
            any = true;
            let entry = self.entries.get(id);
            provisional += usize::from(entry.is_some_and(|e| !e.session.is_confirmed()));
        }
        let is_crowded = !any && self.entries.len() >= self.config.max_sessions;
        is_crowded || provisional >= PROVISIONAL_PER_KEY
    }

    /// An attached session of another start of the client.
    fn rival(
        &self,
        key: &ClientKey,
        hello: &Hello,
        silent: Option<SessionId>,
    ) -> Option<SessionId> {
        let others = self.keys.get(key)?.sessions.iter();
        let mut rivals = others.filter(|id| {
            let session = self.entries.get(id).map(|entry| &entry.session);
            Some(**id) != silent
                && session.is_some_and(|s| {
                    s.is_confirmed() && s.is_attached() && s.peer_instance() != Some(hello.instance)
                })
        });
        rivals.next().copied()
    }

    /// Asks the rival whether it is alive, and gives it time.
    fn wait_for(&mut self, link: LinkId, hello: &Hello, rival: SessionId, now: Instant) {
        let Some(greeting) = self.greeting(link) else {
            return;
        };
        greeting.wait = Some(Wait {
            hello: *hello,
            rival,
            is_heard: false,
        });
        let (old, timer) = (greeting.timer, now + KEY_IN_USE_WAIT);
        greeting.timer = timer;
        self.greeting_timers.remove(&(old, link));
        self.greeting_timers.insert((timer, link));
        self.waiting.insert((rival, link));
        self.with(rival, now, |session| session.probe(now));
    }

    /// Links that wait for `rival`.
    fn waiting_for(&self, rival: SessionId) -> Vec<LinkId> {
        let range = (rival, LinkId(0))..=(rival, LinkId(u64::MAX));
        self.waiting.range(range).map(|(_, link)| *link).collect()
    }

    /// Somebody waits for `rival` to answer, and what comes on `link` would be one: what was under way
    /// on a link that is dead for the session says nothing of its client.
    pub(super) fn is_waited_for(&self, rival: SessionId, link: LinkId) -> bool {
        let lives = |session: &Session| session.live_links().any(|(live, _)| live == link);
        !self.waiting.is_empty() && self.session(rival).is_some_and(lives)
    }

    /// Something of a session has come.
    ///
    /// The verdict still waits for its time: bytes of a client that was killed may be under way,
    /// and the end of its link behind them.
    pub(super) fn note_heard(&mut self, rival: SessionId) {
        for link in self.waiting_for(rival) {
            if let Some(wait) = self.greeting(link).and_then(|g| g.wait.as_mut()) {
                wait.is_heard = true;
            }
        }
    }

    /// The session that some wait for has no link any more. One that only fell silent has its time.
    pub(super) fn judge_waiting(&mut self, rival: SessionId, now: Instant) {
        for link in self.waiting_for(rival) {
            if let Some(wait) = self.take_wait(link) {
                self.judge(link, &wait.hello, None, now);
            }
        }
    }

    fn take_wait(&mut self, link: LinkId) -> Option<Wait> {
        let wait = self.greeting(link)?.wait.take()?;
        self.waiting.remove(&(wait.rival, link));
        Some(wait)
    }

    /// The time of a greeting, or of its wait, is over.
    pub(super) fn greeting_over(&mut self, link: LinkId, now: Instant) {
        let Some(greeting) = self.greeting(link) else {
            return;
        };
        let is_late = greeting.until <= now;
        match self.take_wait(link) {
            None => self.turn_away(link, Answer::Nothing, TurnedAway::Silent),
            Some(wait) if wait.is_heard || is_late => {
                self.turn_away(link, Answer::KeyInUse, TurnedAway::KeyInUse);
            }
            Some(wait) => self.judge(link, &wait.hello, Some(wait.rival), now),
        }
    }

    fn on_resume(&mut self, link: LinkId, resume: &Resume, now: Instant) {
        let Some(greeting) = self.greeting(link) else {
            return;
        };
        let (key, secret, id) = (greeting.key, greeting.secret.clone(), resume.session);
        if let Some(tombstone) = self.tombstones.of(id, key) {
            let reason = tombstone.end.told();
            let answer = Answer::Ended {
                session: id,
                reason,
                told: 0,
            };
            self.turn_away(link, answer, TurnedAway::Rejected(reason));
            return;
        }
        if resume.instance != self.config.session.instance {
            self.reject(link, RejectReason::Restarted);
            return;
        }
        let entry = self.entries.get(&id);
        if entry.is_none_or(|e| e.key != key || e.session.is_ended()) {
            self.reject(link, RejectReason::Ended);
            return;
        }
        let mut verdict = Err(RejectReason::Ended);
        self.with(id, now, |session| {
            verdict = session.handle_resume(link, resume, secret, now);
        });
        if let Err(reason) = verdict {
            self.reject(link, reason);
        } else if let Some(LinkState::Greeting(greeting)) =
            self.links.insert(link, LinkState::Member(id))
        {
            self.forget_greeting(link, &greeting);
        }
    }

    pub(super) fn reject(&mut self, link: LinkId, reason: RejectReason) {
        self.turn_away(link, Answer::Reject(reason), TurnedAway::Rejected(reason));
    }

    pub(super) fn turn_away(&mut self, link: LinkId, answer: Answer, reason: TurnedAway) {
        if let Some(greeting) = self.greeting(link) {
            let key = greeting.key;
            let state = LinkState::TurnedAway { key, answer };
            self.keys.entry(key).or_default().parting += 1;
            if let Some(LinkState::Greeting(greeting)) = self.links.insert(link, state) {
                self.forget_greeting(link, &greeting);
            }
        }
        self.answers.push(link);
        self.events
            .push_back(RegistryEvent::TurnedAway { link, reason });
    }

    /// A link that was turned away is closed.
    pub(super) fn forget_parting(&mut self, key: ClientKey) {
        if let Some(of) = self.keys.get_mut(&key) {
            of.parting = of.parting.saturating_sub(1);
        }
        self.forget_key(key);
    }

    /// The link is no greeting any more.
    pub(super) fn forget_greeting(&mut self, link: LinkId, greeting: &Greeting) {
        self.greeting_timers.remove(&(greeting.timer, link));
        if let Some(wait) = greeting.wait {
            self.waiting.remove(&(wait.rival, link));
        }
        if let Some(of) = self.keys.get_mut(&greeting.key) {
            of.greetings.remove(&link);
        }
        self.forget_key(greeting.key);
    }

    pub(super) fn greetings_of(&self, key: &ClientKey) -> Vec<LinkId> {
        let of_key = self.keys.get(key).into_iter();
        of_key.flat_map(|of| of.greetings.iter().copied()).collect()
    }
}
