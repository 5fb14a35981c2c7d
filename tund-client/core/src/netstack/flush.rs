//! Packets to the TUN device: what each connection has to say, once per batch, and the deadlines.

use std::time::Duration;

use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::State;
use tund_session::Instant;

use super::answer::{self, Speaker};
use super::device::{Occasion, Port, Sink};
use super::event::{NetEvent, Refusal};
use super::nudge::waits_for_answer;
use super::table::{Ending, Notice, Phase};
use super::{GIVE_UP_AFTER, GIVE_UP_SYN_AFTER, Netstack, from_smoltcp, to_smoltcp};

/// smoltcp is not asked again sooner than this, whatever it says, so that nobody spins.
const LEAST_PAUSE: Duration = Duration::from_millis(1);
/// smoltcp retransmits no later than this, if it retransmits at all.
const LONGEST_RTO: Duration = Duration::from_secs(61);
/// A connection that waits for an answer that smoltcp will not ask for again is helped after this.
const RESCUE_AFTER: Duration = Duration::from_secs(1);

impl Netstack {
    /// Sends what there is to send, for each connection that anything happened to.
    pub fn flush(&mut self, now: Instant, sink: &mut dyn Sink) {
        self.advance(now);
        let mut list = std::mem::replace(&mut self.dirty, std::mem::take(&mut self.spare));
        for index in list.drain(..) {
            let Some(connection) = self.table.at(index) else {
                continue;
            };
            connection.dirty = false;
            match connection.phase {
                Phase::Held(_) => self.answer_held(index, sink),
                Phase::Live(_) => self.settle(index, sink),
            }
        }
        self.spare = list;
    }

    /// Does what is due at `now`, and flushes.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut dyn Sink) {
        self.advance(now);
        while let Some(index) = self.timers.pop(&mut self.table, self.now) {
            match self.table.at(index).map(|connection| &mut connection.phase) {
                Some(Phase::Live(live)) => {
                    live.timed_out = true;
                    self.mark_dirty(index);
                }
                Some(Phase::Held(held)) if held.expires > self.now => {
                    let expires = held.expires;
                    self.timers.arm(&mut self.table, index, expires);
                }
                Some(Phase::Held(_)) => self.forget_held(index),
                None => {}
            }
        }
        self.stats.slots_idled += self.slots.sweep(self.now);
        self.flush(now, sink);
    }

    /// Turns a held SYN down as the owner said.
    fn answer_held(&mut self, index: u32, sink: &mut dyn Sink) {
        let Some(Phase::Held(held)) = self.table.at(index).map(|c| &c.phase) else {
            return;
        };
        let kind = match held.refusal {
            None | Some(Refusal::Silence) => return,
            Some(Refusal::Reset) => None,
            Some(Refusal::Unreachable(kind)) => Some(kind),
        };
        let Some(connection) = self.table.remove(index) else {
            return;
        };
        let Phase::Held(held) = connection.phase else {
            return;
        };
        let segment = held.segment;
        match kind {
            None => {
                self.outlet
                    .send_complete(&mut self.stats, sink, |out| answer::reset(&segment, out));
            }
            Some(kind) => {
                let ends = (segment.key.source().ip(), segment.key.destination().ip());
                self.send_icmp(held.headers(), ends, Speaker::Destination, kind, sink);
            }
        }
    }

    /// Carries out the owner's wishes, sends what there is to send, sees how things stand.
    pub(super) fn settle(&mut self, index: u32, sink: &mut dyn Sink) {
        if self.table.live_at(index).is_some_and(|live| live.is_over) {
            return self.conclude(index);
        }
        self.end_as_wanted(index);
        let sent_before = self.stats.packets_out;
        self.rescue(index, sink);
        self.send_own(index, sink);
        self.open_window(index, sink);
        let has_sent = self.stats.packets_out > sent_before;
        if self.has_given_up(index, has_sent) {
            self.send_own(index, sink);
        }
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let slot = self.slots.get(live.slot);
        match slot.socket().state() {
            State::Closed | State::Listen | State::TimeWait => {
                live.is_over = true;
                self.detach(index);
                self.conclude(index);
            }
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {
                let at = self.interface.poll_at(to_smoltcp(self.now), &slot.sockets);
                let at = at.map(|at| from_smoltcp(at).max(self.now + LEAST_PAUSE));
                let is_waiting = waits_for_answer(slot.socket());
                live.is_stuck = is_waiting && at.is_none_or(|at| at > self.now + LONGEST_RTO);
                let at = if live.is_stuck {
                    Some(self.now + RESCUE_AFTER)
                } else {
                    at
                };
                if let Some(at) = at {
                    self.timers.arm(&mut self.table, index, at);
                }
            }
        }
    }

    /// Starts the end of our direction that the owner has asked for, as soon as it may start.
    fn end_as_wanted(&mut self, index: u32) {
        let id = self.table.owned_id(index);
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let socket = self.slots.get(live.slot).socket();
        match live.ending {
            Ending::Open => {}
            Ending::Abandon => socket.abort(),
            // smoltcp takes the ACK of its SYN for that of its FIN if it is closed before.
            Ending::Finish if socket.state() == State::SynReceived => {}
            // In LAST-ACK, smoltcp is deaf to windows that open: no bytes may be left by then.
            Ending::Finish if socket.state() == State::CloseWait && socket.send_queue() > 0 => {}
            Ending::Finish => socket.close(),
            Ending::ResetWhenDrained
                if socket.state() == State::SynReceived || socket.send_queue() > 0 => {}
            Ending::ResetWhenDrained => {
                socket.abort();
                live.drained = Notice::Given;
                if let Some(connection) = id {
                    self.events.push_back(NetEvent::Drained { connection });
                }
            }
        }
    }

    /// Lets smoltcp send until it has nothing left to say.
    fn send_own(&mut self, index: u32, sink: &mut dyn Sink) {
        let now = to_smoltcp(self.now);
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let slot = self.slots.get(live.slot);
        let mut port = Port {
            incoming: None,
            occasion: Occasion::Own,
            wire: &mut live.wire,
            outlet: &mut self.outlet,
            stats: &mut self.stats,
            sink,
        };
        // Ends: each packet says something of what the send ring, at most, holds.
        loop {
            port.stats.egress_polls += 1;
            if self
                .interface
                .poll_egress(now, &mut port, &mut slot.sockets)
                == PollResult::None
            {
                return;
            }
        }
    }

    /// Tells the application of a window that has opened, where no other packet did.
    fn open_window(&mut self, index: u32, sink: &mut dyn Sink) {
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let socket = self.slots.get(live.slot).socket();
        let may_receive = matches!(
            socket.state(),
            State::Established | State::FinWait1 | State::FinWait2
        );
        let in_order = u64::try_from(socket.recv_queue()).unwrap_or(0);
        let segment_bytes = u64::from(live.wire.segment_bytes);
        if may_receive && live.wire.window.wants_update(in_order, segment_bytes) {
            self.stats.window_updates += 1;
            self.state_window(index, sink);
        }
    }

    /// Counts packets that were sent because a deadline had passed; true if that was the last.
    fn has_given_up(&mut self, index: u32, has_sent: bool) -> bool {
        let Some(live) = self.table.live_at(index) else {
            return false;
        };
        let timed_out = std::mem::take(&mut live.timed_out);
        if !timed_out || !has_sent {
            return false;
        }
        live.unanswered = live.unanswered.saturating_add(1);
        let socket = self.slots.get(live.slot).socket();
        let limit = if socket.state() == State::SynReceived {
            GIVE_UP_SYN_AFTER
        } else {
            GIVE_UP_AFTER
        };
        if live.unanswered <= limit {
            return false;
        }
        socket.abort();
        live.reset_by_app = Notice::Due;
        self.stats.given_up += 1;
        true
    }

    /// TCP is over: segments do not reach the connection any more, nor do deadlines.
    fn detach(&mut self, index: u32) {
        if let Some(connection) = self.table.at(index) {
            let key = connection.key;
            connection.armed = None;
            self.table.unlink(&key, index);
        }
    }

    /// Tells the owner of ends that it may know of, as all before them was read; frees what is
    /// over.
    pub(super) fn conclude(&mut self, index: u32) {
        let id = self.table.owned_id(index);
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let slot = live.slot;
        if let Some(connection) = id {
            // Who resets wants nothing more of the other direction either.
            let is_unread = self.slots.get(slot).socket().recv_queue() > 0;
            if is_unread && !(live.is_over && live.ending == Ending::ResetWhenDrained) {
                return;
            }
            if live.finished == Notice::Due {
                live.finished = Notice::Given;
                self.events.push_back(NetEvent::Finished { connection });
            }
            if live.reset_by_app == Notice::Due {
                live.reset_by_app = Notice::Given;
                self.events.push_back(NetEvent::ResetByApp { connection });
            }
            if !live.is_over {
                return;
            }
            // Over before the reset that was wanted: all was acknowledged if nothing was reset.
            let is_waited_for = live.ending == Ending::ResetWhenDrained;
            if is_waited_for && live.drained == Notice::None && live.reset_by_app == Notice::None {
                self.events.push_back(NetEvent::Drained { connection });
            }
            self.events.push_back(NetEvent::Closed { connection });
        } else if !live.is_over {
            return;
        }
        self.slots.give_back(slot);
        self.table.remove(index);
    }
}
