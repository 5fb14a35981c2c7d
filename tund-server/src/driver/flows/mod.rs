//! Flows of the server: connection C, carried along between the session and the origin.

use super::opens::Asked;
use super::origin::{Origin, open_error};
use super::resolver::{Over, Socket};
use super::{Server, Source};
use crate::config::Config;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tund_daemon::telemetry::Redacted;
use tund_server_core::admission::Rule;
use tund_server_core::registry::{ClientKey, Registry};
use tund_session::wire::frame::{FlowCode, Open, OpenError, Protocol};
use tund_session::{Delivery, Event, FlowId, Instant, LinkId, Offset, SessionId};

/// Bytes taken from one origin before others get their turn.
pub(super) const READ_TURN_BYTES: u64 = 512 * 1024;
/// How often a socket is asked whether its peer has acknowledged everything: before its RST, and
/// where the client is told only then.
const DRAIN_EVERY: Duration = Duration::from_millis(10);

/// One origin and what the driver knows of it.
pub(super) struct OriginSlot {
    pub(super) origin: Origin,
    pub(super) waker: Waker,
    token: u64,
    is_connected: bool,
    /// The origin's FIN was read, or an error.
    pub(super) is_read_over: bool,
    /// Its flow is over, and it has still to be read for what is held of that.
    pub(super) has_rest: bool,
    /// Bytes in the socket when it was last asked, while its RST waits for it to be empty.
    unsent: usize,
    /// The timer that stands for it.
    timer: Option<Instant>,
    /// As what the resolver knows it.
    guest: Option<Socket>,
}

/// What became of a flow's socket.
pub(super) enum Fate {
    Lives,
    /// The flow has no socket any more; RST goes out where the peer has not ended it itself.
    Gone,
    /// RST waits for the socket to be empty.
    Drains,
}

impl Server {
    pub(super) fn on_event(&mut self, session: SessionId, event: Event, now: Instant) {
        match event {
            Event::FlowOpened { open, link } => self.ask_origin(session, open, link, now),
            Event::DeliverOpened { deliver, link } => {
                self.begin_delivery(session, deliver, link, now);
            }
            Event::FlowReadable { flow } | Event::FlowWritable { flow } => {
                self.drive_origin(session, flow, now);
                self.drive_mapping(session, flow, now);
            }
            Event::FlowAborted { flow, .. } => {
                self.abort_origin(session, flow, now);
                self.close_mapping(session, flow);
            }
            Event::FlowForgotten { flow, .. } => {
                self.opens.forget(session, flow);
                self.end_delivery(session, flow);
                self.take_origin(session, flow);
                self.close_mapping(session, flow);
            }
            Event::Ended { reason } => {
                tracing::info!(%session, ?reason, "session ended");
                self.opens.forget_session(session);
                let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
                let flows: Vec<_> = self
                    .origins
                    .range(range)
                    .map(|((_, flow), _)| *flow)
                    .collect();
                for flow in flows {
                    self.end_delivery(session, flow);
                    self.reset_origin(session, flow);
                }
                self.close_mappings(session);
                self.resolver.end_session(session);
                self.deliverer.running.end_session(session);
            }
            Event::LinkDead { link, death } => self.close_link(link, death, now),
            Event::WantProgress { link } => {
                let progress = self
                    .links
                    .get(&link)
                    .and_then(|slot| slot.link.progress().ok());
                if let Some(progress) = progress {
                    self.registry.handle_progress(link, progress, now);
                }
            }
            Event::Attached { number, first, .. } => {
                tracing::info!(%session, %number, first, "session attached");
            }
            Event::Detached => {
                tracing::info!(%session, "session detached");
                self.settle_all_stored(session, now);
            }
            Event::Reattached { .. } => {
                tracing::info!(%session, "session attached by the old link")
            }
            Event::Confirmed
            | Event::KeyInUse
            | Event::AttachRefused { .. }
            | Event::FlowAccepted { .. }
            | Event::FlowRefused { .. }
            | Event::FlowExpired { .. }
            | Event::FlowReleased { .. }
            | Event::FlowHeld { .. }
            | Event::ForgetHeld
            | Event::FlowFinal { .. } => {}
        }
    }

    /// The flow waits for its turn to be connected.
    pub(super) fn ask_origin(
        &mut self,
        session: SessionId,
        open: Open,
        link: LinkId,
        now: Instant,
    ) {
        let live = self.links.get(&link).map(|slot| slot.link.remote_addr());
        let source = live.or_else(|| self.departed.get(&link).copied());
        self.opens.ask(session, Asked { open, source });
        self.open_waiting(now);
    }

    /// Connects flows that wait, as many as one turn takes.
    pub(super) fn open_waiting(&mut self, now: Instant) {
        while let Some((session, asked)) = self.opens.next() {
            self.open(session, &asked, now);
        }
    }

    fn open(&mut self, session: SessionId, asked: &Asked, now: Instant) {
        let open = &asked.open;
        if let Err(error) = self.connect(session, asked, now) {
            tracing::debug!(?error, to = %Redacted(open.destination), "an origin was not reached");
            self.end_delivery(session, open.flow);
            self.registry
                .with(session, now, |s| s.refuse_flow(open.flow, error, now));
        }
    }

    fn connect(
        &mut self,
        session: SessionId,
        asked: &Asked,
        now: Instant,
    ) -> Result<(), OpenError> {
        let open = &asked.open;
        if open.protocol != Protocol::Tcp {
            return self.open_mapping(session, open, asked.source, now);
        }
        let (origin, guest) = match self.resolver.at(open.destination) {
            Some(resolver) => self.connect_resolver(session, resolver)?,
            None => (self.connect_origin(session, asked, now)?, None),
        };
        let token = self.next_token;
        let waker = self.register(Source::Origin(session, open.flow));
        if let Err(error) = self.failures.watch(&origin, token) {
            tracing::warn!(%error, "an origin cannot be watched for failures");
        }
        let slot = OriginSlot {
            origin,
            waker,
            token,
            is_connected: false,
            is_read_over: false,
            has_rest: false,
            unsent: 0,
            timer: None,
            guest,
        };
        self.origins.insert((session, open.flow), slot);
        self.set_timer(session, open.flow, now + self.config.connect_timeout);
        self.drive_origin(session, open.flow, now);
        Ok(())
    }

    fn connect_origin(
        &mut self,
        session: SessionId,
        asked: &Asked,
        now: Instant,
    ) -> Result<Origin, OpenError> {
        let open = &asked.open;
        let (client, allow) = client_of(&self.registry, &self.client_of, &self.config, session);
        let checked = self.admission.check(allow, open.destination, open.protocol);
        let destination = checked.map_err(|denied| {
            self.tell_denial(client, open.destination, &denied, now);
            OpenError::Denied(denied.by())
        })?;
        let header = self
            .proxy
            .header(session, asked.source, destination, open.protocol);
        Origin::connect(destination, header).map_err(|error| open_error(&error))
    }

    /// With the local address by which the resolver knows it.
    fn connect_resolver(
        &self,
        session: SessionId,
        resolver: SocketAddr,
    ) -> Result<(Origin, Option<Socket>), OpenError> {
        let (_, allow) = client_of(&self.registry, &self.client_of, &self.config, session);
        let mut guest = None;
        let origin = Origin::connect_introduced(resolver, |port| {
            let socket = (Over::Tcp, SocketAddr::new(resolver.ip(), port));
            self.resolver.introduce(socket, session, allow);
            guest = Some(socket);
        });
        match origin {
            Ok(origin) => Ok((origin, guest)),
            Err(error) => {
                self.resolver.forget(guest);
                Err(open_error(&error))
            }
        }
    }

    fn set_timer(&mut self, session: SessionId, flow: FlowId, at: Instant) {
        let Some(slot) = self.origins.get_mut(&(session, flow)) else {
            return;
        };
        if let Some(old) = slot.timer.replace(at) {
            self.timers.remove(&(old, slot.token));
        }
        self.timers
            .insert((at, slot.token), Source::Origin(session, flow));
    }

    /// A deadline of an origin: it did not answer, or its last bytes are being sent.
    pub(super) fn origin_time(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        let Some(slot) = self.origins.get_mut(&(session, flow)) else {
            return;
        };
        slot.timer = None;
        if slot.is_connected {
            self.drive_origin(session, flow, now);
        } else {
            self.end_delivery(session, flow);
            self.reset_origin(session, flow);
            self.registry.with(session, now, |s| {
                s.refuse_flow(flow, OpenError::TimedOut, now)
            });
        }
    }

    /// A socket has failed, perhaps while nobody reads from it.
    pub(super) fn on_failed(&mut self, token: u64, now: Instant) {
        match self.sources.get(&token).copied() {
            Some(Source::Origin(session, flow)) => self.on_origin_failed(session, flow, now),
            Some(Source::Mapping(session, flow)) => self.on_bounced(session, flow, now),
            Some(Source::Link(_) | Source::Listener(_)) | None => {}
        }
    }

    fn on_origin_failed(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        let Some(slot) = self.origins.get_mut(&(session, flow)) else {
            return;
        };
        if !slot.is_connected {
            self.drive_origin(session, flow, now);
            return;
        }
        let Some(error) = slot.origin.failure() else {
            return;
        };
        if slot.is_read_over {
            self.registry
                .with(session, now, |s| slot.fail(s, flow, &error, now));
            self.end_delivery(session, flow);
            self.take_origin(session, flow);
        } else {
            // What came before the failure is read first.
            self.registry.with(session, now, |s| s.fail(flow));
            self.drive_origin(session, flow, now);
        }
    }

    /// Moves what can be moved between a flow and its socket.
    pub(super) fn drive_origin(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        let Some(slot) = self.origins.get_mut(&(session, flow)) else {
            return;
        };
        if !slot.is_connected {
            match slot
                .origin
                .poll_connected(&mut Context::from_waker(&slot.waker))
            {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => {
                    self.end_delivery(session, flow);
                    self.take_origin(session, flow);
                    let error = open_error(&error);
                    self.registry
                        .with(session, now, |s| s.refuse_flow(flow, error, now));
                    return;
                }
                Poll::Ready(Ok(())) => {
                    slot.is_connected = true;
                    if let Some(at) = slot.timer.take() {
                        self.timers.remove(&(at, slot.token));
                    }
                    let (registry, buffer) = (&mut self.registry, &mut self.read_buffer);
                    self.rests.read_wanted((session, flow), registry, buffer);
                    self.registry.accept_flow(session, flow, now);
                }
            }
        }
        let is_delivery = self.deliverer.running.get_mut(session, flow).is_some();
        let fate = if is_delivery {
            self.deliver(session, flow, now)
        } else {
            self.carry(session, flow, now)
        };
        if matches!(fate, Fate::Gone) {
            self.end_delivery(session, flow);
            self.reset_origin(session, flow);
            return;
        }
        let awaits = if is_delivery {
            self.settle_delivery(session, flow, now)
        } else {
            self.awaits_release(session, flow) && self.settle_stored(session, flow, now)
        };
        if awaits || matches!(fate, Fate::Drains) {
            self.set_timer(session, flow, now + DRAIN_EVERY);
        }
    }

    fn carry(&mut self, session: SessionId, flow: FlowId, now: Instant) -> Fate {
        let Some(slot) = self.origins.get_mut(&(session, flow)) else {
            return Fate::Lives;
        };
        let buffer = &mut self.read_buffer;
        let mut fate = Fate::Lives;
        self.registry.with(session, now, |s| {
            fate = slot.write_out(s, flow, now);
            if matches!(fate, Fate::Lives) {
                fate = slot.read_in(s, flow, buffer, now);
            }
        });
        fate
    }

    fn awaits_release(&self, session: SessionId, flow: FlowId) -> bool {
        let session = self.registry.session(session);
        session.is_some_and(|session| session.awaits_release(flow))
    }

    /// The session has given a flow up: what its socket still has is thrown away, and told.
    fn abort_origin(&mut self, session: SessionId, flow: FlowId, now: Instant) {
        self.opens.forget(session, flow);
        // What of a delivery has arrived is known record by record.
        let is_delivery = self.deliverer.running.get_mut(session, flow).is_some();
        self.end_delivery(session, flow);
        let slot = self.origins.get(&(session, flow));
        let unsent = slot
            .filter(|_| !is_delivery)
            .and_then(|slot| slot.origin.unsent().ok());
        let unsent = u64::try_from(unsent.unwrap_or(0)).unwrap_or(u64::MAX);
        self.registry
            .with(session, now, |s| s.strand(flow, unsent, now));
        self.reset_origin(session, flow);
    }

    pub(super) fn reset_origin(&mut self, session: SessionId, flow: FlowId) {
        if let Some(slot) = self.take_origin(session, flow) {
            if slot.has_rest {
                self.rests.add((session, flow), slot);
            } else {
                slot.origin.reset();
            }
        }
    }

    fn take_origin(&mut self, session: SessionId, flow: FlowId) -> Option<OriginSlot> {
        let slot = self.origins.remove(&(session, flow))?;
        self.sources.remove(&slot.token);
        if let Some(at) = slot.timer {
            self.timers.remove(&(at, slot.token));
        }
        self.resolver.forget(slot.guest);
        Some(slot)
    }
}

impl OriginSlot {
    /// From the session to the origin.
    fn write_out(
        &mut self,
        session: &mut tund_session::Session,
        flow: FlowId,
        now: Instant,
    ) -> Fate {
        let mut cx = Context::from_waker(&self.waker);
        loop {
            if session.readable(flow).next().is_none() {
                return self.write_end(session, flow, now);
            }
            match self.origin.poll_write(&mut cx, session.readable(flow)) {
                Poll::Pending => return Fate::Lives,
                Poll::Ready(Ok(count)) => session.release(flow, count, now),
                // What the origin had sent before its RST is still to be read.
                Poll::Ready(Err(_)) if !self.is_read_over => return Fate::Lives,
                Poll::Ready(Err(error)) => {
                    self.fail(session, flow, &error, now);
                    return Fate::Gone;
                }
            }
        }
    }

    /// The socket has failed: what it had not got acknowledged will not arrive.
    fn fail(
        &self,
        session: &mut tund_session::Session,
        flow: FlowId,
        error: &io::Error,
        now: Instant,
    ) {
        let unsent = self.origin.unsent().unwrap_or(0);
        let unsent = u64::try_from(unsent).unwrap_or(u64::MAX);
        // What was acknowledged since the last look need not be delivered again.
        let acknowledged = session.taken(flow).0.saturating_sub(unsent);
        session.settle_to(flow, Offset(acknowledged), now);
        session.strand(flow, unsent, now);
        session.reset(flow, code_of(error), now);
    }

    fn write_end(
        &mut self,
        session: &mut tund_session::Session,
        flow: FlowId,
        now: Instant,
    ) -> Fate {
        match session.delivery(flow) {
            Delivery::Open | Delivery::Ended => Fate::Lives,
            Delivery::Fin => {
                if let Err(error) = self.origin.finish() {
                    return self.fail_to_finish(session, flow, &error, now);
                }
                session.end_delivered(flow, now);
                if session.delivery(flow) == Delivery::Reset {
                    return self.write_end(session, flow, now);
                }
                Fate::Lives
            }
            Delivery::Reset => {
                let unsent = self.origin.unsent().unwrap_or(0);
                if unsent == 0 {
                    session.end_delivered(flow, now);
                    return Fate::Gone;
                }
                if unsent < self.unsent {
                    session.drain_progress(flow, now);
                }
                self.unsent = unsent;
                Fate::Drains
            }
        }
    }

    /// FIN could not be sent: the socket has failed, and FIN is not among what it has taken.
    fn fail_to_finish(
        &self,
        session: &mut tund_session::Session,
        flow: FlowId,
        error: &io::Error,
        now: Instant,
    ) -> Fate {
        if !self.is_read_over {
            // What the origin had sent before is still to be read, and the failure behind it.
            return Fate::Lives;
        }
        self.fail(session, flow, error, now);
        Fate::Gone
    }

    /// From the origin to the session.
    fn read_in(
        &mut self,
        session: &mut tund_session::Session,
        flow: FlowId,
        buffer: &mut super::ReadBuffer,
        now: Instant,
    ) -> Fate {
        let mut cx = Context::from_waker(&self.waker);
        let mut left = READ_TURN_BYTES;
        while !self.is_read_over {
            let intake = session.intake(flow).min(left);
            if intake == 0 {
                if left == 0 {
                    self.waker.wake_by_ref();
                }
                return Fate::Lives;
            }
            let most = usize::try_from(intake).unwrap_or(usize::MAX);
            match self.origin.poll_read(&mut cx, buffer, most) {
                Poll::Pending => return Fate::Lives,
                Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                    self.is_read_over = true;
                    session.finish(flow, now);
                }
                Poll::Ready(Ok(bytes)) => {
                    left = left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(0));
                    session.write(flow, bytes, now);
                }
                Poll::Ready(Err(error)) => {
                    self.fail(session, flow, &error, now);
                    return Fate::Gone;
                }
            }
        }
        Fate::Lives
    }
}

/// The client that a session belongs to, and what it may reach beside what all may.
pub(super) fn client_of<'a>(
    registry: &Registry,
    clients: &BTreeMap<ClientKey, usize>,
    config: &'a Config,
    session: SessionId,
) -> (Option<usize>, &'a [Rule]) {
    let key = registry.key(session);
    let index = key.and_then(|key| clients.get(&key)).copied();
    let client = index.and_then(|index| config.clients.get(index));
    (index, client.map_or(&[], |client| &client.allow))
}

pub(super) fn code_of(error: &io::Error) -> FlowCode {
    let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    if reset.contains(&error.kind()) {
        FlowCode::PeerReset
    } else {
        FlowCode::SocketError
    }
}

#[cfg(test)]
mod tests;
