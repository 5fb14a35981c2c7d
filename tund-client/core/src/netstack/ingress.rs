//! Packets from the TUN device: to their connection, to the held SYNs, or to an answer.

use std::net::IpAddr;

use smoltcp::socket::tcp::State;
use tund_session::Instant;

use super::answer::{self, Speaker};
use super::datagram::Taken;
use super::device::{Occasion, Port, Sink};
use super::event::NetEvent;
use super::offload::{self, VNET_HEADER_BYTES, VnetHeader};
use super::table::{Connection, Ending, HeldSyn, Notice, Phase};
use super::{FIRST_SYN_GAP, Netstack, SYN_GRACE, to_smoltcp};
use crate::packet::{
    Datagram, DatagramKind, Fragment, Reason, Refused, Segment, Unreachable, Verdict, classify,
};

impl Netstack {
    /// Takes a packet as it was read from the TUN device, with its virtio-net header if offloads
    /// are on. The bytes are changed. A datagram that may be carried is left to the owner.
    pub fn handle_packet(
        &mut self,
        bytes: &mut [u8],
        now: Instant,
        sink: &mut dyn Sink,
    ) -> Option<Taken> {
        self.advance(now);
        self.stats.packets_in += 1;
        let at = if self.offload { VNET_HEADER_BYTES } else { 0 };
        let (is_trusted, packet) = if self.offload {
            let Some((header, packet)) = VnetHeader::split(bytes) else {
                self.stats.count(Reason::Malformed);
                return None;
            };
            (header.is_trusted(), packet)
        } else {
            (false, bytes)
        };
        self.stats.bytes_in += u64::try_from(packet.len()).unwrap_or(0);
        let verdict = classify(packet);
        if let Verdict::Fragment(piece) = verdict {
            let mut whole = self.join_fragments(packet, &piece)?;
            let verdict = classify(&whole);
            let datagram = self.judge(verdict, &mut whole, false, sink)?;
            let whole = Some(whole);
            return Some(Taken {
                datagram,
                whole,
                at: 0,
            });
        }
        let datagram = self.judge(verdict, packet, is_trusted, sink)?;
        Some(Taken {
            datagram,
            whole: None,
            at,
        })
    }

    fn join_fragments(&mut self, packet: &[u8], piece: &Fragment) -> Option<Vec<u8>> {
        if !self.is_welcome(piece.source) {
            self.stats.count(Reason::ForeignSource);
            return None;
        }
        let before = self.fragments.dropped;
        let whole = self.fragments.join(packet, piece, self.now);
        for _ in before..self.fragments.dropped {
            self.stats.count(Reason::Fragment);
        }
        whole
    }

    /// Carries a verdict out; a datagram that may be carried comes back.
    fn judge(
        &mut self,
        verdict: Verdict,
        packet: &mut [u8],
        is_trusted: bool,
        sink: &mut dyn Sink,
    ) -> Option<Datagram> {
        match verdict {
            Verdict::Drop(reason) => self.stats.count(reason),
            Verdict::Refuse(refused) => self.refuse_packet(packet, &refused, sink),
            // A whole packet is none.
            Verdict::Fragment(_) => self.stats.count(Reason::Fragment),
            Verdict::Datagram(datagram) => {
                if !is_trusted && !is_checksum_right(packet, &datagram) {
                    self.stats.count(Reason::Checksum);
                } else if self.is_carried(packet, &datagram, sink) {
                    return Some(datagram);
                }
            }
            Verdict::Segment(segment) => {
                let packet = &mut packet[..segment.packet_bytes];
                if is_trusted || offload::is_tcp_checksum_right(packet, segment.ip_header_bytes) {
                    self.handle_segment(packet, &segment, sink);
                } else {
                    self.stats.count(Reason::Checksum);
                }
            }
        }
        None
    }

    fn handle_segment(&mut self, packet: &mut [u8], segment: &Segment, sink: &mut dyn Sink) {
        let Some(index) = self.table.find(&segment.key) else {
            return self.handle_stranger(packet, segment, sink);
        };
        match self.table.at(index).map(|connection| &connection.phase) {
            Some(Phase::Live(_)) => self.handle_live(index, packet, segment, sink),
            Some(Phase::Held(held)) => {
                let same = held.segment.sequence == segment.sequence;
                let acknowledged = held.segment.sequence.wrapping_add(1) == segment.sequence;
                if segment.flags.is_initial_syn() && same {
                    self.extend_held(index);
                } else if segment.flags.is_initial_syn() {
                    self.forget_held(index);
                    self.hold(packet, segment);
                } else if segment.flags.rst && (same || acknowledged) {
                    self.forget_held(index);
                } else {
                    self.answer_stray(segment, sink);
                }
            }
            None => {}
        }
    }

    /// A segment of no known connection.
    fn handle_stranger(&mut self, packet: &[u8], segment: &Segment, sink: &mut dyn Sink) {
        let (source, destination) = (segment.key.source().ip(), segment.key.destination().ip());
        if !self.is_welcome(source) {
            return self.stats.count(Reason::ForeignSource);
        }
        if self.link_keys.contains(&segment.key) {
            return self.stats.count(Reason::Loop);
        }
        if self.local_addresses.contains(&destination) {
            self.stats.count(Reason::OwnDestination);
            if segment.flags.is_initial_syn() {
                let ends = (source, destination);
                self.send_icmp(packet, ends, Speaker::Nobody, Unreachable::Prohibited, sink);
            }
            return;
        }
        if segment.flags.is_initial_syn() && segment.key.destination_port() != 0 {
            self.hold(packet, segment);
        } else {
            self.answer_stray(segment, sink);
        }
    }

    /// Packets from `source` are taken.
    pub(super) fn is_welcome(&self, source: IpAddr) -> bool {
        self.accept_forwarded || self.local_addresses.contains(&source)
    }

    fn answer_stray(&mut self, segment: &Segment, sink: &mut dyn Sink) {
        self.stats.count(Reason::Stray);
        if !segment.flags.rst {
            self.stats.stray_resets += 1;
            self.outlet
                .send_complete(&mut self.stats, sink, |out| answer::reset(segment, out));
        }
    }

    fn refuse_packet(&mut self, packet: &[u8], refused: &Refused, sink: &mut dyn Sink) {
        if !self.is_welcome(refused.source) {
            return self.stats.count(Reason::ForeignSource);
        }
        self.stats.count(refused.reason);
        let is_own = self.local_addresses.contains(&refused.destination);
        let speaker = if is_own || refused.reason == Reason::SpecialAddress {
            Speaker::Nobody
        } else {
            Speaker::Destination
        };
        let ends = (refused.source, refused.destination);
        self.send_icmp(packet, ends, speaker, refused.unreachable, sink);
    }

    pub(super) fn send_icmp(
        &mut self,
        packet: &[u8],
        ends: (IpAddr, IpAddr),
        speaker: Speaker,
        kind: Unreachable,
        sink: &mut dyn Sink,
    ) {
        self.stats.icmp_out += 1;
        self.outlet.send_complete(&mut self.stats, sink, |out| {
            answer::unreachable(packet, ends, speaker, kind, out)
        });
    }

    /// Keeps a SYN until the owner has its answer.
    fn hold(&mut self, packet: &[u8], segment: &Segment) {
        if self.table.len() >= self.max_connections || self.table.held() >= self.max_held {
            return self.stats.count(Reason::TableFull);
        }
        let offer = answer::read_offer(&packet[segment.ip_header_bytes..]);
        let expires = self.now + FIRST_SYN_GAP * 2 + SYN_GRACE;
        let mut held = HeldSyn::new(packet, segment, offer, expires);
        held.seen = self.now;
        let id = self
            .table
            .insert(Connection::new(segment.key, Phase::Held(Box::new(held))));
        self.timers.arm(&mut self.table, id.index, expires);
        self.events.push_back(NetEvent::Syn {
            connection: id,
            source: segment.key.source(),
            destination: segment.key.destination(),
        });
    }

    /// The application asks again: it still waits.
    fn extend_held(&mut self, index: u32) {
        let now = self.now;
        if let Some(Phase::Held(held)) = self.table.at(index).map(|c| &mut c.phase) {
            // No kernel repeats sooner; two that lie closer together were read late.
            let gap = now.saturating_duration_since(held.seen).max(FIRST_SYN_GAP);
            held.seen = now;
            held.expires = now + gap * 2 + SYN_GRACE;
            let expires = held.expires;
            // Only a gap shorter than the one before makes it earlier.
            self.timers.arm(&mut self.table, index, expires);
        }
    }

    /// The application no longer asks.
    pub(super) fn forget_held(&mut self, index: u32) {
        if let Some(connection) = self.table.owned_id(index) {
            self.stats.syns_gone += 1;
            self.events.push_back(NetEvent::SynGone { connection });
        }
        self.table.remove(index);
    }

    /// A segment of a connection that has a socket.
    fn handle_live(
        &mut self,
        index: u32,
        packet: &mut [u8],
        segment: &Segment,
        sink: &mut dyn Sink,
    ) {
        if segment.flags.is_initial_syn() {
            return self.handle_another_syn(index, packet, segment, sink);
        }
        let now = self.now;
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let slot_index = live.slot;
        let slot = self.slots.get(slot_index);
        let (state_before, queued_before) = (slot.socket().state(), slot.socket().recv_queue());
        let fin = usize::from(has_app_finished(state_before));
        let received = u64::try_from(queued_before + fin).unwrap_or(u64::MAX);
        if segment.flags.rst && live.wire.window.is_ahead(received, segment.sequence) {
            // smoltcp would believe it. Its sender, if it means it, answers at the edge.
            return self.state_window(index, sink);
        }
        live.unanswered = 0;
        live.peer_window = segment.window;
        let said_before = self.stats.packets_out;
        let payload = u32::try_from(segment.payload_bytes()).unwrap_or(0);
        let excess = if has_app_finished(state_before) {
            // smoltcp would take bytes behind the FIN; those before it have all come.
            segment.payload_bytes()
        } else {
            live.wire.window.excess(segment.sequence, payload)
        };
        let packet = cut_end(packet, segment, excess);
        let taken = segment.payload_bytes() - excess;
        let mut port = Port {
            incoming: Some(packet),
            occasion: Occasion::Reply,
            wire: &mut live.wire,
            outlet: &mut self.outlet,
            stats: &mut self.stats,
            sink,
        };
        self.interface
            .poll_ingress_single(to_smoltcp(now), &mut port, &mut slot.sockets);
        if taken > 0 {
            let end = segment
                .sequence
                .wrapping_add(u32::try_from(taken).unwrap_or(0));
            live.wire.window.arrived(end);
            let in_order = u64::try_from(slot.socket().recv_queue()).unwrap_or(0);
            slot.has_gap = live.wire.window.has_gap(in_order);
            self.slots.touch(slot_index, now);
        }
        self.notice(index, state_before, queued_before, segment.flags.rst);
        if excess > 0 && taken == 0 && self.stats.packets_out == said_before {
            // A probe of a window that is shut.
            self.state_window(index, sink);
        }
        self.mark_dirty(index);
    }

    /// A SYN where there is a connection already.
    fn handle_another_syn(
        &mut self,
        index: u32,
        packet: &[u8],
        segment: &Segment,
        sink: &mut dyn Sink,
    ) {
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        if segment.sequence == live.wire.window.isn() {
            // A late retransmission; smoltcp repeats its answer by itself.
            return;
        }
        match self.slots.get(live.slot).socket().state() {
            State::Closed | State::Listen | State::TimeWait => {
                self.settle(index, sink);
                self.handle_stranger(packet, segment, sink);
            }
            // smoltcp would ignore it. The application's kernel, if it has forgotten the old
            // connection, answers our ACK by a reset, which makes room (RFC 5961 §4.2).
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => self.state_window(index, sink),
        }
    }

    /// Finds out what a segment has changed, and queues events.
    fn notice(&mut self, index: u32, before: State, queued_before: usize, is_reset: bool) {
        let id = self.table.owned_id(index);
        let Some(live) = self.table.live_at(index) else {
            return;
        };
        let socket = self.slots.get(live.slot).socket();
        let state = socket.state();
        let ended = before != State::Closed && state == State::Closed;
        if has_app_finished(state) && live.finished == Notice::None {
            live.finished = Notice::Due;
        }
        // An RST before the handshake was complete makes smoltcp listen again.
        if (ended && is_reset) || state == State::Listen {
            live.reset_by_app = Notice::Due;
        }
        let acknowledged = live.sent - u64::try_from(socket.send_queue()).unwrap_or(0);
        let opens = before == State::SynReceived && state != before;
        if (acknowledged > live.acknowledged || opens)
            && let Some(connection) = id
        {
            live.acknowledged = acknowledged;
            if !live.writable_queued {
                live.writable_queued = true;
                self.events.push_back(NetEvent::Writable { connection });
            }
        }
        let is_fin_acknowledged = matches!(state, State::FinWait2 | State::TimeWait)
            || (ended && !is_reset && before == State::LastAck);
        if live.ending == Ending::Finish
            && is_fin_acknowledged
            && live.drained == Notice::None
            && let Some(connection) = id
        {
            live.drained = Notice::Given;
            self.events.push_back(NetEvent::Drained { connection });
        }
        if socket.recv_queue() > queued_before
            && !live.readable_queued
            && let Some(connection) = id
        {
            live.readable_queued = true;
            self.events.push_back(NetEvent::Readable { connection });
        }
        self.conclude(index);
    }
}

fn is_checksum_right(packet: &[u8], datagram: &Datagram) -> bool {
    let bytes = datagram.bytes(packet);
    match datagram.kind {
        DatagramKind::Echo => offload::is_icmp_checksum_right(packet, bytes),
        DatagramKind::Udp => offload::is_udp_checksum_right(packet, bytes),
    }
}

/// The states that a socket reaches by the application's FIN.
pub(super) const fn has_app_finished(state: State) -> bool {
    matches!(
        state,
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait
    )
}

/// Cuts `excess` bytes off the payload, and with them the FIN behind them.
///
/// The checksums do not fit afterwards; nobody looks at them again.
fn cut_end<'a>(packet: &'a mut [u8], segment: &Segment, excess: usize) -> &'a [u8] {
    const FIN_AND_PSH: u8 = 0x09;
    if excess == 0 {
        return packet;
    }
    let len = packet.len() - excess;
    let packet = &mut packet[..len];
    let is_v4 = segment.key.source().is_ipv4();
    let (length_at, counted) = if is_v4 {
        (2, len)
    } else {
        (4, len - segment.ip_header_bytes)
    };
    let field = u16::try_from(counted).unwrap_or(u16::MAX);
    packet[length_at..length_at + 2].copy_from_slice(&field.to_be_bytes());
    packet[segment.ip_header_bytes + 13] &= !FIN_AND_PSH;
    packet
}
