//! Mappings of the server: datagrams, carried along between the session and their socket.

use super::flows::client_of;
use super::origin::{DatagramOrigin, open_error};
use super::resolver::{Over, Socket};
use super::{Server, Source};
use nix::errno::Errno;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use tund_daemon::telemetry::Redacted;
use tund_server_core::admission::Denied;
use tund_server_core::mapping::{Mapping, Unsent};
use tund_session::wire::frame::{Open, OpenError};
use tund_session::{FlowId, Instant, MappingError, SessionId};

/// Datagrams taken from one socket before others get their turn.
const READ_TURN: usize = 64;
/// Errors taken from one socket in one go; the rest goes with its end.
const ERRORS: usize = 64;

/// One mapping and what the driver knows of it.
pub(super) struct MappingSlot {
    origin: DatagramOrigin,
    mapping: Mapping,
    /// From where the link came that asked for it.
    source: Option<SocketAddr>,
    waker: Waker,
    token: u64,
    /// As what the resolver knows it.
    guest: Option<Socket>,
}

impl Server {
    /// Makes the socket of a mapping. It needs no answer of anybody.
    pub(super) fn open_mapping(
        &mut self,
        session: SessionId,
        open: &Open,
        source: Option<SocketAddr>,
        now: Instant,
    ) -> Result<(), OpenError> {
        let mapping = self
            .resolver
            .mapping(open.protocol, open.source)
            .ok_or(OpenError::Other(93))?;
        self.places.take(session)?;
        let opened = if mapping.is_echo() {
            DatagramOrigin::echo(mapping.is_v4(), &mut self.echo_sockets)
        } else {
            DatagramOrigin::udp(mapping.is_v4())
        };
        let origin = opened.map_err(|error| {
            self.places.give_back(session);
            if mapping.is_echo() {
                self.tell_unpermitted(&error);
            }
            open_error(&error)
        })?;
        let token = self.next_token;
        let waker = self.register(Source::Mapping(session, open.flow));
        if let Err(error) = self.failures.watch(&origin, token) {
            tracing::warn!(%error, "a mapping cannot be watched for failures");
        }
        let slot = MappingSlot {
            origin,
            mapping,
            source,
            waker,
            token,
            guest: None,
        };
        self.mappings.insert((session, open.flow), slot);
        let flow = open.flow;
        self.registry
            .with(session, now, |s| s.accept_flow(flow, now));
        self.drive_mapping(session, flow, now);
        Ok(())
    }

    /// Says once, and counts later, that the daemon may have no socket for echo requests.
    fn tell_unpermitted(&mut self, error: &io::Error) {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return;
        }
        self.refusals
            .add("echo request, for which there is no permission");
        if !std::mem::replace(&mut self.is_unpermitted_told, true) {
            let group = nix::unistd::getegid();
            tracing::warn!(
                "echo requests (ping) are refused: this daemon may open neither a ping socket nor a \
                 raw one; have net.ipv4.ping_group_range include its group ({group}), as with \
                 `sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"`, or give it CAP_NET_RAW"
            );
        }
    }

    /// Moves what can be moved between a mapping and its socket.
    pub(super) fn drive_mapping(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        if !self.mappings.contains_key(&(session, flow)) {
            return;
        }
        self.send_datagrams(session, flow, now);
        self.read_datagrams(session, flow, now);
    }

    fn send_datagrams(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        let (client, allow) = client_of(&self.registry, &self.client_of, &self.config, session);
        let Some(slot) = self.mappings.get_mut(&(session, flow)) else {
            return;
        };
        let (admission, proxy, resolver) = (&self.admission, &self.proxy, &self.resolver);
        let mut denials: Vec<(SocketAddr, Denied)> = Vec::new();
        let is_v4 = slot.mapping.is_v4();
        slot.mapping.resolver_is_at(resolver.address(is_v4));
        self.registry.with(session, now, |s| {
            while let Some((remote, payload)) = s.datagram(flow, now) {
                let outgoing = slot.mapping.outgoing(admission, allow, remote);
                let is_sent = outgoing.is_ok();
                let error = match outgoing {
                    Ok(to) => {
                        if slot.guest.is_none() && slot.mapping.has_asked() {
                            let port = slot.origin.local_addr().map_or(0, |from| from.port());
                            let socket = (Over::Udp, SocketAddr::new(to.ip(), port));
                            resolver.introduce(socket, session, allow);
                            slot.guest = Some(socket);
                        }
                        let protocol = slot.mapping.protocol();
                        let header = proxy.header(session, slot.source, to, protocol);
                        let mut cx = Context::from_waker(&slot.waker);
                        match slot.origin.poll_send(&mut cx, (&header, payload), to) {
                            Poll::Pending => return,
                            Poll::Ready(Ok(())) => None,
                            Poll::Ready(Err(error)) => error.raw_os_error(),
                        }
                        .map(|errno| (errno.unsigned_abs(), 0))
                    }
                    Err(Unsent::Denied(denied)) => {
                        denials.push((slot.mapping.named(remote), denied));
                        Some((Errno::EACCES as u32, denied.by().number()))
                    }
                    Err(Unsent::Impossible) => Some((Errno::ENETUNREACH as u32, 0)),
                };
                if is_sent {
                    s.datagram_taken(flow);
                } else {
                    s.datagram_refused(flow);
                }
                if let Some((errno, info)) = error {
                    s.send_datagram_error(
                        flow,
                        MappingError {
                            remote,
                            errno,
                            info,
                        },
                    );
                }
            }
        });
        for (remote, denied) in denials {
            self.tell_denial(client, remote, &denied, now);
        }
    }

    fn read_datagrams(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        let (_, allow) = client_of(&self.registry, &self.client_of, &self.config, session);
        let Some(slot) = self.mappings.get_mut(&(session, flow)) else {
            return;
        };
        let (admission, buffer) = (&self.admission, &mut self.datagram);
        let strangers = self.places.strangers(session);
        let mut unheard = 0;
        self.registry.with(session, now, |s| {
            let mut cx = Context::from_waker(&slot.waker);
            for _ in 0..READ_TURN {
                match slot.origin.poll_recv(&mut cx, buffer) {
                    Poll::Pending => return,
                    // An ICMP error, which is told by the kernel's queue of them; or nothing for it.
                    Poll::Ready(Err(_) | Ok(None)) => {}
                    Poll::Ready(Ok(Some((remote, payload)))) => {
                        let from = (remote, payload.len());
                        let by = (admission, allow);
                        let heard = slot.mapping.incoming(by, strangers, from, now);
                        if let Ok(remote) = heard {
                            let payload = bytes::Bytes::copy_from_slice(payload);
                            s.send_datagram(flow, remote, payload, now);
                        } else {
                            unheard += 1;
                        }
                    }
                }
            }
            slot.waker.wake_by_ref();
        });
        for _ in 0..unheard {
            self.refusals.add("unsolicited datagram");
        }
        let of = self.registry.session(session);
        if of.is_some_and(tund_session::Session::has_datagrams_backed_up) {
            self.send_dirty(now);
        }
    }

    /// ICMP errors that datagrams of a mapping have met.
    pub(super) fn on_bounced(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        let Some(slot) = self.mappings.get(&(session, flow)) else {
            return;
        };
        self.registry.with(session, now, |s| {
            for _ in 0..ERRORS {
                let Some(bounced) = slot.origin.bounced() else {
                    return;
                };
                if let Some(remote) = slot.mapping.bounced_by(bounced.remote) {
                    s.send_datagram_error(
                        flow,
                        MappingError {
                            remote,
                            errno: bounced.errno,
                            info: bounced.info,
                        },
                    );
                }
            }
        });
    }

    /// Says once, and counts later, that a client may not reach an origin.
    pub(super) fn tell_denial(
        &mut self,
        client: Option<usize>,
        remote: SocketAddr,
        denied: &Denied,
        now: Instant,
    ) {
        if self.denials.may_tell(now) {
            let client = client.and_then(|index| self.config.clients.get(index));
            tracing::info!(
                client = client.map(|client| client.name.as_str()),
                to = %Redacted(remote),
                "an origin was refused: {denied}"
            );
        } else {
            self.refusals.add("origin not allowed");
        }
    }

    pub(super) fn close_mapping(&mut self, session: SessionId, flow: FlowId) {
        if let Some(slot) = self.mappings.remove(&(session, flow)) {
            self.sources.remove(&slot.token);
            self.places.give_back(session);
            self.resolver.forget(slot.guest);
        }
    }

    pub(super) fn close_mappings(&mut self, session: SessionId) {
        let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
        let flows = self.mappings.range(range).map(|((_, flow), _)| *flow);
        for flow in flows.collect::<Vec<_>>() {
            self.close_mapping(session, flow);
        }
    }
}
