//! Mappings of the world: each has one socket, and outlives outages.

use super::coverage::Situation;
use super::rng::Rng;
use super::throws::Thrown;
use super::world::{CLIENT, Who, World};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tund_session::wire::frame::{FlowCode, OnExpiry, Open, OpenError, Protocol};
use tund_session::{Event, FlowId, Instant, OpenRefused, Target};

/// Ports of applications with mappings; those of connections are smaller.
const PORTS: u16 = 1000;
/// Mappings at once, and in all.
const MOST: (usize, usize) = (4, 16);
/// What they carry, one after the other.
const KINDS: [Protocol; 3] = [Protocol::Udp, Protocol::Icmp, Protocol::UdpAny];

/// One mapping of an application's.
#[derive(Debug)]
pub(super) struct Mapping {
    grace: Duration,
    born: Instant,
    /// Sockets that the server has made for it. There is never a second one.
    pub(super) sockets: u32,
    /// The last of them is closed.
    pub(super) is_closed: bool,
    /// The application has heard nothing of it for long, and its client lets go.
    is_let_go: bool,
    /// It is over at the client, which did not ask for that.
    over: Option<&'static str>,
    /// The client was last without a link then.
    pub(super) parted_at: Option<Instant>,
}

impl Mapping {
    pub(super) fn is_live(&self) -> bool {
        !self.is_let_go && self.over.is_none()
    }
}

/// All mappings ever, and what is under way in them.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    pub(super) all: Vec<Mapping>,
    pub(super) thrown: BTreeMap<u64, Thrown>,
    pub(super) numbers: u64,
    /// Mappings that an end was told to look at; nothing else makes it look.
    pub(super) due: BTreeSet<(Who, FlowId)>,
}

impl World {
    pub(super) fn mappings_of(&self, who: Who) -> Vec<(FlowId, usize)> {
        let books = match who {
            Who::Client => self.client.as_ref().map(|client| &client.books),
            Who::Server(id) => self.books.get(&id),
        };
        let mappings = books.map(|books| books.mappings.iter());
        let mappings = mappings.into_iter().flatten();
        mappings.map(|(flow, index)| (*flow, *index)).collect()
    }

    pub(super) fn mapping_of(&self, who: Who, flow: FlowId) -> Option<usize> {
        let books = match who {
            Who::Client => self.client.as_ref().map(|client| &client.books),
            Who::Server(id) => self.books.get(&id),
        };
        books?.mappings.get(&flow).copied()
    }

    pub(super) fn some_mapping(&self, who: Who, rng: &mut Rng) -> Option<FlowId> {
        let mappings = self.mappings_of(who);
        let live = mappings.into_iter().filter(|(_, index)| {
            let mapping = &self.mappings.all[*index];
            mapping.is_live() && !(who != Who::Client && mapping.is_closed)
        });
        let live: Vec<FlowId> = live.map(|(flow, _)| flow).collect();
        (!live.is_empty()).then(|| rng.pick(&live))
    }

    pub(super) fn open_mapping(&mut self, grace: Duration) {
        let live = self.mappings.all.iter().filter(|m| m.is_live()).count();
        if live >= MOST.0 || self.mappings.all.len() >= MOST.1 {
            return;
        }
        self.want_session();
        let index = self.mappings.all.len();
        let port = PORTS + u16::try_from(index).unwrap_or(0);
        let target = Target {
            protocol: KINDS[index % KINDS.len()],
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

    pub(super) fn let_some_go(&mut self, rng: &mut Rng) {
        if let Some(flow) = self.some_mapping(Who::Client, rng) {
            self.let_go_of(flow);
        }
    }

    pub(super) fn let_go_of(&mut self, flow: FlowId) {
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
            let is_mapping = |open: &Open| KINDS.contains(&open.protocol);
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

    /// No end keeps anything of a mapping.
    pub(super) fn judge_mappings(&mut self) {
        for who in self.ends() {
            for (flow, index) in self.mappings_of(who) {
                self.fault(format!("{who:?}: mapping {index} is left as {flow}"));
            }
        }
    }
}
