//! Datagrams of applications: into mappings of the session, and back into packets.

use super::{Client, ClientEvent, State};
use crate::account::{self, EndedBy, FlowAccount, HowEnded, LostBytes};
use crate::mappings::Mappings;
use crate::netstack::{Bounce, Sink, Taken};
use crate::packet::{Datagram, DatagramKind, Unreachable};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{DeniedBy, FlowCode, OnExpiry, OpenError};
use tund_session::{
    DatagramCounts, Event, FlowId, Instant, MappingError, OpenRefused, Session, Target,
};

/// No application is told of a smaller MTU on the server's word: every path of IPv6 has it, and a
/// smaller one for IPv4 is the server's kernel's to deal with (RFC 8200 §5).
const MTU_LEAST: u32 = 1280;

/// Mappings at once: a server gives a session as many sockets, and no more than half of the flows that
/// there may be are mappings, so that connections have room. For one more, the one that would end
/// next ends.
const MAPPINGS: usize = 4096;

/// An application that sends after so long a silence has somebody waiting; chosen.
const SILENCE_BEFORE_NEWS: Duration = Duration::from_secs(10);

/// What errors of datagrams mean to a host (`icmp_err_convert` in Linux, the other way).
const EACCES: u32 = 13;
const EMSGSIZE: u32 = 90;
const EAFNOSUPPORT: u32 = 97;

/// Why a datagram finds no mapping.
enum NoMapping {
    /// There is no room for another.
    Full,
    /// The server carries none.
    NotCarried,
}

impl Client {
    /// What the session tells of mappings; of anything else, the event.
    pub(super) fn on_mapping_event(&mut self, event: Event, now: Instant) -> Option<Event> {
        let (Event::FlowAccepted { flow }
        | Event::FlowRefused { flow, .. }
        | Event::FlowReadable { flow }
        | Event::FlowAborted { flow, .. }
        | Event::FlowForgotten { flow, .. }) = event
        else {
            return Some(event);
        };
        if !self.mappings.knows(flow) {
            return Some(event);
        }
        if let Event::FlowRefused { error, .. } = event {
            self.turn_mapping_down(flow, error, now);
        } else if let Event::FlowAborted { code, .. } = event {
            self.mappings.leave(flow, account::of_abort(code));
        } else if let Event::FlowForgotten { lost, dropped, .. } = event {
            let lost = LostBytes {
                up: lost,
                down: dropped,
            };
            if let Some(account) = self.mappings.settle(flow, lost, now) {
                self.account(account);
            }
            self.hurry_asking(now);
        } else if let Event::FlowReadable { .. } = event {
            self.readable_mappings.push(flow);
        } else {
            self.mappings.open(flow);
        }
        None
    }

    /// A datagram of an application's.
    pub(super) fn on_datagram(
        &mut self,
        packet: &[u8],
        taken: &Taken,
        now: Instant,
        sink: &mut dyn Sink,
    ) {
        let datagram = &taken.datagram;
        let is_echo = datagram.kind == DatagramKind::Echo;
        if self.config.is_nothing_at(datagram.destination)
            || (is_echo && self.config.stub == Some(datagram.destination.ip()))
        {
            let kind = match is_echo {
                true => Unreachable::Prohibited,
                false => Unreachable::Port,
            };
            self.netstack.refuse_datagram(packet, datagram, kind, sink);
            return;
        }
        self.is_parted = false;
        if self.state() == State::Refused {
            self.is_insisted_on = true;
            self.unwanted_since = None;
            let kind = Unreachable::Prohibited;
            self.netstack.refuse_datagram(packet, datagram, kind, sink);
            return;
        }
        let known = self.mappings.find(datagram.kind, datagram.source);
        let flow = match known.map_or_else(|| self.open_mapping(datagram, now), Ok) {
            Ok(flow) => flow,
            Err(NoMapping::Full) => return self.netstack.drop_datagram(),
            Err(NoMapping::NotCarried) => {
                let kind = datagram.kind.not_carried();
                self.netstack.refuse_datagram(packet, datagram, kind, sink);
                return;
            }
        };
        let payload = datagram.payload(packet);
        let remote = datagram.destination;
        let sent = (datagram.headers(packet), payload.len());
        let silence = self.mappings.sent(flow, remote, sent, now);
        if let Some(session) = &mut self.session {
            let remote = self.config.for_server(remote);
            session.send_datagram(flow, remote, Bytes::copy_from_slice(payload), now);
        }
        // Many applications send again and again to an origin that is silent: that is no news.
        if known.is_none() || silence >= SILENCE_BEFORE_NEWS {
            self.dialer.hurry(now);
        }
    }

    fn open_mapping(&mut self, datagram: &Datagram, now: Instant) -> Result<FlowId, NoMapping> {
        let settings = self.config.mappings;
        let flows = self.session.as_ref().map_or(u64::MAX, Session::most_flows);
        let most = usize::try_from(flows / 2).unwrap_or(usize::MAX);
        if self.mappings.len() >= most.min(MAPPINGS) && !self.end_next_to_go(now) {
            return Err(NoMapping::Full);
        }
        let target = Target {
            protocol: settings.protocol(datagram.kind),
            source: datagram.source,
            destination: self.config.for_server(datagram.named_destination()),
            grace: settings.grace,
            on_expiry: OnExpiry::Reset,
            accept_early: false,
        };
        let config = &self.config.session;
        let session = self
            .session
            .get_or_insert_with(|| Session::new_client(config, now));
        match session.open_flow(&target, now) {
            Ok(flow) => {
                let idle = settings.idle(datagram.kind);
                self.mappings.insert(flow, datagram, idle, now);
                Ok(flow)
            }
            Err(OpenRefused::NotAgreed) => Err(NoMapping::NotCarried),
            Err(OpenRefused::TooManyFlows) => {
                self.make_room_for_flow(now);
                Err(NoMapping::Full)
            }
            Err(OpenRefused::Ended | OpenRefused::NoRoom) => Err(NoMapping::Full),
        }
    }

    /// There is no room for one more flow: the mapping that would end next ends, if it has been idle
    /// for a while. In an outage none would be gone before its end, and where one
    /// goes already there will be room.
    pub(super) fn make_room_for_flow(&mut self, now: Instant) {
        if !self.mappings.has_leaving() {
            self.end_next_to_go(now);
        }
    }

    fn end_next_to_go(&mut self, now: Instant) -> bool {
        let is_attached = self.session.as_ref().is_some_and(Session::is_attached);
        if !is_attached {
            return false;
        }
        let next = self.mappings.next_to_go(now);
        if let Some(flow) = next {
            self.end_idle(flow, now);
        }
        next.is_some()
    }

    /// So many datagrams wait for applications that they should have them before more is read.
    pub fn has_datagrams_waiting(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(Session::has_datagrams_waiting)
    }

    /// While there is no link: mappings that the server has not heard of, and whose datagrams have
    /// waited in vain, are not asked for once there is one.
    fn end_vain_mappings(&mut self, now: Instant) {
        let Some(session) = self.session.as_mut().filter(|s| !s.is_attached()) else {
            return;
        };
        let counts = session.datagram_counts();
        let waited = counts.stale + counts.crowded_out;
        if std::mem::replace(&mut self.waited_in_vain, waited) == waited {
            return;
        }
        for flow in self.mappings.unopened() {
            if !session.is_asked(flow) && !session.has_datagram_to_send(flow) {
                let end = (EndedBy::Client, HowEnded::Cancelled);
                self.mappings.leave(flow, end);
                session.abort(flow, FlowCode::Cancelled, now);
            }
        }
    }

    fn end_idle(&mut self, flow: FlowId, now: Instant) {
        self.mappings.leave(flow, (EndedBy::Client, HowEnded::Idle));
        if let Some(session) = &mut self.session {
            session.abort(flow, FlowCode::Idle, now);
        }
    }

    /// Ends mappings whose applications have sent nothing for long enough.
    pub(super) fn end_idle_mappings(&mut self, now: Instant) {
        self.end_vain_mappings(now);
        while let Some(flow) = self.mappings.next_idle(now) {
            self.end_idle(flow, now);
        }
        if self.mappings.asks(now)
            && let Some(session) = &mut self.session
        {
            session.probe(now);
        }
    }

    /// What has come for applications goes into the device.
    pub(super) fn deliver_datagrams(&mut self, now: Instant, sink: &mut dyn Sink) {
        for flow in std::mem::take(&mut self.readable_mappings) {
            self.deliver_mapping(flow, now, sink);
        }
        for (quote, remote, bounce) in std::mem::take(&mut self.bounces) {
            self.netstack.send_bounce(&quote, remote.ip(), bounce, sink);
        }
    }

    fn deliver_mapping(&mut self, flow: FlowId, now: Instant, sink: &mut dyn Sink) {
        let Some(session) = &mut self.session else {
            return;
        };
        while let Some((remote, payload)) = session.datagram(flow, now) {
            let remote = self.config.of_server(remote);
            let bytes = payload.len();
            let heard = self.mappings.get(flow).filter(|mapping| {
                remote.is_ipv4() == mapping.source.is_ipv4()
                    && (remote.port() != 0 || mapping.kind == DatagramKind::Echo)
                    && self.netstack.may_come_from(remote.ip())
                    && (mapping.has_sent_to(remote)
                        || self.config.mappings.hears_strangers(mapping.kind)
                            && self.netstack.is_from_afar(remote.ip()))
            });
            let heard = heard.map(|m| (m.kind, m.source, m.has_sent_to(remote)));
            if let Some((kind, to, is_contact)) = heard
                && (is_contact || self.mappings.hears_stranger(bytes, now))
            {
                self.netstack.send_datagram(kind, remote, to, payload, sink);
                self.mappings.received(flow, bytes, now);
                session.datagram_taken(flow);
            } else {
                session.datagram_refused(flow);
            }
        }
        while let Some(mut error) = session.take_datagram_error(flow) {
            error.remote = self.config.of_server(error.remote);
            let mapping = self.mappings.get(flow);
            if let Some(denied) = mapping.and_then(|of| denied(&error, of.kind)) {
                self.events.push_back(denied);
            }
            let quote = mapping.and_then(|mapping| mapping.quote(error.remote));
            if let (Some(quote), Some(bounce)) = (quote, bounce_of(&error)) {
                self.netstack
                    .send_bounce(quote, error.remote.ip(), bounce, sink);
            }
        }
    }

    /// The server has no socket for a mapping.
    fn turn_mapping_down(&mut self, flow: FlowId, error: OpenError, now: Instant) {
        let Some(mapping) = self.mappings.remove(flow) else {
            return;
        };
        let end = account::of_refusal(error);
        let lost = LostBytes::default();
        self.account(FlowAccount::of_mapping(flow, &mapping, end, lost, now));
        // Not where others have taken everything: they would have that place, too.
        if error == OpenError::TooManyFlows {
            self.make_room_for_flow(now);
        }
        // A server that does not carry such datagrams, or may not: as if nobody listened anywhere, or
        // a firewall stood before everything. One without that version of IP has no route.
        let kind = match error {
            OpenError::Other(EAFNOSUPPORT) => Some(Unreachable::Network),
            OpenError::Other(_) => Some(mapping.kind.not_carried()),
            OpenError::Refused
            | OpenError::NetworkUnreachable
            | OpenError::HostUnreachable
            | OpenError::TimedOut
            | OpenError::Denied(_)
            | OpenError::Exhausted
            | OpenError::TooManyFlows
            | OpenError::Cancelled => None,
        };
        let Some(bounce) = kind.map(Bounce::Unreachable) else {
            return;
        };
        let waiting = mapping.quotes();
        let told = waiting.map(|(remote, quote)| (quote.to_vec(), remote, bounce));
        self.bounces.extend(told);
    }

    /// What became of datagrams, since the start.
    pub fn datagram_counts(&self) -> DatagramCounts {
        let session = self.session.as_ref();
        let now = session.map(Session::datagram_counts).unwrap_or_default();
        self.past_datagrams.plus(now)
    }

    /// Mappings under way.
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }
}

/// A remote that the server does not send to, for the log.
fn denied(error: &MappingError, kind: DatagramKind) -> Option<ClientEvent> {
    (error.errno == EACCES).then(|| ClientEvent::Denied {
        destination: kind.named(error.remote),
        by: DeniedBy::of_number(error.info),
    })
}

/// The one table: what a datagram met at the server → what the application's kernel is told.
fn bounce_of(error: &MappingError) -> Option<Bounce> {
    Some(Bounce::Unreachable(match error.errno {
        113 if error.info == MappingError::HOPS => return Some(Bounce::HopLimit),
        111 => Unreachable::Port,               // ECONNREFUSED
        113 | 112 => Unreachable::Host,         // EHOSTUNREACH, EHOSTDOWN
        101 | 100 | 64 => Unreachable::Network, // ENETUNREACH, ENETDOWN, ENONET
        92 | 71 => Unreachable::Protocol,       // ENOPROTOOPT, EPROTO
        EACCES | 1 => Unreachable::Prohibited,  // EPERM: a firewall of the server's
        // Without an MTU it was too long for any path.
        EMSGSIZE if error.info == 0 => return None,
        EMSGSIZE => return Some(Bounce::TooBig(error.info.max(MTU_LEAST))),
        _ => return None,
    }))
}

/// A packet's sender is told later, when there is a device to write to.
pub(super) type PendingBounce = (Vec<u8>, SocketAddr, Bounce);
