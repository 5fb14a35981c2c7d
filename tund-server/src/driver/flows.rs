//! Flows of the server: connection C, carried along between the session and the origin.

use super::origin::{Origin, open_error};
use super::{Server, Source};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Bound;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tund_daemon::telemetry::Redacted;
use tund_session::wire::frame::{FlowCode, Open, OpenError, Protocol};
use tund_session::{Delivery, Event, FlowId, Instant, SessionId};

/// Bytes taken from one origin before others get their turn.
const READ_TURN_BYTES: u64 = 512 * 1024;
/// How often a socket is asked whether it has sent everything, before its RST.
const DRAIN_EVERY: Duration = Duration::from_millis(10);

/// Origins connected to in one turn of the loop, about 50 µs each: a client that asks for thousands
/// at once must not silence the links of the others.
const OPENS_PER_TURN: usize = 64;
/// Refused origins that are told one by one in a minute; the others are counted.
const DENIALS_TOLD: u32 = 60;
/// That minute.
const DENIALS_PERIOD: Duration = Duration::from_secs(60);

/// A flow that waits to be connected.
#[derive(Debug)]
struct Asked {
    open: Open,
    /// From where the link came that asked for it.
    source: Option<SocketAddr>,
}

/// Flows that wait for their turn to be connected: at most as many as all sessions may have.
#[derive(Debug, Default)]
pub(super) struct Opens {
    queue: BTreeMap<(SessionId, FlowId), Asked>,
    /// The session that had its turn last.
    last: Option<SessionId>,
    /// Connected in this turn of the loop.
    served: usize,
}

impl Opens {
    /// A new turn of the loop.
    pub(super) fn next_turn(&mut self) {
        self.served = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next flow to be connected in this turn: the oldest of the next session in a circle.
    fn next(&mut self) -> Option<(SessionId, Asked)> {
        if self.served >= OPENS_PER_TURN {
            return None;
        }
        let behind = self.last.and_then(|last| {
            let from = Bound::Excluded((last, FlowId(u64::MAX)));
            self.queue.range((from, Bound::Unbounded)).next()
        });
        let key = *behind.or_else(|| self.queue.first_key_value())?.0;
        self.served += 1;
        self.last = Some(key.0);
        self.queue.remove(&key).map(|asked| (key.0, asked))
    }

    fn forget_session(&mut self, session: SessionId) {
        let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
        let waiting: Vec<_> = self.queue.range(range).map(|(key, _)| *key).collect();
        for key in waiting {
            self.queue.remove(&key);
        }
    }
}

/// How many refused origins were told of late.
#[derive(Debug, Default)]
pub(super) struct Denials {
    told: u32,
    since: Instant,
}

impl Denials {
    /// Whether one more may be told.
    fn may_tell(&mut self, now: Instant) -> bool {
        if self.since + DENIALS_PERIOD <= now {
            (self.told, self.since) = (0, now);
        }
        self.told = self.told.saturating_add(1);
        self.told <= DENIALS_TOLD
    }
}

/// One origin and what the driver knows of it.
pub(super) struct OriginSlot {
    origin: Origin,
    waker: Waker,
    token: u64,
    is_connected: bool,
    /// The origin's FIN was read, or an error.
    is_read_over: bool,
    /// Bytes in the socket when it was last asked, while its RST waits for it to be empty.
    unsent: usize,
    /// The timer that stands for it.
    timer: Option<Instant>,
}

/// What became of a flow's socket.
enum Fate {
    Lives,
    /// The flow has no socket any more; RST goes out where the peer has not ended it itself.
    Gone,
    /// RST waits for the socket to be empty.
    Drains,
}

impl Server {
    pub(super) fn on_event(&mut self, session: SessionId, event: Event, now: Instant) {
        match event {
            Event::FlowOpened { open, link } => {
                let live = self.links.get(&link).map(|slot| slot.link.remote_addr());
                let source = live.or_else(|| self.departed.get(&link).copied());
                let asked = Asked { open, source };
                self.opens.queue.insert((session, asked.open.flow), asked);
                self.open_waiting(now);
            }
            Event::FlowReadable { flow } | Event::FlowWritable { flow } => {
                self.drive_origin(session, flow, now);
            }
            Event::FlowAborted { flow, .. } => {
                self.opens.queue.remove(&(session, flow));
                self.reset_origin(session, flow);
            }
            Event::FlowForgotten { flow, .. } => {
                self.opens.queue.remove(&(session, flow));
                self.take_origin(session, flow);
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
                    self.reset_origin(session, flow);
                }
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
            Event::Detached => tracing::info!(%session, "session detached"),
            Event::Reattached { .. } => {
                tracing::info!(%session, "session attached by the old link")
            }
            Event::Confirmed
            | Event::KeyInUse
            | Event::AttachRefused { .. }
            | Event::FlowAccepted { .. }
            | Event::FlowRefused { .. } => {}
        }
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
            return Err(OpenError::Other(93)); // EPROTONOSUPPORT
        }
        let key = self.registry.key(session);
        let client = key.and_then(|key| self.client_of.get(&key));
        let client = client.and_then(|index| self.config.clients.get(*index));
        let allow = client.map_or(&[][..], |client| &client.allow);
        let checked = self.admission.check(allow, open.destination, open.protocol);
        let destination = checked.map_err(|denied| {
            if self.denials.may_tell(now) {
                tracing::info!(
                    client = client.map(|client| client.name.as_str()),
                    to = %Redacted(open.destination),
                    "an origin was refused: {denied}"
                );
            } else {
                self.refusals.add("origin not allowed");
            }
            OpenError::Denied(denied.by())
        })?;
        let header = self
            .proxy
            .header(session, asked.source, destination, open.protocol);
        let origin = Origin::connect(destination, header).map_err(|error| open_error(&error))?;
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
            unsent: 0,
            timer: None,
        };
        self.origins.insert((session, open.flow), slot);
        self.set_timer(session, open.flow, now + self.config.connect_timeout);
        self.drive_origin(session, open.flow, now);
        Ok(())
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
            self.reset_origin(session, flow);
            self.registry.with(session, now, |s| {
                s.refuse_flow(flow, OpenError::TimedOut, now)
            });
        }
    }

    /// A socket has failed, perhaps while nobody reads from it.
    pub(super) fn on_failed(&mut self, token: u64, now: Instant) {
        let Some(Source::Origin(session, flow)) = self.sources.get(&token).copied() else {
            return;
        };
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
                    self.registry
                        .with(session, now, |s| s.accept_flow(flow, now));
                }
            }
        }
        let Some(slot) = self.origins.get_mut(&(session, flow)) else {
            return;
        };
        let buffer = &mut self.read_buffer;
        let mut fate = Fate::Lives;
        self.registry.with(session, now, |s| {
            fate = slot.write_out(s, flow, now);
            if matches!(fate, Fate::Lives) {
                fate = slot.read_in(s, flow, buffer, now);
            }
        });
        match fate {
            Fate::Lives => {}
            Fate::Gone => self.reset_origin(session, flow),
            Fate::Drains => self.set_timer(session, flow, now + DRAIN_EVERY),
        }
    }

    pub(super) fn reset_origin(&mut self, session: SessionId, flow: FlowId) {
        if let Some(slot) = self.take_origin(session, flow) {
            slot.origin.reset();
        }
    }

    fn take_origin(&mut self, session: SessionId, flow: FlowId) -> Option<OriginSlot> {
        let slot = self.origins.remove(&(session, flow))?;
        self.sources.remove(&slot.token);
        if let Some(at) = slot.timer {
            self.timers.remove(&(at, slot.token));
        }
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
        session.strand(flow, u64::try_from(unsent).unwrap_or(u64::MAX));
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
                // A failure shows at the next read.
                let _shut = self.origin.finish();
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

fn code_of(error: &io::Error) -> FlowCode {
    let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    if reset.contains(&error.kind()) {
        FlowCode::PeerReset
    } else {
        FlowCode::SocketError
    }
}
