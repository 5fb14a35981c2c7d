//! The server's side of the client's tests: a driver around the registry, and origins.

use super::world::World;
use std::mem;
use tund_server_core::registry::{Registry, RegistryEvent};
use tund_session::wire::frame::{Deliver, FlowCode};
use tund_session::{Delivery, Event, FlowId, LinkId, Offset, Outbox, Progress, SessionId};

/// An origin's end of connection C.
#[derive(Debug, Default)]
pub(super) struct Origin {
    pub(super) received: Vec<u8>,
    pub(super) has_fin: bool,
    /// How it ended from the client's side, if not by FIN.
    pub(super) reset: bool,
    /// It takes nothing.
    pub(super) is_stalled: bool,
    /// What it sends as room comes.
    pub(super) to_send: Vec<u8>,
    /// Then FIN, or RST.
    pub(super) then: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Fin,
    Reset,
    /// Its host is not heard any more, and so many bytes of what it was sent are not acknowledged.
    Silence(u64),
}

pub(super) type OriginId = (SessionId, FlowId);

impl World {
    pub(super) fn server(&mut self, address: u16) -> &mut Registry {
        match self.elsewhere.get_mut(&address) {
            Some(other) => other,
            None => &mut self.registry,
        }
    }

    pub(super) fn serve(&mut self) -> bool {
        let mut moved = false;
        while let Some(event) = self.registry.poll_event() {
            moved = true;
            match event {
                RegistryEvent::Session { session, event } => self.on_server_event(session, event),
                RegistryEvent::TurnedAway { link, .. } => self.finish_and_close(link),
                RegistryEvent::Final { .. } => {}
                RegistryEvent::Held { session, flow } => self.read_rest((session, flow)),
            }
        }
        let mut closing = Vec::new();
        for other in self.elsewhere.values_mut() {
            while let Some(event) = other.poll_event() {
                moved = true;
                if let RegistryEvent::TurnedAway { link, .. } = event {
                    closing.push(link);
                }
            }
        }
        for link in closing {
            self.finish_and_close(link);
        }
        for id in mem::take(&mut self.woken) {
            if self.drive(id) {
                moved = true;
                self.woken.insert(id);
            }
        }
        moved
    }

    /// The server's last words on a link arrive before it is closed.
    fn finish_and_close(&mut self, link: LinkId) {
        let Some(state) = self.links.get(&link) else {
            return;
        };
        let (path, passes, now) = (state.path, !state.is_cut, self.now);
        let mut out = Outbox::new();
        while self
            .server(path.address)
            .poll_transmit(link, 60_000, &mut out, now)
        {
            if passes {
                self.client.handle_bytes(link, out.to_vec().into(), now);
            }
            out.clear();
        }
        self.close(link);
    }

    fn on_server_event(&mut self, session: SessionId, event: Event) {
        let now = self.now;
        match event {
            Event::FlowOpened { open, .. } => {
                let (flow, port) = (open.flow, open.destination.port());
                self.opened.push(((session, flow), open));
                if self.quiet_ports.contains(&port) {
                    return;
                }
                if let Some(error) = self.answers.get(&port).copied() {
                    self.registry
                        .with(session, now, |s| s.refuse_flow(flow, error, now));
                } else {
                    self.accept((session, flow));
                }
            }
            Event::FlowAborted { flow, .. } => {
                if let Some(origin) = self.origins.get_mut(&(session, flow)) {
                    origin.reset = true;
                }
                self.registry.with(session, now, |s| s.strand(flow, 0, now));
            }
            Event::Ended { .. } => {
                let of_session = self
                    .origins
                    .iter_mut()
                    .filter(|((of, _), _)| *of == session);
                of_session.for_each(|(_, origin)| origin.reset = true);
            }
            Event::FlowReadable { flow } | Event::FlowWritable { flow } => {
                self.woken.insert((session, flow));
            }
            Event::LinkDead { link, .. } => self.finish_and_close(link),
            Event::WantProgress { link } => {
                self.registry
                    .handle_progress(link, Progress::default(), now);
            }
            Event::Attached { .. }
            | Event::Detached
            | Event::Reattached { .. }
            | Event::Confirmed
            | Event::KeyInUse
            | Event::AttachRefused { .. }
            | Event::FlowAccepted { .. }
            | Event::FlowRefused { .. }
            | Event::FlowExpired { .. }
            | Event::FlowReleased { .. }
            | Event::FlowHeld { .. }
            | Event::ForgetHeld
            | Event::FlowForgotten { .. } => {}
            Event::FlowFinal { flow, released, .. } => {
                let far = self.journal.entry((session, flow)).or_default();
                *far = (*far).max(released.0);
            }
            Event::DeliverOpened { deliver, .. } => self.on_deliver(session, deliver),
        }
    }

    fn on_deliver(&mut self, session: SessionId, deliver: Deliver) {
        let (now, flow) = (self.now, deliver.flow);
        if let Some(error) = self.answers.get(&deliver.destination.port()).copied() {
            self.registry
                .with(session, now, |s| s.refuse_flow(flow, error, now));
            return;
        }
        self.half_records
            .insert((session, flow), (deliver, Vec::new()));
        self.registry
            .with(session, now, |s| s.accept_flow(flow, now));
        if !self.stall_new_origins {
            self.woken.insert((session, flow));
        }
    }

    /// Takes whole records; what of them is news goes to the origin, and all is acknowledged.
    fn drive_delivery(&mut self, id: OriginId) -> bool {
        let now = self.now;
        let Some((deliver, half)) = self.half_records.get_mut(&id) else {
            return false;
        };
        let (journal, delivered) = (&mut self.journal, &mut self.delivered);
        let mut moved = false;
        self.registry.with(id.0, now, |session| {
            let before = half.len();
            let pieces = session.readable(id.1);
            pieces.for_each(|piece| half.extend_from_slice(piece));
            let count = half.len() - before;
            session.release(id.1, count, now);
            moved |= count > 0;
            while half.len() >= 21 {
                let number = |at: usize| u64::from_be_bytes(half[at..at + 8].try_into().unwrap());
                let length = u32::from_be_bytes(half[17..21].try_into().unwrap());
                let length = usize::try_from(length).unwrap();
                if half.len() < 21 + length {
                    break;
                }
                let stream = (deliver.session, deliver.origin_flow);
                let far = journal.entry(stream).or_default();
                let (start, end) = (number(0), number(8));
                assert!(start <= end && end - start == u64::try_from(length).unwrap());
                let known = usize::try_from(far.saturating_sub(start))
                    .unwrap()
                    .min(length);
                let news = half[21 + known..21 + length].to_vec();
                if !news.is_empty() {
                    delivered.push((deliver.destination, news));
                }
                *far = (*far).max(end);
                half.drain(..21 + length);
            }
            let left = u64::try_from(half.len()).unwrap();
            let far = Offset(session.taken(id.1).0 - left);
            session.settle_to(id.1, far, now);
            if session.readable(id.1).next().is_none() && session.delivery(id.1) == Delivery::Fin {
                session.end_delivered(id.1, now);
                session.settle_to(id.1, session.taken(id.1), now);
                session.finish(id.1, now);
                moved = true;
            }
        });
        moved
    }

    /// All that was delivered to a port, in the order of its arrival.
    pub(super) fn delivered_to(&self, port: u16) -> String {
        let here = self.delivered.iter().filter(|(to, _)| to.port() == port);
        let bytes: Vec<u8> = here.flat_map(|(_, bytes)| bytes.clone()).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// The origin answers.
    pub(super) fn accept(&mut self, id: OriginId) {
        let now = self.now;
        let origin = Origin {
            is_stalled: self.stall_new_origins,
            ..Origin::default()
        };
        self.origins.insert(id, origin);
        self.woken.insert(id);
        self.registry.accept_flow(id.0, id.1, now);
    }

    /// What the socket of a flow that has expired still had to read.
    fn read_rest(&mut self, (session, flow): OriginId) {
        let Some(origin) = self.origins.get_mut(&(session, flow)) else {
            return;
        };
        while let Some(room) = self.registry.room_for_rest(session, flow)
            && room > 0
        {
            let most = room.min(origin.to_send.len());
            let rest: Vec<u8> = origin.to_send.drain(..most).collect();
            if rest.is_empty() && origin.then.is_none() {
                return;
            }
            let rest = Some(&rest[..]).filter(|rest| !rest.is_empty());
            self.registry.add_rest(session, flow, rest);
        }
    }

    /// Moves what can be moved between a flow and its origin; true if anything did.
    fn drive(&mut self, id: OriginId) -> bool {
        let (now, flow) = (self.now, id.1);
        if self.half_records.contains_key(&id) {
            return !self.stall_new_origins && self.drive_delivery(id);
        }
        let Some(origin) = self.origins.get_mut(&id).filter(|origin| !origin.reset) else {
            return false;
        };
        let Some(session) = self.registry.session(id.0) else {
            return false;
        };
        let readable = !origin.is_stalled && session.readable(flow).next().is_some();
        let ends = !origin.is_stalled
            && session.readable(flow).next().is_none()
            && matches!(session.delivery(flow), Delivery::Fin | Delivery::Reset);
        let writes = !origin.to_send.is_empty() && session.intake(flow) > 0;
        let closes = origin.to_send.is_empty() && origin.then.is_some();
        if !(readable || ends || writes || closes) {
            return false;
        }
        self.registry.with(id.0, now, |session| {
            if readable {
                let before = origin.received.len();
                let pieces = session.readable(flow);
                pieces.for_each(|piece| origin.received.extend_from_slice(piece));
                session.release(flow, origin.received.len() - before, now);
                session.settle_to(flow, session.taken(flow), now);
            }
            if ends {
                origin.has_fin |= session.delivery(flow) == Delivery::Fin;
                origin.reset |= session.delivery(flow) == Delivery::Reset;
                session.end_delivered(flow, now);
                session.settle_to(flow, session.taken(flow), now);
            }
            let most = usize::try_from(session.intake(flow)).unwrap();
            let count = most.min(origin.to_send.len());
            if count > 0 {
                let bytes: Vec<u8> = origin.to_send.drain(..count).collect();
                session.write(flow, bytes.into(), now);
            }
            if origin.to_send.is_empty() {
                match origin.then.take() {
                    Some(End::Fin) => session.finish(flow, now),
                    Some(End::Reset) => session.reset(flow, FlowCode::PeerReset, now),
                    Some(End::Silence(unsent)) => {
                        session.strand(flow, unsent, now);
                        session.reset(flow, FlowCode::SocketError, now);
                    }
                    None => {}
                }
            }
        });
        true
    }
}
