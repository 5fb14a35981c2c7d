//! HELLO, RESUME, and what each side may conclude (PROTOCOL.md §2).

use super::{Config, EndReason, Event, LinkDeath, Role, Session};
use crate::flow::Flow;
use crate::id::{FlowId, Instance, LinkId, LinkNumber, Offset, Secret, SessionId};
use crate::limits;
use crate::link::{Link, Phase};
use crate::time::Instant;
use crate::wire::codec;
use crate::wire::frame::{
    Ack, Control, Frame, Hello, RejectReason, Resume, ResumeOk, ResumeReject, Welcome,
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The protocol version spoken; PROTOCOL.md §11.
pub const VERSION: u64 = 1;

/// What RESUME proves: the sender was on the link whose secret is `known`, and speaks on `new`.
fn proof_mac(
    known: &Secret,
    session: SessionId,
    instance: Instance,
    new: &Secret,
) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(known.expose()).ok()?;
    mac.update(b"tund resume");
    mac.update(&session.0);
    mac.update(&instance.0);
    mac.update(new.expose());
    Some(mac)
}

impl Session {
    /// Server: a session asked for by HELLO on `link`. WELCOME goes out first; until the client
    /// speaks after it, the session is provisional (rule 9).
    pub fn new_server(
        config: &Config,
        id: SessionId,
        hello: &Hello,
        (link, secret): (LinkId, Secret),
        now: Instant,
    ) -> Self {
        let mut session = Self::new(Role::Server, config, now);
        session.id = Some(id);
        session.peer_instance = Some(hello.instance);
        session.peer_limits = Some(hello.limits);
        let capabilities = hello.capabilities & config.capabilities;
        session.agreed = Some(capabilities);
        let welcome = Welcome {
            version: VERSION,
            capabilities,
            session: id,
            instance: config.instance,
            limits: session.limits(),
        };
        session.add_unconfirmed(link, secret, Frame::Welcome(welcome), now);
        session
    }

    fn add_unconfirmed(&mut self, id: LinkId, secret: Secret, answer: Frame, now: Instant) {
        let number = self.next_number;
        self.next_number = LinkNumber(number.0 + 1);
        self.secrets.insert(number, secret.clone());
        let mut link = Link::new(id, Phase::Unconfirmed, secret, now);
        link.number = Some(number);
        link.flow_state = true;
        link.queue(answer);
        self.links.insert(id, link);
    }

    /// Client: a transport connection to the pinned server is up; HELLO or RESUME goes out on it.
    pub fn handle_link_up(&mut self, id: LinkId, secret: Secret, now: Instant) {
        if self.ended.is_some() || self.links.len() >= limits::LINKS {
            self.events.push_back(Event::LinkDead {
                link: id,
                death: LinkDeath::AttachFailed,
            });
            return;
        }
        let newest = self.secrets.last_key_value();
        let (phase, frame) = match (self.id, self.peer_instance, newest) {
            (Some(session), Some(instance), Some((number, known))) => {
                let Some(mac) = proof_mac(known, session, instance, &secret) else {
                    return;
                };
                let resume = Resume {
                    versions: (VERSION, VERSION),
                    session,
                    instance,
                    proved: *number,
                    proof: mac.finalize().into_bytes().into(),
                };
                (Phase::ResumeSent { proved: *number }, Frame::Resume(resume))
            }
            _ => (Phase::HelloSent, Frame::Hello(self.hello())),
        };
        let early = self.early_acks();
        let mut link = Link::new(id, phase, secret, now);
        link.queue(frame);
        if !early.is_empty() {
            link.queue(Frame::FlowState(early));
        }
        self.links.insert(id, link);
    }

    /// Client: what the server does not know to have arrived, to go with RESUME: it begins to send
    /// before it has heard more, and would begin with that.
    fn early_acks(&self) -> Vec<Ack> {
        let is_owed = |flow: &&Flow| flow.ack_due || !self.is_settled(flow);
        let told = self.flows.values().filter(is_owed).map(Flow::ack);
        told.filter(|ack| ack.accepted > Offset(0))
            .take(limits::EARLY_ACKS)
            .collect()
    }

    /// Client: this link leads to another of the server's addresses than the one where the session
    /// was made. That may be another machine, so `restarted` from there ends the attempt only.
    pub fn note_elsewhere(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_elsewhere = true;
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            versions: (VERSION, VERSION),
            capabilities: self.config.capabilities,
            instance: self.config.instance,
            limits: self.limits(),
        }
    }

    /// Server: adds the link if its RESUME proves a secret that counts (rule 8). RESUME_OK goes
    /// out on it, and the state of all flows not settled.
    ///
    /// # Errors
    ///
    /// What RESUME_REJECT shall say; the link is not part of the session.
    pub fn handle_resume(
        &mut self,
        link: LinkId,
        resume: &Resume,
        secret: Secret,
        now: Instant,
    ) -> Result<(), RejectReason> {
        let (Some(id), None) = (self.id, self.ended) else {
            return Err(RejectReason::Ended);
        };
        if resume.versions.0 > VERSION || resume.versions.1 < VERSION {
            return Err(RejectReason::Version);
        }
        let known = self
            .secrets
            .get(&resume.proved)
            .ok_or(RejectReason::Proof)?;
        proof_mac(known, id, self.config.instance, &secret)
            .and_then(|mac| mac.verify_slice(&resume.proof).ok())
            .ok_or(RejectReason::Proof)?;
        if self.links.len() >= limits::LINKS {
            return Err(RejectReason::Busy);
        }
        self.make_room_for_a_secret(resume.proved);
        let number = self.next_number;
        self.add_unconfirmed(link, secret, Frame::ResumeOk(ResumeOk { number }), now);
        self.bury_suspects(now);
        if self.carrier() == Some(link) {
            self.repeat_unsettled_acks();
        } else {
            self.tell_unsettled_acks(link);
        }
        self.shorten_first_turns();
        Ok(())
    }

    /// Forgets the secret of the oldest link that was never confirmed, when there are too many. A
    /// network that lets RESUME through and no answer makes many; a session must outlive that too.
    /// The client most likely holds the confirmed one, the one that it has just proved, or one of
    /// the newest.
    fn make_room_for_a_secret(&mut self, proved: LinkNumber) {
        if self.secrets.len() < limits::SECRETS {
            return;
        }
        let confirmed = self.confirmed_number;
        let mut numbers = self.secrets.keys().copied();
        if let Some(oldest) = numbers.find(|n| *n != confirmed && *n != proved) {
            self.secrets.remove(&oldest);
        }
    }

    /// The current ACK of every flow whose last one is not known to have arrived (rule 4).
    fn repeat_unsettled_acks(&mut self) {
        for id in self.unsettled() {
            self.owe_ack(id);
        }
    }

    /// Server: a copy of the same on a link that does not carry flows. The client may know that the
    /// carrier is gone, and what it does not know to have arrived it sends again.
    fn tell_unsettled_acks(&mut self, link: LinkId) {
        let unsettled = self.unsettled();
        let Some(link) = self.links.get_mut(&link) else {
            return;
        };
        for ids in unsettled
            .chunks(codec::MAX_ACKS)
            .take(limits::LINK_FRAMES / 2)
        {
            let acks = ids.iter().filter_map(|id| Some(self.flows.get(id)?.ack()));
            link.queue(Frame::FlowState(acks.collect()));
        }
    }

    fn unsettled(&self) -> Vec<FlowId> {
        let flows = self.flows.values();
        let unsettled = flows.filter(|flow| !self.is_settled(flow));
        unsettled.map(|flow| flow.id).collect()
    }

    /// The flow's last ACK, if there was one, is known to have arrived.
    fn is_settled(&self, flow: &Flow) -> bool {
        flow.ack_on.is_none_or(|(link, position)| {
            let link = self.links.get(&link);
            link.is_some_and(|link| link.has_proved(position))
        })
    }

    /// Links that are suspect when another one joins or is heard are dead at once: what was under
    /// way on them goes out again without another round trip.
    pub(super) fn bury_suspects(&mut self, now: Instant) {
        let suspects = self
            .links
            .values()
            .filter(|link| link.suspect_since.is_some());
        let suspects: Vec<_> = suspects.map(|link| link.id).collect();
        for id in suspects {
            self.kill_link(id, LinkDeath::Silent, now);
        }
    }

    /// Client: an answer on a link whose attach is under way.
    pub(super) fn on_answer(
        &mut self,
        id: LinkId,
        phase: Phase,
        frame: Frame,
        now: Instant,
    ) -> Result<(), &'static str> {
        match (phase, frame) {
            (Phase::HelloSent, Frame::Welcome(welcome)) => {
                if self.id.is_some() {
                    self.kill_link(id, LinkDeath::AttachFailed, now);
                    return Ok(());
                }
                if welcome.version != VERSION {
                    return Err("WELCOME with a version that was not offered");
                }
                self.id = Some(welcome.session);
                self.peer_instance = Some(welcome.instance);
                self.peer_limits = Some(welcome.limits);
                self.agree(welcome.capabilities, now);
                self.join(id, LinkNumber(1), true, now);
            }
            (Phase::HelloSent, Frame::KeyInUse) => {
                self.events.push_back(Event::KeyInUse);
                self.kill_link(id, LinkDeath::AttachFailed, now);
            }
            (Phase::ResumeSent { .. }, Frame::ResumeOk(ok)) => {
                self.join(id, ok.number, false, now);
            }
            (_, Frame::ResumeReject(reject)) => self.on_reject(id, phase, &reject, now),
            (_, Frame::LinkClose { .. }) => self.kill_link(id, LinkDeath::PeerClosed, now),
            _ => return Err("a frame that does not answer HELLO or RESUME"),
        }
        Ok(())
    }

    /// A reject counts only with the current secret while no link works (rule 8); a suspect link
    /// that will never be heard again must not keep the truth from the applications.
    fn on_reject(&mut self, id: LinkId, phase: Phase, reject: &ResumeReject, now: Instant) {
        let is_elsewhere = self.links.get(&id).is_some_and(|link| link.is_elsewhere);
        self.kill_link(id, LinkDeath::AttachFailed, now);
        let reason = reject.reason;
        if matches!(reason, RejectReason::Busy | RejectReason::Version) {
            let retry_after = reject.retry_after;
            self.events.push_back(Event::AttachRefused {
                reason,
                retry_after,
            });
            return;
        }
        let current = self.secrets.last_key_value().map(|(number, _)| *number);
        let counts = matches!(phase, Phase::ResumeSent { proved } if Some(proved) == current);
        let of_another = is_elsewhere && reason == RejectReason::Restarted;
        if counts && !of_another && !self.is_attached() {
            self.trim(&reject.released);
            self.end(EndReason::Rejected(reason), None, now);
        }
    }

    /// Client: the link is part of the session.
    fn join(&mut self, id: LinkId, number: LinkNumber, first: bool, now: Instant) {
        if number < self.retired_below {
            // RETIRE of this link is on its way already.
            self.kill_link(id, LinkDeath::AttachFailed, now);
            return;
        }
        let is_first_choice = !self.is_attached();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.phase = Phase::Live;
        link.number = Some(number);
        link.flow_state = true;
        link.is_first_choice = is_first_choice;
        link.retire_due = !first;
        let secret = link.secret.clone();
        if self
            .secrets
            .last_key_value()
            .is_none_or(|(newest, _)| *newest < number)
        {
            self.secrets.clear();
            self.secrets.insert(number, secret);
        }
        self.bury_suspects(now);
        self.repeat_unsettled_acks();
        self.shorten_first_turns();
        let others = self
            .links
            .values()
            .any(|link| link.id != id && link.is_usable());
        if !others && !first {
            self.retire_older(id, now);
        }
        self.ask(id, now);
        self.heard_at = now;
        self.detached_since = None;
        self.expiries.clear();
        self.events.push_back(Event::Attached {
            link: id,
            number,
            first,
        });
        self.steer(now);
    }

    /// Client: says RETIRE, and closes what it names here too.
    pub(super) fn retire_older(&mut self, id: LinkId, now: Instant) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let Some(number) = link.number.filter(|_| link.retire_due) else {
            return;
        };
        link.retire_due = false;
        self.retired_below = self.retired_below.max(number);
        self.lane.say(Control::Retire { older_than: number });
        self.bury_older(number, now);
    }

    /// Closes every attached link numbered lower.
    pub(super) fn bury_older(&mut self, than: LinkNumber, now: Instant) {
        let older = self
            .links
            .values()
            .filter(|link| link.number.is_some_and(|n| n < than));
        let older: Vec<_> = older.map(|link| link.id).collect();
        for id in older {
            self.kill_link(id, LinkDeath::Retired, now);
        }
    }

    /// Server: the client's first frame after WELCOME or RESUME_OK has come on this link.
    pub(super) fn confirm(&mut self, id: LinkId, now: Instant) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.phase = Phase::Live;
        link.is_proven = true;
        let Some(number) = link.number else { return };
        if number > self.confirmed_number {
            self.confirmed_number = number;
            self.secrets = self.secrets.split_off(&number);
        }
        let first = !self.confirmed;
        if first {
            self.confirmed = true;
            self.events.push_back(Event::Confirmed);
        }
        self.detached_since = None;
        self.expiries.clear();
        self.ask(id, now);
        self.events.push_back(Event::Attached {
            link: id,
            number,
            first,
        });
    }
}
