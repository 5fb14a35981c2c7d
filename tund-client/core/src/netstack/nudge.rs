//! Making smoltcp do what it has no call for, by segments that nobody but it sees.

use smoltcp::socket::tcp::{Socket, State};

use super::answer;
use super::device::{Occasion, Port, Sink};
use super::table::{Connection, Live, Phase};
use super::{Netstack, to_smoltcp};

/// What a segment from the application would have to say at this moment, and what one to it.
struct Numbers {
    /// The next number that the application has to send.
    expected: u32,
    /// The next that it has to acknowledge.
    acknowledged: u32,
}

impl Numbers {
    /// `None` before our SYN was sent.
    fn new(live: &Live, socket: &Socket<'_>) -> Option<Self> {
        let state = socket.state();
        let window = &live.wire.window;
        let received = window.taken() + u64::try_from(socket.recv_queue()).ok()?;
        let fin = u32::from(super::ingress::has_app_finished(state));
        let acknowledged = live.sent - u64::try_from(socket.send_queue()).ok()?;
        let low = u32::try_from(acknowledged & u64::from(u32::MAX)).ok()?;
        let own_fin = u32::from(matches!(state, State::FinWait2 | State::TimeWait));
        let first = live.wire.isn?.wrapping_add(1);
        Some(Self {
            expected: window.sequence(received).wrapping_add(fin),
            acknowledged: first.wrapping_add(low).wrapping_add(own_fin),
        })
    }
}

/// Something was sent to the application that it has not acknowledged.
pub(super) fn waits_for_answer(socket: &Socket<'_>) -> bool {
    let state = socket.state();
    socket.send_queue() > 0
        || matches!(
            state,
            State::SynReceived | State::FinWait1 | State::Closing | State::LastAck
        )
}

impl Netstack {
    /// Makes smoltcp send an ACK, by showing it a byte again that it has acknowledged before.
    ///
    /// It has no other way of being made to, and its own idea of the window must go along: it
    /// accepts nothing beyond what it believes to have promised.
    pub(super) fn state_window(&mut self, index: u32, sink: &mut dyn Sink) {
        self.feed(index, sink, |connection, numbers, out| {
            let sequence = numbers.expected.wrapping_sub(1);
            answer::repeated_byte(&connection.key, sequence, numbers.acknowledged, out)
        });
    }

    /// Helps a connection whose deadline has passed although smoltcp has none.
    ///
    /// When a third duplicate ACK comes while nothing but a FIN is under way, and when a window
    /// opens after a probe while bytes before it are lost, smoltcp stops its retransmission timer
    /// and never starts it again: the FIN, or the bytes, would not arrive.
    pub(super) fn rescue(&mut self, index: u32, sink: &mut dyn Sink) {
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        if !live.timed_out || !live.is_stuck {
            return;
        }
        self.stats.rescued += 1;
        if self.slots.get(live.slot).socket().send_queue() > 0 {
            self.duplicate_acks(index, sink);
        } else {
            self.repeat_fin(index, sink);
        }
    }

    /// Makes smoltcp retransmit the first unacknowledged bytes, and start its timer, by three
    /// duplicate ACKs. Two others before them make sure that it counts from zero: an ACK with
    /// another window is no duplicate.
    fn duplicate_acks(&mut self, index: u32, sink: &mut dyn Sink) {
        for is_other in [true, false, false, false, false] {
            self.feed(index, sink, |connection, numbers, out| {
                let Phase::Live(live) = &connection.phase else {
                    return None;
                };
                let window = live.peer_window ^ u16::from(is_other);
                answer::ack_from_app(
                    &connection.key,
                    (numbers.expected, numbers.acknowledged),
                    window,
                    out,
                )
            });
        }
    }

    /// Sends the FIN again that is under way.
    fn repeat_fin(&mut self, index: u32, sink: &mut dyn Sink) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        let key = connection.key;
        let Phase::Live(live) = &mut connection.phase else {
            return;
        };
        let socket = self.slots.get(live.slot).socket();
        if socket.state() == State::SynReceived {
            return;
        }
        let Some(numbers) = Numbers::new(live, socket) else {
            return;
        };
        let window = live.wire.window.announce(numbers.expected, false);
        self.outlet.send_complete(&mut self.stats, sink, |out| {
            answer::fin(&key, (numbers.acknowledged, numbers.expected), window, out)
        });
    }

    /// Shows smoltcp a segment that `write` makes.
    fn feed(
        &mut self,
        index: u32,
        sink: &mut dyn Sink,
        write: impl FnOnce(&Connection, &Numbers, &mut [u8]) -> Option<usize>,
    ) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        let Phase::Live(live) = &connection.phase else {
            return;
        };
        let slot = self.slots.get(live.slot);
        let Some(numbers) = Numbers::new(live, slot.socket()) else {
            return;
        };
        let mut buf = [0; 64];
        let Some(len) = write(connection, &numbers, &mut buf) else {
            return;
        };
        let Phase::Live(live) = &mut connection.phase else {
            return;
        };
        let mut port = Port {
            incoming: Some(&buf[..len]),
            occasion: Occasion::Reply,
            wire: &mut live.wire,
            outlet: &mut self.outlet,
            stats: &mut self.stats,
            sink,
        };
        self.interface
            .poll_ingress_single(to_smoltcp(self.now), &mut port, &mut slot.sockets);
    }
}
