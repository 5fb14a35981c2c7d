//! Mappings of the world: each datagram is caught once at most, whole, and where it belongs.

use super::coverage::Situation;
use super::rng::Rng;
use super::world::{CLIENT, SERVER, Who, World};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::codec::MAX_PAYLOAD;
use tund_session::wire::frame::{FlowCode, OnExpiry, Open, OpenError, Protocol};
use tund_session::{Event, FlowId, Instant, MappingError, OpenRefused, Session, Target, limits};

/// Ports of applications with mappings; those of connections are smaller.
const PORTS: u16 = 1000;
/// What a datagram begins with: its number.
const NUMBER: usize = 8;
/// Mappings at once, and in all.
const MOST: (usize, usize) = (4, 16);
/// EMSGSIZE, whose `info` comes along whatever it is.
const TOO_LONG: u32 = 90;

/// One mapping of an application's.
#[derive(Debug)]
pub(super) struct Mapping {
    grace: Duration,
    born: Instant,
    /// Sockets that the server has made for it. There is never a second one.
    sockets: u32,
    /// The last of them is closed.
    is_closed: bool,
    /// The application has heard nothing of it for long, and its client lets go.
    is_let_go: bool,
    /// It is over at the client, which did not ask for that.
    over: Option<&'static str>,
    /// The client was last without a link then.
    parted_at: Option<Instant>,
}

impl Mapping {
    fn is_live(&self) -> bool {
        !self.is_let_go && self.over.is_none()
    }
}

/// A datagram that nobody has caught.
#[derive(Clone, Copy, Debug)]
struct Thrown {
    mapping: usize,
    by: usize,
    remote: SocketAddr,
    len: usize,
    at: Instant,
}

/// All mappings ever, and what is under way in them.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    all: Vec<Mapping>,
    thrown: BTreeMap<u64, Thrown>,
    numbers: u64,
    /// Mappings that an end was told to look at; nothing else makes it look.
    due: BTreeSet<(Who, FlowId)>,
}

/// What a datagram of that number has at a place: pieces in the wrong order show.
fn byte_at(number: u64, place: usize) -> u8 {
    let place = u64::try_from(place).unwrap_or(0);
    (number.wrapping_mul(31) ^ place ^ (place >> 8).wrapping_mul(7)).to_le_bytes()[0]
}

fn payload(number: u64, len: usize) -> Bytes {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((NUMBER..len).map(|place| byte_at(number, place)));
    bytes.into()
}

impl World {
    /// Something happens to a mapping.
    pub(super) fn some_datagrams(&mut self, rng: &mut Rng) {
        let who = rng.pick(&self.ends_or_client());
        match rng.below(100) {
            0..12 => self.open_mapping(Duration::from_secs(rng.pick(&[60, 300]))),
            12..15 => self.let_some_go(rng),
            15..20 => self.say_some_error(rng),
            20..85 => {
                let Some(flow) = self.some_mapping(who, rng) else {
                    return;
                };
                let lengths = [8, 100, 1400, MAX_PAYLOAD, MAX_PAYLOAD + 1, 40_000, 65_507];
                let len = rng.pick(&lengths);
                let count = rng.pick(&[1, 1, 1, 4, 40]);
                for _ in 0..count.min(1 + 200_000 / len) {
                    self.throw(who, flow, len, rng.below(3));
                }
            }
            _ => {
                self.catch_due();
            }
        }
    }

    fn ends_or_client(&self) -> Vec<Who> {
        let mut ends = self.ends();
        ends.push(Who::Client);
        ends
    }

    fn mappings_of(&self, who: Who) -> Vec<(FlowId, usize)> {
        let books = match who {
            Who::Client => self.client.as_ref().map(|client| &client.books),
            Who::Server(id) => self.books.get(&id),
        };
        let mappings = books.map(|books| books.mappings.iter());
        let mappings = mappings.into_iter().flatten();
        mappings.map(|(flow, index)| (*flow, *index)).collect()
    }

    fn mapping_of(&self, who: Who, flow: FlowId) -> Option<usize> {
        let books = match who {
            Who::Client => self.client.as_ref().map(|client| &client.books),
            Who::Server(id) => self.books.get(&id),
        };
        books?.mappings.get(&flow).copied()
    }

    fn some_mapping(&self, who: Who, rng: &mut Rng) -> Option<FlowId> {
        let mappings = self.mappings_of(who);
        let live = mappings.into_iter().filter(|(_, index)| {
            let mapping = &self.mappings.all[*index];
            mapping.is_live() && !(who != Who::Client && mapping.is_closed)
        });
        let live: Vec<FlowId> = live.map(|(flow, _)| flow).collect();
        (!live.is_empty()).then(|| rng.pick(&live))
    }

    fn open_mapping(&mut self, grace: Duration) {
        let live = self.mappings.all.iter().filter(|m| m.is_live()).count();
        if live >= MOST.0 || self.mappings.all.len() >= MOST.1 {
            return;
        }
        self.want_session();
        let index = self.mappings.all.len();
        let port = PORTS + u16::try_from(index).unwrap_or(0);
        let target = Target {
            protocol: Protocol::Udp,
            source: ([10, 0, 0, 1], port).into(),
            destination: ([192, 0, 2, 1], 53).into(),
            grace,
            on_expiry: OnExpiry::Reset,
            accept_early: false,
        };
        let (now, Some(client)) = (self.now, self.client.as_mut()) else {
            return;
        };
        match client.session.open_flow(&target, now) {
            Ok(flow) => {
                client.books.mappings.insert(flow, index);
                self.mappings.all.push(Mapping {
                    grace,
                    born: now,
                    sockets: 0,
                    is_closed: false,
                    is_let_go: false,
                    over: None,
                    parted_at: None,
                });
                self.tell(|| format!("application opens mapping {index} as {flow}"));
            }
            Err(OpenRefused::TooManyFlows) => self.met(Situation::TooManyFlows),
            Err(why) => self.fault(format!("no mapping: {why:?}")),
        }
        self.drain();
    }

    fn let_some_go(&mut self, rng: &mut Rng) {
        if let Some(flow) = self.some_mapping(Who::Client, rng) {
            self.let_go_of(flow);
        }
    }

    fn let_go_of(&mut self, flow: FlowId) {
        let now = self.now;
        let Some(index) = self.mapping_of(Who::Client, flow) else {
            return;
        };
        self.tell(|| format!("client lets go of mapping {index}"));
        self.mappings.all[index].is_let_go = true;
        self.met(Situation::MappingLetGo);
        self.with(Who::Client, |s| s.abort(flow, FlowCode::Idle, now));
        self.drain();
    }

    fn say_some_error(&mut self, rng: &mut Rng) {
        let servers = self.ends().into_iter().filter(|who| *who != Who::Client);
        let servers: Vec<Who> = servers.collect();
        if servers.is_empty() {
            return;
        }
        let who = rng.pick(&servers);
        let Some(flow) = self.some_mapping(who, rng) else {
            return;
        };
        let index = self.mapping_of(who, flow).unwrap_or(0);
        let error = MappingError {
            remote: ([192, 0, 2, 1], 53).into(),
            errno: TOO_LONG,
            info: u32::try_from(index).unwrap_or(0),
        };
        self.with(who, |s| s.send_datagram_error(flow, error));
        self.drain();
    }

    /// A datagram goes into a mapping at one end; its number.
    fn throw(&mut self, who: Who, flow: FlowId, len: usize, remote: usize) -> u64 {
        let Some(mapping) = self.mapping_of(who, flow) else {
            return 0;
        };
        let now = self.now;
        let number = self.mappings.numbers + 1;
        self.mappings.numbers = number;
        let last = u8::try_from(remote).unwrap_or(0);
        let thrown = Thrown {
            mapping,
            by: who.side(),
            remote: ([192, 0, 2, last], 53).into(),
            len: len.max(NUMBER),
            at: now,
        };
        self.tell(|| format!("{who:?} throws {number} into mapping {mapping}, {len} bytes"));
        self.mappings.thrown.insert(number, thrown);
        let payload = payload(number, thrown.len);
        self.with(who, |s| s.send_datagram(flow, thrown.remote, payload, now));
        self.drain();
        number
    }

    /// Every socket takes what its end was told of; true if there was anything.
    pub(super) fn catch_due(&mut self) -> bool {
        let mut is_any = false;
        for (who, flow) in std::mem::take(&mut self.mappings.due) {
            is_any |= self.catch(who, flow);
        }
        is_any
    }

    fn catch(&mut self, who: Who, flow: FlowId) -> bool {
        let now = self.now;
        let (mut caught, mut errors) = (Vec::new(), Vec::new());
        self.with(who, |session| {
            while let Some((remote, payload)) = session.datagram(flow, now) {
                caught.push((remote, payload.clone()));
                session.datagram_taken(flow);
            }
            errors.extend(std::iter::from_fn(|| session.take_datagram_error(flow)));
        });
        let Some(index) = self.mapping_of(who, flow) else {
            if !caught.is_empty() || !errors.is_empty() {
                self.fault(format!("{who:?} has something for {flow}, which is over"));
            }
            return false;
        };
        for error in &errors {
            self.met(Situation::ErrorOfDatagram);
            if who != Who::Client || usize::try_from(error.info) != Ok(index) {
                self.fault(format!("{who:?}: mapping {index} hears {error:?}"));
            }
        }
        let is_any = !caught.is_empty() || !errors.is_empty();
        for (remote, payload) in caught {
            if let Err(what) = self.judge_datagram((who, index), remote, &payload) {
                self.fault(format!("{who:?}, mapping {index}: {what}"));
            }
        }
        self.drain();
        is_any
    }

    fn judge_datagram(
        &mut self,
        (who, index): (Who, usize),
        remote: SocketAddr,
        payload: &Bytes,
    ) -> Result<(), String> {
        let number = payload.first_chunk::<NUMBER>();
        let number = u64::from_be_bytes(*number.ok_or("a datagram without its number")?);
        let thrown = self.mappings.thrown.remove(&number);
        let thrown = thrown.ok_or(format!("datagram {number} twice, or from nowhere"))?;
        self.tell(|| format!("{who:?} catches {number}"));
        if thrown.mapping != index || thrown.by == who.side() || thrown.remote != remote {
            return Err(format!("datagram {number} was not for it: {thrown:?}"));
        }
        if payload.len() != thrown.len {
            return Err(format!("{} bytes of {thrown:?}", payload.len()));
        }
        let rest = payload.iter().enumerate().skip(NUMBER);
        let is_same = rest.fold(true, |same, (place, byte)| {
            same & (*byte == byte_at(number, place))
        });
        if !is_same {
            return Err(format!("datagram {number} is not as it was thrown"));
        }
        if payload.len() > MAX_PAYLOAD {
            self.met(Situation::DatagramInPieces);
        }
        let parted_at = self.mappings.all[index].parted_at;
        if parted_at.is_some_and(|at| at < thrown.at) {
            self.met(Situation::MappingOutlived);
        }
        Ok(())
    }

    /// What drivers make of events of mappings; true if this is one.
    pub(super) fn on_mapping_event(&mut self, who: Who, event: &Event) -> bool {
        if matches!(event, Event::Detached) && who == Who::Client {
            for (_, index) in self.mappings_of(who) {
                self.mappings.all[index].parted_at = Some(self.now);
            }
        }
        let (Event::FlowAccepted { flow }
        | Event::FlowRefused { flow, .. }
        | Event::FlowReadable { flow }
        | Event::FlowWritable { flow }
        | Event::FlowAborted { flow, .. }
        | Event::FlowExpired { flow, .. }
        | Event::FlowForgotten { flow, .. }) = *event
        else {
            let is_mapping = |open: &Open| open.protocol == Protocol::Udp;
            if let Event::FlowOpened { open, .. } = event
                && is_mapping(open)
            {
                self.on_mapping_opened(who, open);
                return true;
            }
            return false;
        };
        let Some(index) = self.mapping_of(who, flow) else {
            return false;
        };
        if let Event::FlowReadable { .. } = event {
            self.mappings.due.insert((who, flow));
        } else if let Event::FlowRefused { error, .. } = event {
            self.on_mapping_refused((who, flow, index), *error);
        } else if let Event::FlowAborted { code, .. } = event {
            self.on_mapping_aborted(who, index, *code);
        } else if let Event::FlowForgotten { .. } = event {
            self.on_mapping_forgotten(who, flow, index);
        } else if !matches!(event, Event::FlowAccepted { .. }) {
            self.fault(format!("{who:?}: mapping {index} has {event:?}"));
        }
        true
    }

    fn on_mapping_opened(&mut self, who: Who, open: &Open) {
        let (now, flow) = (self.now, open.flow);
        let index = usize::from(open.source.port().saturating_sub(PORTS));
        let Some(mapping) = self.mappings.all.get_mut(index) else {
            self.fault(format!("a mapping of nobody's is opened: {open:?}"));
            return;
        };
        let refuses = self.refusing && index % 5 == 4;
        mapping.sockets += 1;
        if mapping.sockets > 1 {
            self.fault(format!("mapping {index} has a second socket"));
        }
        if refuses {
            self.met(Situation::MappingRefused);
            self.with(who, |s| s.refuse_flow(flow, OpenError::Exhausted, now));
            return;
        }
        if let Some(books) = self.books(who) {
            books.mappings.insert(flow, index);
        }
        self.with(who, |session| session.accept_flow(flow, now));
    }

    fn on_mapping_refused(&mut self, (who, flow, index): (Who, FlowId, usize), error: OpenError) {
        if !matches!(error, OpenError::TooManyFlows | OpenError::Exhausted) {
            self.fault(format!("mapping {index} was refused with {error:?}"));
        }
        self.mappings.all[index].over = Some("refused");
        if let Some(books) = self.books(who) {
            books.mappings.remove(&flow);
        }
    }

    fn on_mapping_aborted(&mut self, who: Who, index: usize, code: FlowCode) {
        let mapping = &mut self.mappings.all[index];
        if who == Who::Client {
            mapping.over = Some("aborted");
        } else {
            mapping.is_closed = true;
        }
        let is_asked = mapping.is_let_go && who != Who::Client;
        match code {
            FlowCode::Idle if is_asked => {}
            FlowCode::Expired => self.on_mapping_expired(who, index),
            FlowCode::Idle
            | FlowCode::Cancelled
            | FlowCode::PeerReset
            | FlowCode::SocketError
            | FlowCode::Asked
            | FlowCode::Unsealable => {
                self.fault(format!("{who:?}: mapping {index} was aborted: {code:?}"));
            }
        }
    }

    /// Rule 11: no grace runs while a link is up.
    fn on_mapping_expired(&mut self, who: Who, index: usize) {
        self.met(Situation::MappingExpired);
        let (now, in_timeout) = (self.now, self.in_timeout);
        let (grace, born) = (
            self.mappings.all[index].grace,
            self.mappings.all[index].born,
        );
        let Some(books) = self.books(who) else {
            return;
        };
        books.expired_at = Some(now);
        let outage = now.saturating_duration_since(books.heard_at.max(born));
        if in_timeout && outage < grace {
            self.fault(format!(
                "mapping {index} expired after {outage:?}, its grace is {grace:?}"
            ));
        }
    }

    fn on_mapping_forgotten(&mut self, who: Who, flow: FlowId, index: usize) {
        if let Some(books) = self.books(who) {
            books.mappings.remove(&flow);
        }
        let mapping = &mut self.mappings.all[index];
        if who == Who::Client && mapping.is_live() {
            self.fault(format!("mapping {index} is over, and nobody asked for it"));
        } else if who != Who::Client {
            mapping.is_closed = true;
        }
    }

    /// Mappings of a session that is no more.
    pub(super) fn end_mappings(&mut self, mappings: impl Iterator<Item = usize>, side: usize) {
        for index in mappings {
            let mapping = &mut self.mappings.all[index];
            if side == CLIENT {
                mapping.over = mapping.over.or(Some("its session ended"));
            } else {
                mapping.is_closed = true;
            }
        }
    }

    /// Some mapping is not let go of.
    pub(super) fn has_live_mapping(&self, mut mappings: impl Iterator<Item = usize>) -> bool {
        mappings.any(|index| self.mappings.all[index].is_live())
    }

    /// What datagrams may take beside a buffer.
    pub(super) fn datagram_bytes(&self, buffer: u64) -> u64 {
        let [least, most] = [limits::DATAGRAM_BYTES_LEAST, limits::DATAGRAM_BYTES];
        let bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        (buffer / limits::DATAGRAM_SHARE).clamp(bytes(least), bytes(most))
    }

    /// What was lost, and why.
    pub(super) fn note_dropped(&mut self, who: Who) {
        let Some(counts) = self.session(who).map(Session::datagram_counts) else {
            return;
        };
        for (count, situation) in [
            (counts.stale, Situation::DatagramStale),
            (counts.crowded_out, Situation::DatagramCrowdedOut),
            (counts.abandoned, Situation::DatagramAbandoned),
        ] {
            if count > 0 {
                self.met(situation);
            }
        }
    }

    /// When all is well, every mapping that is not over carries whatever goes into it, both ways, by
    /// the socket that it has had from the beginning. Then all of them end.
    pub(super) fn prove_mappings(&mut self) {
        if self.fault.is_some() {
            return;
        }
        let live = self.mappings_of(Who::Client).into_iter();
        let live: Vec<_> = live
            .filter(|(_, index)| self.mappings.all[*index].is_live())
            .collect();
        let id = self.client.as_ref().and_then(|client| client.session.id());
        for (flow, index) in &live {
            let (sockets, closed) = {
                let mapping = &self.mappings.all[*index];
                (mapping.sockets, mapping.is_closed)
            };
            if sockets != 1 || closed {
                self.fault(format!(
                    "mapping {index} lives, with {sockets} sockets, the last closed: {closed}"
                ));
                return;
            }
            let mut numbers = Vec::new();
            for who in [Some(Who::Client), id.map(Who::Server)]
                .into_iter()
                .flatten()
            {
                for len in [100, 60_000] {
                    numbers.push(self.throw(who, *flow, len, 1));
                }
            }
            while self.run_links() | self.catch_due() {}
            for number in numbers {
                if number == 0 || self.mappings.thrown.contains_key(&number) {
                    self.fault(format!("mapping {index} does not carry {number} any more"));
                }
            }
        }
        for (flow, _) in live {
            self.let_go_of(flow);
        }
    }

    /// No end keeps anything of a mapping.
    pub(super) fn judge_mappings(&mut self) {
        for who in self.ends() {
            for (flow, index) in self.mappings_of(who) {
                self.fault(format!("{who:?}: mapping {index} is left as {flow}"));
            }
        }
    }

    /// A datagram, or a piece of one, will never arrive.
    pub(super) fn saw_datagram_lost(&mut self, is_piece: bool, side: usize) {
        self.met(match (is_piece, side) {
            (true, _) => Situation::LostPiece,
            (false, SERVER) => Situation::LostAnswer,
            (false, _) => Situation::LostDatagram,
        });
    }
}
