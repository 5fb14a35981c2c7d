//! One link of a session: is it attached, is it alive, what has it proved.

use crate::id::{LinkId, LinkNumber, Secret};
use crate::limits;
use crate::session::Progress;
use crate::time::Instant;
use crate::wire::codec;
use crate::wire::frame::Frame;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::Duration;

/// How far the attach of a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Client: HELLO was sent.
    HelloSent,
    /// Client: RESUME was sent, proving the secret of that link.
    ResumeSent {
        /// The link whose secret is proved.
        proved: LinkNumber,
    },
    /// Server: WELCOME or RESUME_OK was sent, and no frame of the client has come since.
    Unconfirmed,
    /// Carries frames of the session.
    Live,
}

/// A PING on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    nonce: u64,
    /// When it was queued; a full send queue must not hide an outage.
    asked_at: Instant,
    /// Unset until it has gone into an outbox.
    taken_at: Option<Instant>,
    /// Frames sent on the link before it; proved to have arrived by its PONG.
    position: u64,
    /// When the next look at the kernel's progress is due.
    check_at: Instant,
    /// The kernel was asked because the PONG is overdue.
    overdue: bool,
    /// What the kernel said last, and when.
    baseline: Option<(Progress, Instant)>,
}

/// What a deadline of a link asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Send a PING.
    Ping,
    /// A PONG is overdue: ask the kernel whether bytes move.
    Check,
    /// Nothing was heard for too long.
    Silent,
    /// The attach was not confirmed in time.
    AttachTimeout,
    /// It has had its time to run empty.
    Leave,
}

/// What the kernel's word on a link comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing new.
    AsBefore,
    /// The link has become suspect.
    Suspect,
    /// What was sent on the suspect link arrives.
    Passes,
}

/// What a link's duties depend on beside itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    pub(crate) is_client: bool,
    /// The session has flows or unacknowledged control messages.
    pub(crate) is_busy: bool,
    /// Links of the session that work.
    pub(crate) working: usize,
}

/// A link that is not needed any more and runs empty first: what was sent there before the peer
/// followed to another one still arrives.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// Not later.
    by: Instant,
    /// The PING behind everything; its PONG is behind everything of the peer's.
    nonce: Option<u64>,
}

/// Round-trip time as TCP estimates it (RFC 6298 §2).
#[derive(Clone, Copy, Debug, Default)]
struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    samples: u8,
}

impl RoundTrip {
    fn sample(&mut self, rtt: Duration) {
        self.samples = self.samples.saturating_add(1);
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
    }

    /// Most PONGs have come by then.
    fn usual(&self) -> Duration {
        self.within(1)
    }

    fn pong_expected(&self) -> Duration {
        self.within(4)
    }

    fn within(&self, variations: u32) -> Duration {
        self.smoothed.map_or(limits::PONG_FIRST, |smoothed| {
            limits::PONG_MIN.max(smoothed + self.variation * variations)
        })
    }
}

/// A link, from the moment its transport connection is up.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) phase: Phase,
    pub(crate) number: Option<LinkNumber>,
    pub(crate) secret: Secret,
    since: Instant,
    last_heard: Instant,
    /// Silence counts from here: the last frame that was no PING or PONG, or my first frame after
    /// everything was proved.
    quiet_from: Instant,
    /// PINGs sent in this silence: the next is due after 2^(n + 1) − 1 seconds.
    ping_step: u32,
    ping: Option<Ping>,
    /// Frames sent that the session relies on.
    position: u64,
    /// Of these, so many are known to have arrived.
    proved: u64,
    /// Bytes handed out for it, up to [`limits::FIRST_BYTES`].
    pub(crate) early_bytes: usize,
    pub(crate) suspect_since: Option<Instant>,
    /// Suspect, heard since, and what was sent on it may not pass all the same: the kernel's pause
    /// before it sends again can be long, and the peer's was over first.
    pub(crate) is_half_heard: bool,
    /// The owner knows that nothing passes: what is still read had come before.
    is_lost: bool,
    rtt: RoundTrip,
    /// A PONG has come: frames pass both ways.
    pub(crate) is_proven: bool,
    /// Client: the owner's order of preference, the least first.
    pub(crate) preference: u32,
    /// Client: stays although it carries nothing.
    pub(crate) is_kept: bool,
    leaving: Option<Leaving>,
    /// Client: RETIRE of older links was not said yet.
    pub(crate) retire_due: bool,
    /// ACKs go out packed, as FLOW_STATE.
    pub(crate) flow_state: bool,
    /// It joined while no other link was there, so that flows are on it from the start.
    pub(crate) is_first_choice: bool,
    /// Client: leads to another address of the server than the one where the session was made.
    pub(crate) is_elsewhere: bool,
    /// Frames of the link itself, before all others.
    frames: VecDeque<Frame>,
    partial: BytesMut,
}

impl Link {
    pub(crate) fn new(id: LinkId, phase: Phase, secret: Secret, now: Instant) -> Self {
        Self {
            id,
            phase,
            number: None,
            secret,
            since: now,
            last_heard: now,
            quiet_from: now,
            ping_step: 0,
            ping: None,
            position: 0,
            proved: 0,
            early_bytes: 0,
            suspect_since: None,
            is_half_heard: false,
            is_lost: false,
            rtt: RoundTrip::default(),
            is_proven: false,
            preference: 0,
            is_kept: false,
            leaving: None,
            retire_due: false,
            flow_state: false,
            is_first_choice: false,
            is_elsewhere: false,
            frames: VecDeque::new(),
            partial: BytesMut::new(),
        }
    }

    /// Carries frames of the session, at least towards the peer.
    pub(crate) fn is_usable(&self) -> bool {
        matches!(self.phase, Phase::Live | Phase::Unconfirmed)
    }

    /// Is attached and answers.
    pub(crate) fn is_working(&self) -> bool {
        self.phase == Phase::Live && self.suspect_since.is_none()
    }

    /// Since when the peer owes an answer, while the link is suspect: its first frame that is not
    /// known to have arrived, or else the PING.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        let asked = self.suspect_since?;
        let is_owing = self.position > self.proved;
        Some(if is_owing {
            asked.min(self.quiet_from)
        } else {
            asked
        })
    }

    pub(crate) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    pub(crate) fn smoothed_rtt(&self) -> Option<Duration> {
        self.rtt.smoothed
    }

    /// Queues a frame of the link itself.
    ///
    /// # Errors
    ///
    /// False if the peer lets too many pile up.
    pub(crate) fn queue(&mut self, frame: Frame) -> bool {
        self.frames.push_back(frame);
        self.frames.len() <= limits::LINK_FRAMES
    }

    /// Queues a PING unless one is on its way; true if so.
    pub(crate) fn ask(&mut self, nonce: u64, now: Instant) -> bool {
        if self.ping.is_some() {
            return false;
        }
        self.ping = Some(Ping {
            nonce,
            asked_at: now,
            taken_at: None,
            position: 0,
            check_at: now + self.rtt.pong_expected(),
            overdue: false,
            baseline: None,
        });
        self.frames.push_back(Frame::Ping { nonce });
        self.ping_step = self.ping_step.saturating_add(1).min(16);
        true
    }

    pub(crate) fn has_frames(&self) -> bool {
        !self.frames.is_empty()
    }

    /// The next frame of the link itself.
    pub(crate) fn take_frame(&mut self, now: Instant) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        if matches!(frame, Frame::Ping { .. })
            && let Some(ping) = &mut self.ping
        {
            ping.taken_at = Some(now);
            ping.position = self.position;
        }
        Some(frame)
    }

    /// Counts a frame that the session relies on; returns its place on this link.
    pub(crate) fn count_frame(&mut self, now: Instant) -> u64 {
        if self.position == self.proved {
            self.quiet_from = self.quiet_from.max(now);
            self.ping_step = 0;
        }
        self.position += 1;
        self.position
    }

    pub(crate) fn has_proved(&self, position: u64) -> bool {
        self.proved >= position
    }

    /// Some frame has come; true if the link is suspect.
    pub(crate) fn heard(&mut self, frame: &Frame, now: Instant) -> bool {
        self.last_heard = now;
        if !matches!(frame, Frame::Ping { .. } | Frame::Pong { .. }) {
            self.quiet_from = now;
            self.ping_step = 0;
        }
        !self.is_lost && self.suspect_since.is_some()
    }

    /// It is suspect no longer.
    pub(crate) fn trust(&mut self) {
        self.suspect_since = None;
        self.is_half_heard = false;
    }

    /// A PING was sent, and this frame does not answer it.
    pub(crate) fn owes_pong(&self, frame: &Frame) -> bool {
        let is_answer =
            |nonce| matches!(frame, Frame::Pong { nonce: answered } if *answered == nonce);
        self.ping.is_some_and(|ping| !is_answer(ping.nonce))
    }

    /// A PONG has come; if it answers the PING on its way, when that was asked for.
    pub(crate) fn pong(&mut self, nonce: u64, was_suspect: bool, now: Instant) -> Option<Instant> {
        let ping = self.ping?;
        let taken_at = ping.taken_at.filter(|_| ping.nonce == nonce)?;
        self.ping = None;
        self.is_proven = true;
        self.proved = self.proved.max(ping.position);
        if !was_suspect {
            self.rtt.sample(now.saturating_duration_since(taken_at));
        }
        Some(ping.asked_at)
    }

    /// Too little is known of its round-trip time to tell soon that a PONG is overdue.
    pub(crate) fn wants_samples(&self) -> bool {
        self.rtt.samples < limits::FIRST_SAMPLES
    }

    /// A PING that only measures says nothing about a silence.
    pub(crate) fn forget_step(&mut self) {
        self.ping_step = 1;
    }

    /// The owner knows that nothing passes any more.
    pub(crate) fn lose(&mut self, now: Instant) {
        self.is_lost = true;
        self.suspect_since.get_or_insert(now);
    }

    /// The owner has said so, and has not found it again.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Something may pass again, which the next frame shows.
    pub(crate) fn find(&mut self) {
        self.is_lost = false;
    }

    /// The link is to run empty.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.leaving.get_or_insert(Leaving {
            by: now + limits::LEAVING,
            nonce: None,
        });
    }

    /// The link is needed again.
    pub(crate) fn stay(&mut self) {
        self.leaving = None;
    }

    /// A PING is still to be sent that shows when the link is empty.
    pub(crate) fn wants_last_ping(&self) -> bool {
        let waits = |leaving: Leaving| leaving.nonce.is_none();
        self.ping.is_none() && self.leaving.is_some_and(waits)
    }

    /// That was the PING.
    pub(crate) fn last_ping(&mut self, nonce: u64) {
        if let Some(leaving) = &mut self.leaving {
            leaving.nonce = Some(nonce);
        }
    }

    /// Whether this PONG is the last frame that was on its way.
    pub(crate) fn is_empty_at(&self, pong: u64) -> bool {
        self.leaving
            .is_some_and(|leaving| leaving.nonce == Some(pong))
    }

    /// Another link, asked then, has answered: the network is there, and who was asked no later has no
    /// longer than it usually takes.
    pub(crate) fn expect_soon(&mut self, asked_at: Instant) {
        let usual = self.rtt.usual();
        let is_late = |ping: &&mut Ping| ping.asked_at <= asked_at && !ping.overdue;
        if let Some(ping) = self.ping.as_mut().filter(is_late) {
            ping.check_at = ping.check_at.min(ping.asked_at + usual);
        }
    }

    /// The PONG is overdue: the kernel is to be asked; next look after another round trip.
    pub(crate) fn overdue(&mut self, now: Instant) {
        let expected = self.rtt.pong_expected();
        if let Some(ping) = &mut self.ping {
            ping.overdue = true;
            ping.check_at = now + expected;
        }
    }

    /// What the kernel says while a PONG is awaited.
    pub(crate) fn judge(&mut self, progress: Progress, now: Instant) -> Verdict {
        let last_heard = self.last_heard;
        let (Some(ping), Phase::Live) = (&mut self.ping, self.phase) else {
            return Verdict::AsBefore;
        };
        if self.suspect_since.is_some() {
            let (known, _) = ping.baseline.get_or_insert((progress, now));
            return if self.is_half_heard && progress.bytes_acked > known.bytes_acked {
                Verdict::Passes
            } else {
                Verdict::AsBefore
            };
        }
        let was_overdue = std::mem::take(&mut ping.overdue);
        if let Some(round_trip) = progress.round_trip.filter(|_| !was_overdue) {
            // PINGs measure seldom, at the server hardly ever, and sometimes a queue that is gone.
            let expected = limits::PONG_MIN.max(round_trip);
            ping.check_at = ping.check_at.min(ping.asked_at + expected);
        }
        let (known, since) = ping.baseline.replace((progress, now)).unzip();
        let is_unheard = since.is_some_and(|at| last_heard <= at);
        let quiet_in = known.filter(|_| was_overdue && is_unheard);
        match quiet_in.and_then(|known| progress.quiet_in(&known)) {
            Some(Duration::ZERO) => {
                self.suspect_since = Some(ping.asked_at);
                Verdict::Suspect
            }
            Some(later) => {
                ping.check_at = ping.check_at.min(now + later);
                Verdict::AsBefore
            }
            None => Verdict::AsBefore,
        }
    }

    /// When something is due on this link, and what.
    pub(crate) fn deadline(&self, around: Around) -> Option<(Instant, Duty)> {
        if self.phase != Phase::Live {
            return Some((self.since + limits::UNCONFIRMED, Duty::AttachTimeout));
        }
        let duty = self.duty(around);
        let leave = self.leaving.map(|leaving| (leaving.by, Duty::Leave));
        match (duty, leave) {
            (Some(duty), Some(leave)) => Some(duty.min_by_time(leave)),
            (duty, leave) => duty.or(leave),
        }
    }

    fn duty(&self, around: Around) -> Option<(Instant, Duty)> {
        let silent = self.last_heard + limits::LINK_SILENT;
        if let Some(ping) = &self.ping {
            // Who was not asked for long is asked before.
            let dead = (silent.max(ping.asked_at + limits::PONG_FIRST), Duty::Silent);
            if self.suspect_since.is_some() {
                return Some(dead);
            }
            return Some((ping.check_at, Duty::Check).min_by_time(dead));
        }
        if self.suspect_since.is_some() {
            return Some((silent, Duty::Silent)); // lost, and its PONG was read since
        }
        let others = around.working.saturating_sub(self.is_working().into());
        let after = if self.ping_step == 0 && others > 0 {
            limits::PING_BESIDE
        } else {
            let seconds = (1_u64 << (self.ping_step + 1)) - 1;
            Duration::from_secs(seconds).max(limits::PING_AFTER)
        };
        let step = self.quiet_from + after;
        let mut due = None;
        if self.position > self.proved || after <= limits::LATELY {
            due = Some((step, Duty::Ping));
        }
        if around.is_busy && around.is_client {
            let keepalive = (self.last_heard + limits::KEEPALIVE, Duty::Ping);
            due = Some(due.map_or(keepalive, |d| d.min_by_time(keepalive)));
        }
        if around.is_busy && !around.is_client {
            let dead = (silent, Duty::Silent);
            due = Some(due.map_or(dead, |d| d.min_by_time(dead)));
        }
        due
    }

    /// Takes the next whole frame out of what has arrived.
    ///
    /// # Errors
    ///
    /// Bytes that are no frame.
    pub(crate) fn next_frame(&mut self, input: &mut Bytes) -> Result<Option<Frame>, &'static str> {
        if self.partial.is_empty() {
            let frame = codec::decode(input).map_err(|e| e.what())?;
            if frame.is_none() && !input.is_empty() {
                self.partial.extend_from_slice(input);
                *input = Bytes::new();
            }
            return Ok(frame);
        }
        while !input.is_empty() {
            let missing = missing_bytes(&self.partial).clamp(1, input.len());
            self.partial.extend_from_slice(&input.split_to(missing));
            if missing_bytes(&self.partial) > 0 {
                continue;
            }
            let mut whole = self.partial.split().freeze();
            let frame = codec::decode(&mut whole).map_err(|e| e.what())?;
            if frame.is_some() {
                return Ok(frame);
            }
            self.partial.extend_from_slice(&whole);
        }
        Ok(None)
    }
}

/// How many bytes a frame that has begun still lacks, as far as its header tells.
fn missing_bytes(partial: &[u8]) -> usize {
    let Some([_, a, b, c]) = partial.first_chunk::<{ codec::HEADER }>() else {
        return codec::HEADER - partial.len();
    };
    let body = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    (codec::HEADER + body.min(codec::MAX_BODY)).saturating_sub(partial.len())
}

/// The earlier of two deadlines.
trait MinByTime {
    fn min_by_time(self, other: Self) -> Self;
}

impl MinByTime for (Instant, Duty) {
    fn min_by_time(self, other: Self) -> Self {
        if other.0 < self.0 { other } else { self }
    }
}
