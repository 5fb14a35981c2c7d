//! One flow: two halves, and what is still to be said about its end.

use crate::budget::Share;
use crate::id::{FlowId, LinkId, Offset};
use crate::mapping::Mapping;
use crate::receive_buffer::ReceiveBuffer;
use crate::send_buffer::SendBuffer;
use crate::session::{Delivery, HandedOff, Remainder};
use crate::time::Instant;
use crate::wire::frame::{Ack, FlowCode, Framing};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// Has the origin answered?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// OPEN was said; no answer yet.
    Opening,
    /// OPEN_OK was said.
    Open,
}

/// Where the flow stands in the send schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing to send.
    Idle,
    /// Has begun to send lately: served first.
    Fresh,
    /// Has used up a turn: in line with the others.
    Bulk,
}

/// What a flow carries, beside bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Nothing else.
    Plain,
    /// Messages, kept for delivery when its grace is over.
    Stored(Framing),
    /// Records of a stream that was stored.
    Delivery,
}

/// One end's view of a flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    pub(crate) stage: Stage,
    pub(crate) purpose: Purpose,
    /// Client: bytes are taken before the origin has answered.
    pub(crate) is_early: bool,
    pub(crate) grace: Duration,
    /// When it was opened, as this end knows: its grace does not run before (rule 11).
    born: Instant,
    pub(crate) tx: SendBuffer,
    pub(crate) rx: ReceiveBuffer,
    /// It carries datagrams, and neither half has bytes.
    pub(crate) mapping: Option<Box<Mapping>>,
    /// OPEN has gone out, or has come: datagrams behind it find the flow.
    pub(crate) is_asked: bool,
    /// Server: what the application does not get is held for its user's next connection.
    pub(crate) handed_off: Option<Box<HandedOff>>,
    /// Server: goes out before anything that the local socket says.
    pub(crate) prologue: VecDeque<Bytes>,
    /// Server: where the first byte that the local socket says stands, behind all of that.
    pub(crate) given: Offset,
    /// Bytes up to here may be taken from the local socket; share = this − base.
    pub(crate) intake_limit: Offset,
    pub(crate) intake_share: Share,
    /// How much the flow should be able to hold while a link is up; grows while it drains.
    pub(crate) intake_target: u64,
    pub(crate) credit_share: Share,
    pub(crate) credit_target: u64,
    /// The share never falls below: a whole message, or record, always finds room.
    pub(crate) intake_reserve: u64,
    pub(crate) credit_reserve: u64,
    /// Drained offset at the last growth of the target.
    pub(crate) credit_grown_at: Offset,
    pub(crate) intake_grown_at: Offset,
    /// The local socket was reset behind bytes that are still to be taken from it.
    pub(crate) is_failing: bool,
    /// Waits in the line for intake, or for credit.
    pub(crate) intake_starved: bool,
    pub(crate) credit_starved: bool,
    /// An event about it is in the queue already.
    pub(crate) readable_told: bool,
    pub(crate) writable_told: bool,
    /// RESET was said, ending there.
    pub(crate) reset_sent: Option<Offset>,
    /// RESET was heard, ending there.
    pub(crate) reset_received: Option<Offset>,
    /// Why, as the peer says.
    pub(crate) reset_code: Option<FlowCode>,
    /// Of the bytes that the local socket took, those that it did not get rid of before it failed.
    pub(crate) stranded: u64,
    /// Server: the socket was given up, and the owner has not said what it still had.
    pub(crate) awaits_stranded: bool,
    /// My direction is complete: released by the peer, or dropped by RESET or STOP.
    pub(crate) send_done: bool,
    /// The peer's direction is complete: delivered to its end, or dropped.
    pub(crate) receive_done: bool,
    /// RESET came after FIN was delivered: the socket is still to be reset (rule 13).
    pub(crate) reset_due: bool,
    pub(crate) done_sent: bool,
    pub(crate) done_received: bool,
    /// What was not released lies with the owner.
    pub(crate) is_handed_over: bool,
    /// Bytes that were taken here and dropped unreleased: by a RESET, a STOP or the end.
    pub(crate) lost: u64,
    /// Bytes that came and were dropped before the local socket took them.
    pub(crate) dropped: u64,
    /// The local socket is gone: no event about it any more.
    pub(crate) detached_socket: bool,
    /// Where it stands in the session's index of stalled resets.
    pub(crate) stall: Option<Instant>,
    /// Where it stands in the session's index of the ends of graces.
    pub(crate) expiry: Option<Instant>,
    /// The session counts it no more among those that live.
    pub(crate) is_past_told: bool,
    /// Last time the local socket took something, or something arrived (rule 13's 5 s).
    pub(crate) progress_at: Instant,
    /// An ACK is to be sent.
    pub(crate) ack_due: bool,
    /// Where the last ACK went, until it is known to have arrived (rule 4).
    pub(crate) ack_on: Option<(LinkId, u64)>,
    /// What the last ACK from the peer claimed, and on which link: no decrease within one.
    pub(crate) last_ack: Option<(LinkId, Ack)>,
    pub(crate) turn: Turn,
    pub(crate) deficit: i64,
}

impl Flow {
    /// It is a mapping of echo requests.
    pub(crate) fn is_echo(&self) -> bool {
        self.mapping
            .as_deref()
            .is_some_and(|mapping| mapping.is_echo)
    }

    pub(crate) fn new(id: FlowId, grace: Duration, now: Instant) -> Self {
        Self {
            id,
            stage: Stage::Opening,
            purpose: Purpose::Plain,
            is_early: false,
            grace,
            born: now,
            tx: SendBuffer::default(),
            rx: ReceiveBuffer::default(),
            mapping: None,
            is_asked: false,
            handed_off: None,
            prologue: VecDeque::new(),
            given: Offset(0),
            intake_limit: Offset(0),
            intake_share: Share::default(),
            intake_target: 0,
            credit_share: Share::default(),
            credit_target: 0,
            intake_reserve: 0,
            credit_reserve: 0,
            credit_grown_at: Offset(0),
            intake_grown_at: Offset(0),
            is_failing: false,
            intake_starved: false,
            credit_starved: false,
            readable_told: false,
            writable_told: false,
            reset_sent: None,
            reset_received: None,
            reset_code: None,
            stranded: 0,
            awaits_stranded: false,
            send_done: false,
            receive_done: false,
            reset_due: false,
            done_sent: false,
            done_received: false,
            is_handed_over: false,
            lost: 0,
            dropped: 0,
            detached_socket: false,
            stall: None,
            expiry: None,
            is_past_told: false,
            progress_at: now,
            ack_due: false,
            ack_on: None,
            last_ack: None,
            turn: Turn::Idle,
            deficit: crate::limits::QUANTUM,
        }
    }

    /// Nothing more is sent: what the peer has not released is lost.
    pub(crate) fn abandon_sending(&mut self) {
        self.lost += self.at_stake();
        self.send_done = true;
        self.tx.abandon();
    }

    /// Bytes that are lost if nothing more is sent. What a delivery carries is safe elsewhere.
    pub(crate) fn at_stake(&self) -> u64 {
        if self.send_done || self.purpose == Purpose::Delivery {
            return 0;
        }
        self.tx.unreleased() + self.prologue_bytes()
    }

    /// Nothing more is sent: what the peer has not released goes to the owner, from the last
    /// boundary on.
    pub(crate) fn hand_over(&mut self) -> Remainder {
        let remainder = Remainder {
            start: self.tx.base(),
            bytes: self.tx.held(),
            fin: self.tx.has_fin(),
        };
        self.is_handed_over = true;
        self.send_done = true;
        self.tx.abandon();
        remainder
    }

    /// The peer has said how much of what was sent has arrived, for good: the rest is lost.
    /// What was handed over, and what a delivery carries, is safe elsewhere.
    pub(crate) fn settle_lost(&mut self, released: Offset) {
        let is_counted = self.is_handed_over || self.mapping.is_some();
        if is_counted || self.purpose == Purpose::Delivery {
            return;
        }
        // What never went ahead of the local socket's bytes is lost, too.
        let end = self.tx.end().max(self.given);
        self.lost = end.since(released.min(end));
    }

    /// What has arrived for good of the peer's direction, to be said with DONE.
    pub(crate) fn delivered(&self) -> Offset {
        let left = self.rx.taken().0.saturating_sub(self.stranded);
        self.rx.released().min(Offset(left))
    }

    /// The ACK that describes this end.
    pub(crate) fn ack(&self) -> Ack {
        Ack {
            flow: self.id,
            accepted: self.rx.accepted(),
            released: self.rx.released(),
            limit: self.rx.limit(),
        }
    }

    /// When an outage that began at `since` has outlasted the flow's grace, but for the server's
    /// addition.
    pub(crate) fn expires_at(&self, since: Instant) -> Instant {
        since.max(self.born) + self.grace
    }

    /// Bytes that wait for the peer.
    pub(crate) fn retained(&self) -> u64 {
        let datagrams = self.mapping.as_ref().map_or(0, |m| m.tx.bytes());
        self.tx.retained() + u64::try_from(datagrams).unwrap_or(0)
    }

    /// Bytes that wait for the local socket.
    pub(crate) fn held(&self) -> u64 {
        let datagrams = self.mapping.as_ref().map_or(0, |m| m.rx.bytes());
        self.rx.held() + u64::try_from(datagrams).unwrap_or(0)
    }

    /// Both directions are complete here.
    pub(crate) fn is_past(&self) -> bool {
        self.send_done && self.receive_done
    }

    /// Bytes may be taken from the local socket.
    pub(crate) fn may_take(&self) -> bool {
        self.stage == Stage::Open || self.is_early
    }

    /// What is not delivered is kept, should the flow or its session end now.
    pub(crate) fn is_storable(&self) -> bool {
        matches!(self.purpose, Purpose::Stored(_))
            && self.tx.keeps_messages()
            && self.may_take()
            && !self.send_done
    }

    /// DATA, or datagrams, could be sent at once. Those need not wait for the origin's answer, but for
    /// their OPEN to go out; on another link it goes first again.
    pub(crate) fn is_ready(&self) -> bool {
        if let Some(mapping) = &self.mapping {
            return self.is_asked && !self.send_done && mapping.is_ready();
        }
        self.stage == Stage::Open && !self.send_done && self.tx.is_ready()
    }

    /// What comes once the queue is empty.
    pub(crate) fn delivery(&self) -> Delivery {
        if self.reset_due {
            return Delivery::Reset;
        }
        if self.receive_done {
            return Delivery::Ended;
        }
        match self.reset_received {
            Some(end) if self.rx.is_taken_to(end) => Delivery::Reset,
            _ if self.rx.is_at_fin() => Delivery::Fin,
            _ => Delivery::Open,
        }
    }

    /// Both directions are complete and the peer has not been told.
    pub(crate) fn owes_done(&self) -> bool {
        let is_known = !self.reset_due && !self.awaits_stranded;
        self.send_done && self.receive_done && !self.done_sent && is_known
    }

    pub(crate) fn is_over(&self) -> bool {
        self.done_sent && self.done_received
    }
}
