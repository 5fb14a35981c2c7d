//! Mappings of the client: which application's address belongs to which flow, and how long each lives.

mod deadlines;

use self::deadlines::{Deadlines, Order};
use crate::account::{End, EndedBy, FlowAccount, HowEnded, LostBytes, Silence};
use crate::packet::{DATAGRAM_HEADER_BYTES, Datagram, DatagramKind};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::Protocol;
use tund_session::{Contacts, FlowId, Instant, Strangers, limits};

/// A mapping is not ended for another before it has been idle for so long: its answer may be due.
const KEPT_AT_LEAST: Duration = Duration::from_secs(30);
/// Remotes of one mapping of whose last datagram the headers are kept.
const QUOTES: usize = 4;
/// The same of echo requests, where each is a remote of its own: a host that does not answer is told
/// of after 3 s, for each request that waits for it.
const ECHO_QUOTES: usize = 16;
/// A mapping of echo requests ends after so long, the least that RFC 5508 §3.2 asks for: each run of
/// `ping` leaves one.
const ECHO_IDLE: Duration = Duration::from_secs(60);
/// A mapping of UDP whose questions to name servers are all answered ends after so long: RFC 4787
/// §4.3 lets ports that are known for short exchanges have less.
const ANSWERED_IDLE: Duration = Duration::from_secs(20);
/// It is kept at least so long, for an answer that comes twice, or from another name server.
const ANSWERED_KEPT: Duration = Duration::from_secs(2);
/// Whoever sends more datagrams by one port does not only ask for names.
const QUESTIONS_MOST: u8 = 16;
/// Where name servers listen.
const DNS_PORT: u16 = 53;
/// If nothing was heard of the server for so long, which is asked every 25 s while there is a flow, it
/// was a sleep, or an outage that nobody has noticed, and no idle time.
const UNHEARD: Duration = Duration::from_secs(30);
/// Strangers' datagrams that may come at once: as many as a server lets pass, and as many again.
const STRANGERS_AT_ONCE: u32 = 2 * limits::STRANGERS_AT_ONCE;
/// The longest headers that are kept: IPv4 with all options, or IPv6, and the datagram's own.
const QUOTE_BYTES: usize = 60 + DATAGRAM_HEADER_BYTES;

/// The headers of the last datagram to one remote, as the application's kernel wrote them.
#[derive(Clone, Copy, Debug)]
struct Quote {
    remote: SocketAddr,
    bytes: [u8; QUOTE_BYTES],
    len: usize,
}

/// One mapping as the client knows it.
#[derive(Debug)]
pub struct ClientMapping {
    /// What it carries.
    pub kind: DatagramKind,
    /// The application's address; with echo requests, an identifier stands in place of the port.
    pub source: SocketAddr,
    /// The first remote; with echo requests, without a port.
    pub destination: SocketAddr,
    /// When its first datagram came.
    pub since: Instant,
    /// The server has a socket for it.
    pub is_open: bool,
    /// Outages it has lived through.
    pub outages: u64,
    /// Bytes from the application.
    pub up_bytes: u64,
    /// Bytes to the application.
    pub down_bytes: u64,
    /// When its application sent last.
    sent_at: Instant,
    silence: Silence,
    contacts: Contacts,
    quotes: Vec<Quote>,
    /// It ends when its application has sent nothing for so long, unless it is answered.
    idle: Duration,
    /// Nothing but questions to name servers went by it; none before the first datagram.
    asks_names: Option<bool>,
    /// Datagrams of the application, as long as they are few.
    questions: u8,
    /// Datagrams of the application that had no answer yet.
    unanswered: u32,
    /// When its application sent last, by the clock of the mappings.
    active: Duration,
    /// Where it stands in the order of deadlines.
    due: Duration,
}

impl ClientMapping {
    fn new(first: &Datagram, idle: Duration, now: Instant, active: Duration) -> Self {
        Self {
            kind: first.kind,
            source: first.source,
            destination: first.named_destination(),
            since: now,
            is_open: false,
            outages: 0,
            up_bytes: 0,
            down_bytes: 0,
            sent_at: now,
            silence: Silence::new(now),
            contacts: Contacts::default(),
            quotes: Vec::new(),
            idle,
            asks_names: None,
            questions: 0,
            unanswered: 0,
            active,
            due: active + idle,
        }
    }

    /// In whose order it stands.
    const fn order(&self) -> Order {
        match self.kind {
            DatagramKind::Echo => Order::Echo,
            DatagramKind::Udp if matches!(self.asks_names, Some(true)) && self.unanswered == 0 => {
                Order::Answered
            }
            DatagramKind::Udp => Order::Udp,
        }
    }

    /// It ends when its application has sent nothing for so long.
    fn kept(&self) -> Duration {
        match self.order() {
            Order::Answered => ANSWERED_IDLE.min(self.idle),
            Order::Echo | Order::Udp => self.idle,
        }
    }

    /// It is not ended before, whoever wants its place.
    fn kept_at_least(&self) -> Duration {
        match self.order() {
            Order::Answered => ANSWERED_KEPT.min(self.idle),
            Order::Echo | Order::Udp => KEPT_AT_LEAST.min(self.idle),
        }
    }

    /// The longest time in which nothing went by it, up to now.
    pub fn longest_silence(&self, now: Instant) -> Duration {
        self.silence.longest(now)
    }

    /// Something was sent to that address, so that it may answer, whatever the server says.
    pub(crate) fn has_sent_to(&self, remote: SocketAddr) -> bool {
        self.contacts.has(remote.ip())
    }

    /// The headers of the last datagram to `remote`, if they are kept.
    pub(crate) fn quote(&self, remote: SocketAddr) -> Option<&[u8]> {
        self.quotes()
            .find_map(|(to, headers)| (to == remote).then_some(headers))
    }

    /// All headers that are kept, and where those datagrams were to go.
    pub(crate) fn quotes(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let quotes = self.quotes.iter();
        quotes.filter_map(|quote| Some((quote.remote, quote.bytes.get(..quote.len)?)))
    }

    fn keep_quote(&mut self, remote: SocketAddr, headers: &[u8]) {
        let known = self.quotes.iter().position(|quote| quote.remote == remote);
        let place = known.unwrap_or_else(|| {
            let most = match self.kind {
                DatagramKind::Echo => ECHO_QUOTES,
                DatagramKind::Udp => QUOTES,
            };
            if self.quotes.len() >= most {
                // The oldest goes: they are in the order in which their remotes were first met.
                self.quotes.remove(0);
            }
            self.quotes.push(Quote {
                remote,
                bytes: [0; QUOTE_BYTES],
                len: 0,
            });
            self.quotes.len() - 1
        });
        if let Some(quote) = self.quotes.get_mut(place)
            && let Some(bytes) = quote.bytes.get_mut(..headers.len())
        {
            bytes.copy_from_slice(headers);
            quote.len = headers.len();
        }
    }
}

/// All mappings of the current session.
#[derive(Debug, Default)]
pub struct Mappings {
    mappings: BTreeMap<FlowId, ClientMapping>,
    by_source: FxHashMap<(DatagramKind, SocketAddr), FlowId>,
    /// When each is to be looked at; later than that if something went by it meanwhile.
    deadlines: Deadlines,
    /// Ended here, and not yet forgotten by the session.
    leaving: BTreeMap<FlowId, (ClientMapping, End)>,
    /// The time that outages have taken since the start, which counts for no mapping.
    paused: Duration,
    /// The outage that goes on.
    paused_since: Option<Instant>,
    /// When the server was heard last.
    heard_at: Option<Instant>,
    /// When it was last asked whether it is there, since a mapping is to end.
    asked_at: Option<Instant>,
    strangers: Strangers,
}

impl Mappings {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// How many of them are for echo requests.
    pub fn echoes(&self) -> usize {
        let echoes = self.mappings.values();
        echoes.filter(|of| of.kind == DatagramKind::Echo).count()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &ClientMapping)> {
        self.mappings.iter().map(|(id, mapping)| (*id, mapping))
    }

    pub(crate) fn find(&self, kind: DatagramKind, source: SocketAddr) -> Option<FlowId> {
        self.by_source.get(&(kind, source)).copied()
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&ClientMapping> {
        self.mappings.get(&id)
    }

    /// It is one, or was one until the session forgets it.
    pub(crate) fn knows(&self, id: FlowId) -> bool {
        self.mappings.contains_key(&id) || self.leaving.contains_key(&id)
    }

    /// One has been ended here, and the session has not forgotten it.
    pub(crate) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// The server has a socket for it.
    pub(crate) fn open(&mut self, id: FlowId) {
        if let Some(mapping) = self.mappings.get_mut(&id) {
            mapping.is_open = true;
        }
    }

    /// The time that has passed without outages, as far as is known: from when the server was heard
    /// last, there may be one.
    fn clock(&self, now: Instant) -> Duration {
        self.clock_at(self.heard_at.map_or(now, |heard| now.min(heard)))
    }

    /// The same, if there is none.
    fn clock_at(&self, now: Instant) -> Duration {
        let now = self.paused_since.unwrap_or(now);
        Duration::from_nanos(now.as_nanos()).saturating_sub(self.paused)
    }

    /// Something has come from the server. If that took too long, it was an outage, though nobody
    /// has noticed.
    pub(crate) fn heard(&mut self, now: Instant) {
        if let Some(heard) = self.heard_at
            && heard + UNHEARD < now
            && self.paused_since.is_none()
        {
            self.paused += now.saturating_duration_since(heard);
        }
        self.heard_at = Some(now);
    }

    /// An outage has begun, when the server was heard last: the clock stands still.
    pub(crate) fn pause(&mut self, now: Instant) {
        let since = self.heard_at.unwrap_or(now).min(now);
        self.paused_since.get_or_insert(since);
    }

    /// It is over, or so is the session.
    pub(crate) fn go_on(&mut self, now: Instant) {
        if let Some(since) = self.paused_since.take() {
            self.paused += now.saturating_duration_since(since);
        }
        self.heard_at = Some(now);
    }

    pub(crate) fn survived(&mut self) {
        let all = self.mappings.values_mut();
        all.for_each(|mapping| mapping.outages += 1);
    }

    pub(crate) fn insert(&mut self, id: FlowId, first: &Datagram, idle: Duration, now: Instant) {
        if self.mappings.is_empty() {
            // What was before is nothing to it.
            self.heard_at = Some(now);
        }
        let clock = self.clock_at(now);
        let mapping = ClientMapping::new(first, idle, now, clock);
        self.deadlines.of(mapping.order()).insert((mapping.due, id));
        self.by_source.insert((first.kind, first.source), id);
        self.mappings.insert(id, mapping);
    }

    /// A datagram of the application's, `bytes` long, with these headers; returns how long nothing
    /// had gone by the mapping.
    pub(crate) fn sent(
        &mut self,
        id: FlowId,
        remote: SocketAddr,
        (headers, bytes): (&[u8], usize),
        now: Instant,
    ) -> Duration {
        let clock = self.clock_at(now);
        let Some(mapping) = self.mappings.get_mut(&id) else {
            return Duration::ZERO;
        };
        let silence = mapping.silence.lasts(now);
        let before = mapping.order();
        mapping.questions = mapping.questions.saturating_add(1);
        let is_question = remote.port() == DNS_PORT && mapping.questions <= QUESTIONS_MOST;
        let asks_names = mapping.asks_names.unwrap_or(true) && is_question;
        mapping.asks_names = Some(asks_names);
        mapping.unanswered = mapping.unanswered.saturating_add(1);
        self.deadlines.put_in_order(id, mapping, before);
        mapping.silence.end(now);
        mapping.sent_at = now;
        mapping.active = clock;
        mapping.up_bytes += u64::try_from(bytes).unwrap_or(0);
        mapping.contacts.note(remote.ip());
        mapping.keep_quote(remote, headers);
        silence
    }

    /// Whether one more datagram of a stranger is heard, whatever the server lets pass.
    pub(crate) fn hears_stranger(&mut self, bytes: usize, now: Instant) -> bool {
        self.strangers.admit(bytes, STRANGERS_AT_ONCE, now)
    }

    /// A datagram for the application. It keeps no mapping alive: the application may be gone, and
    /// whoever sends then would keep it for ever (RFC 4787 §4.3).
    pub(crate) fn received(&mut self, id: FlowId, bytes: usize, now: Instant) {
        if let Some(mapping) = self.mappings.get_mut(&id) {
            mapping.silence.end(now);
            mapping.down_bytes += u64::try_from(bytes).unwrap_or(0);
            let before = mapping.order();
            if mapping.unanswered == 0 {
                mapping.asks_names = Some(false); // nobody has asked for that
            }
            mapping.unanswered = mapping.unanswered.saturating_sub(1);
            self.deadlines.put_in_order(id, mapping, before);
        }
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<ClientMapping> {
        let mapping = self.mappings.remove(&id)?;
        self.by_source.remove(&(mapping.kind, mapping.source));
        self.deadlines
            .of(mapping.order())
            .remove(&(mapping.due, id));
        Some(mapping)
    }

    /// Ends it here; its account stays open until the session has forgotten the flow, too.
    pub(crate) fn leave(&mut self, id: FlowId, end: End) {
        let mapping = self.remove(id);
        self.leaving
            .extend(mapping.map(|mapping| (id, (mapping, end))));
    }

    /// The account of a mapping that the session has forgotten.
    pub(crate) fn settle(
        &mut self,
        id: FlowId,
        lost: LostBytes,
        now: Instant,
    ) -> Option<FlowAccount> {
        let (mapping, end) = self.leaving.remove(&id).or_else(|| {
            let end = (EndedBy::Server, HowEnded::Failed);
            Some((self.remove(id)?, end))
        })?;
        Some(FlowAccount::of_mapping(id, &mapping, end, lost, now))
    }

    /// All of them end with their session.
    pub(crate) fn drain(&mut self, end: End) -> Vec<(FlowId, ClientMapping, End)> {
        self.by_source.clear();
        self.deadlines.clear();
        let left = std::mem::take(&mut self.leaving).into_iter();
        let left = left.map(|(id, (mapping, end))| (id, mapping, end));
        let live = std::mem::take(&mut self.mappings).into_iter();
        left.chain(live.map(|(id, mapping)| (id, mapping, end)))
            .collect()
    }

    /// The first in that order to have been idle for long enough, and when that is by the clock.
    fn first_idle(&mut self, order: Order) -> Option<(Duration, FlowId)> {
        let deadlines = self.deadlines.of(order);
        loop {
            let (due, id) = deadlines.first().copied()?;
            let mapping = self.mappings.get_mut(&id)?;
            let true_due = mapping.active + mapping.kept();
            if true_due == due {
                return Some((due, id));
            }
            deadlines.remove(&(due, id));
            mapping.due = true_due;
            deadlines.insert((true_due, id));
        }
    }

    /// The first in each order.
    fn firsts_idle(&mut self) -> [Option<(Duration, FlowId)>; 3] {
        Order::ALL.map(|order| self.first_idle(order))
    }

    /// The next that has been idle for long enough, if there is one.
    pub(crate) fn next_idle(&mut self, now: Instant) -> Option<FlowId> {
        let clock = self.clock(now);
        if self.deadlines.first().is_none_or(|due| due > clock) {
            return None;
        }
        let (due, id) = self.firsts_idle().into_iter().flatten().min()?;
        (due <= clock).then_some(id)
    }

    /// Whether the server is to be asked if it is there: a mapping is to end unless there is an
    /// outage, of which nobody knows yet.
    pub(crate) fn asks(&mut self, now: Instant) -> bool {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.paused_since.is_some() || !is_due(self.poll_timeout()) {
            return false;
        }
        let has_any = self.firsts_idle().iter().any(Option::is_some);
        let is_asking = has_any && is_due(self.poll_timeout());
        if is_asking {
            self.asked_at = Some(now);
        }
        is_asking
    }

    /// The one that would end first, of those whose applications have been silent for a while.
    pub(crate) fn next_to_go(&mut self, now: Instant) -> Option<FlowId> {
        let firsts = self.firsts_idle().into_iter().flatten();
        let silent = firsts.filter(|(_, id)| {
            self.get(*id).is_some_and(|mapping| {
                let silence = now.saturating_duration_since(mapping.sent_at);
                silence >= mapping.kept_at_least()
            })
        });
        silent.min().map(|(_, id)| id)
    }

    /// Those for which the server is not known to have a socket.
    pub(crate) fn unopened(&self) -> Vec<FlowId> {
        let unopened = self.mappings.iter().filter(|(_, mapping)| !mapping.is_open);
        unopened.map(|(id, _)| *id).collect()
    }

    /// When the next has to be looked at; never in an outage, nor a second time before the server is
    /// heard.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.paused_since.is_some() {
            return None;
        }
        let due = self.deadlines.first()?;
        let at = Instant::default() + due + self.paused;
        let is_past = |of: Option<Instant>| of.is_some_and(|of| of >= at);
        let is_heard = self.heard_at.is_none() || is_past(self.heard_at);
        (is_heard || !is_past(self.asked_at)).then_some(at)
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        let live = self.mappings.len().max(self.by_source.len());
        live.max(self.deadlines.len()) + self.leaving.len()
    }
}

/// Who may send to applications' sockets of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Those that they have sent to.
    Address,
    /// Anybody.
    Endpoint,
}

/// What holds for mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingConfig {
    /// One of UDP ends when its application has sent nothing for so long, outages left out.
    pub idle: Duration,
    /// Who may send to it.
    pub filtering: Filtering,
    /// How long an outage it outlives.
    pub grace: Duration,
}

impl MappingConfig {
    /// What a mapping is asked for as.
    pub(crate) const fn protocol(&self, kind: DatagramKind) -> Protocol {
        match (kind, self.filtering) {
            (DatagramKind::Echo, _) => Protocol::Icmp,
            (DatagramKind::Udp, Filtering::Address) => Protocol::Udp,
            (DatagramKind::Udp, Filtering::Endpoint) => Protocol::UdpAny,
        }
    }

    /// Whether those may send to one that it has not sent to: nobody replies who was not asked.
    pub(crate) const fn hears_strangers(&self, kind: DatagramKind) -> bool {
        matches!(
            (kind, self.filtering),
            (DatagramKind::Udp, Filtering::Endpoint)
        )
    }

    /// How long its application may send nothing.
    pub(crate) const fn idle(&self, kind: DatagramKind) -> Duration {
        match kind {
            DatagramKind::Echo => ECHO_IDLE,
            DatagramKind::Udp => self.idle,
        }
    }
}

#[cfg(test)]
mod tests;
