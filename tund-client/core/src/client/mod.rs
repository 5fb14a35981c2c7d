//! `Client`: connection A, the session and the dialer together; all decisions of the daemon.

mod asking;
mod contract;
mod datagrams;
mod delivery;
mod ends;
mod events;
mod hand_off;
mod network;
mod storing;
#[cfg(test)]
mod tests;

use crate::dialer::{DialOrder, Dialer, Want};
use crate::flow_table::FlowTable;
use crate::mappings::Mappings;
use crate::netstack::{Arena, Netstack, Sink};
use crate::spool::Spool;
use crate::takes::Takes;
use asking::Asking;
use bytes::Bytes;
pub use contract::{ClientConfig, ClientEvent, Outages, Refused, State};
use delivery::Behind;
use hand_off::Nameless;
use network::Outlook;
pub use network::{Network, Path};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;
use storing::Storing;
use tund_session::wire::frame::CloseCode;
use tund_session::{
    DatagramCounts, FlowId, Instant, LinkId, Outbox, Progress, Secret, Session, SessionId, Traffic,
};

pub use storing::NotStored;

/// A session that never attached is given up when no application has wanted it for so long: one
/// that tries again and again keeps the attempts under way.
const UNWANTED_AFTER: Duration = Duration::from_secs(30);

/// The client daemon without I/O.
///
/// A turn of its owner: `handle_*` for everything that has come; then, in this order,
/// [`flush`](Self::flush) once, [`poll_transmit`](Self::poll_transmit) for each link with room,
/// [`poll_event`](Self::poll_event) until `None`, and [`poll_timeout`](Self::poll_timeout).
pub struct Client {
    pub(crate) config: ClientConfig,
    pub(crate) netstack: Netstack,
    pub(crate) session: Option<Session>,
    pub(crate) table: FlowTable,
    pub(crate) mappings: Mappings,
    /// Mappings for whose applications something has come.
    readable_mappings: Vec<FlowId>,
    bounces: Vec<datagrams::PendingBounce>,
    /// So many datagrams had waited in vain when mappings were last looked through for that.
    waited_in_vain: u64,
    pub(crate) dialer: Dialer,
    /// Applications that ask while no flow can be opened for them.
    asking: Asking,
    outlook: Outlook,
    orders: Vec<DialOrder>,
    pub(crate) events: VecDeque<ClientEvent>,
    refused: Option<Refused>,
    /// An application has asked since: worth another attempt, however it was answered.
    is_insisted_on: bool,
    /// The link whose keys have been used long enough.
    worn: Option<LinkId>,
    /// The user has asked to disconnect; nothing is dialled before an application asks.
    is_parted: bool,
    /// No application has wanted the session since then, and it never attached.
    unwanted_since: Option<Instant>,
    /// The server address at which the session was made.
    home: Option<u16>,
    outages: Outages,
    /// The last byte heard on any link.
    last_heard: Option<Instant>,
    /// The last byte heard before the outage that goes on.
    outage_from: Option<Instant>,
    /// Flows of this session that were reset when their own grace was over, and the bytes that
    /// waited in their rings.
    expired: (usize, u64),
    /// Traffic of sessions that are over.
    past: Traffic,
    past_datagrams: DatagramCounts,
    /// Ended sessions whose last words are still to be sent; each goes with its last link.
    parting: Vec<Session>,
    spool: Spool,
    storing: Storing,
    /// Applications that wait until older bytes for the same origin are delivered.
    behind: Behind,
    /// Connections that wait until it is known whose they are.
    nameless: Nameless,
    /// What users' connections have left at the server.
    takes: Takes,
    /// The server of the last session does not deliver.
    is_undeliverable: bool,
}

impl Client {
    /// A client without a session.
    pub fn new(config: ClientConfig, arena: Box<dyn Arena + Send>, now: Instant) -> Self {
        Self {
            netstack: Netstack::new(&config.netstack, arena, now),
            session: None,
            table: FlowTable::default(),
            mappings: Mappings::default(),
            readable_mappings: Vec::new(),
            bounces: Vec::new(),
            waited_in_vain: 0,
            dialer: Dialer::new(config.seed),
            asking: Asking::default(),
            outlook: Outlook::default(),
            orders: Vec::new(),
            events: VecDeque::new(),
            refused: None,
            is_insisted_on: false,
            worn: None,
            is_parted: false,
            unwanted_since: None,
            home: None,
            outages: Outages::default(),
            last_heard: None,
            outage_from: None,
            expired: (0, 0),
            past: Traffic::default(),
            past_datagrams: DatagramCounts::default(),
            parting: Vec::new(),
            spool: Spool::new(config.spool_bytes),
            storing: Storing::default(),
            behind: Behind::default(),
            nameless: Nameless::default(),
            takes: Takes::default(),
            is_undeliverable: false,
            config,
        }
    }

    /// A packet of the TUN device; its bytes are changed.
    pub fn handle_packet(&mut self, packet: &mut [u8], now: Instant, sink: &mut dyn Sink) {
        if let Some(taken) = self.netstack.handle_packet(packet, now, sink) {
            let read = packet.get(taken.at..).unwrap_or_default();
            let whole = taken.whole.as_deref().unwrap_or(read);
            self.on_datagram(whole, &taken, now, sink);
        }
    }

    /// An attempt's SYN was answered.
    pub fn handle_answered(&mut self, link: LinkId, now: Instant) {
        self.dialer.answered(link, now, &mut self.orders);
    }

    /// An attempt has reached the pinned server.
    pub fn handle_link_up(&mut self, link: LinkId, secret: Secret, now: Instant) {
        let Some(session) = &mut self.session else {
            self.dialer.ended(link);
            self.close_link(link, false);
            return;
        };
        session.handle_link_up(link, secret, now);
        self.dialer.committed(link);
        let address = self
            .dialer
            .attempt(link)
            .map(|attempt| attempt.path.address);
        if self.home.is_some() && address != self.home {
            session.note_elsewhere(link);
        }
    }

    fn close_link(&mut self, link: LinkId, has_last_words: bool) {
        self.events.push_back(ClientEvent::CloseLink {
            link,
            has_last_words,
        });
    }

    /// Bytes of a link, in any pieces.
    pub fn handle_bytes(&mut self, link: LinkId, bytes: Bytes, now: Instant) {
        self.last_heard = Some(now);
        self.mappings.heard(now);
        if let Some(session) = &mut self.session {
            session.handle_bytes(link, bytes, now);
        }
        self.outlook.settled();
    }

    /// A link, or an attempt, is gone. `refused`: the pinned server does not list our key.
    pub fn handle_link_down(&mut self, link: LinkId, refused: bool, now: Instant) {
        self.dialer.ended(link);
        self.outlook.forget(link);
        for parting in &mut self.parting {
            parting.handle_link_down(link, now);
        }
        self.parting.retain(|parting| parting.link_count() > 0);
        if let Some(session) = &mut self.session {
            session.handle_link_down(link, now);
        }
        if refused {
            self.refuse(Refused::KeyNotListed, now);
        }
    }

    /// The answer to [`ClientEvent::WantProgress`].
    pub fn handle_progress(&mut self, link: LinkId, progress: Progress, now: Instant) {
        if let Some(session) = &mut self.session {
            session.handle_progress(link, progress, now);
        }
    }

    /// The keys of a link have been used long enough: another one shall take its place, without an
    /// outage.
    pub fn handle_worn(&mut self, link: LinkId) {
        self.worn = Some(link);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut dyn Sink) {
        if self.netstack.poll_timeout().is_some_and(|at| at <= now) {
            self.netstack.handle_timeout(now, sink);
        }
        if let Some(session) = &mut self.session {
            session.handle_timeout(now);
        }
        self.dialer.handle_timeout(now, &mut self.orders);
        self.spool.handle_timeout(now);
        self.fail_stalled(now);
        self.expire_behind(now);
        self.end_idle_mappings(now);
        self.takes.handle_timeout(now);
        self.linger(now);
        self.look_if_due(now);
    }

    /// When a session that nobody needs ends.
    fn lingers_until(&self) -> Option<Instant> {
        let session = self.session.as_ref().filter(|s| !s.is_ended())?;
        let unwanted = self.unwanted_since.map(|since| since + UNWANTED_AFTER);
        let idle = self
            .config
            .linger
            .and_then(|linger| Some(session.idle_since()? + linger));
        [unwanted, idle].into_iter().flatten().min()
    }

    fn linger(&mut self, now: Instant) {
        if self.lingers_until().is_some_and(|at| at <= now)
            && let Some(session) = &mut self.session
        {
            session.close(CloseCode::Idle, now);
        }
    }

    /// Whether the daemon wants a session without being asked by an application.
    fn is_always_on(&self) -> bool {
        self.config.linger.is_none() && !self.is_parted
    }

    /// The next deadline.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self
            .session
            .as_ref()
            .and_then(|s| s.poll_timeout())
            .map(|(at, _)| at);
        let all = [
            self.netstack.poll_timeout(),
            session,
            self.dialer.poll_timeout(),
            self.lingers_until(),
            self.asking.poll_timeout(),
            self.spool.poll_timeout(),
            self.delivery_stalls_at(),
            self.behind.poll_timeout(),
            self.takes.poll_timeout(),
            self.outlook.poll_timeout(),
            self.mappings.poll_timeout(),
        ];
        all.into_iter().flatten().min()
    }

    /// Carries everything across: what applications sent into the session, what the session has
    /// into connection A, orders to the dialer; then sends the packets that result.
    pub fn flush(&mut self, now: Instant, sink: &mut dyn Sink) {
        self.carry(now);
        loop {
            self.netstack.flush(now, sink);
            self.deliver_datagrams(now, sink);
            self.direct_dialer(now);
            // Sending ends connections, and closing attempts ends links: the session is told.
            if !self.carry(now) {
                return;
            }
        }
    }

    /// Tells each side what has happened on the other; true if anything has.
    fn carry(&mut self, now: Instant) -> bool {
        let mut any = false;
        loop {
            let mut moved = false;
            // First, so that no application is given to a session that has ended.
            while let Some(event) = self.session.as_mut().and_then(Session::poll_event) {
                self.on_session_event(event, now);
                moved = true;
            }
            while let Some(event) = self.netstack.poll_event() {
                self.on_net_event(event, now);
                moved = true;
            }
            moved |= self.ask_again(now);
            moved |= self.deliver(now);
            while let Some(order) = self.spool.poll_order() {
                self.events.push_back(ClientEvent::Spool(order));
            }
            if !moved {
                return any;
            }
            any = true;
        }
    }

    fn direct_dialer(&mut self, now: Instant) {
        let always = self.is_always_on();
        let delivers = self.wants_delivery();
        if self.session.is_none() && (always || delivers || self.is_insisted_on) {
            self.session = Some(Session::new_client(&self.config.session, now));
        }
        let is_unwanted = !(always || delivers)
            && self.table.is_empty()
            && self.mappings.is_empty()
            && self.asking.is_empty()
            && self.behind.is_empty()
            && self.nameless.is_empty()
            && self.session.as_ref().is_some_and(|s| s.id().is_none());
        if is_unwanted {
            self.unwanted_since.get_or_insert(now);
        } else {
            self.unwanted_since = None;
        }
        self.tend(now);
        let want = self.wanted();
        self.dialer.want(want, now, &mut self.orders);
        if self.dialer.is_look_due(now) {
            self.events.push_back(ClientEvent::FindPaths);
        }
        for order in std::mem::take(&mut self.orders) {
            match order {
                DialOrder::Start(link, path) => {
                    self.outlook.dialled(link, path);
                    self.events.push_back(ClientEvent::Dial { link, path });
                }
                DialOrder::GiveUp(link) => {
                    if let Some(session) = &mut self.session {
                        session.handle_link_down(link, now);
                    }
                    self.close_link(link, false);
                }
            }
        }
    }

    /// Whether a session without a link is to have one.
    fn is_link_needed(&self, session: &Session) -> bool {
        let insisted = self.is_insisted_on || self.unwanted_since.is_some();
        let asked = self.is_always_on() || self.wants_delivery() || insisted;
        let needed = asked || session.wants_link();
        needed && !session.is_ended()
    }

    fn wanted(&self) -> Want {
        let Some(session) = self.session.as_ref().filter(|s| self.is_link_needed(s)) else {
            return Want::Nothing;
        };
        if !session.is_attached() || self.outlook.is_in_doubt() {
            return Want::Link;
        }
        let further = self.further_paths(session);
        if further.is_empty() {
            Want::Nothing
        } else {
            Want::Further(further)
        }
    }

    /// Appends what is due on a link; see [`Session::poll_transmit`].
    pub fn poll_transmit(
        &mut self,
        link: LinkId,
        budget: usize,
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        let current = self
            .session
            .as_mut()
            .is_some_and(|s| s.poll_transmit(link, budget, out, now));
        current
            || self
                .parting
                .iter_mut()
                .any(|s| s.poll_transmit(link, budget, out, now))
    }

    /// What the driver shall do next.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// The user asks to disconnect, or the daemon stops.
    pub fn disconnect(&mut self, now: Instant) {
        self.is_parted = true;
        self.is_insisted_on = false;
        self.refused = None;
        self.takes.clear();
        if let Some(session) = &mut self.session {
            session.close(CloseCode::Asked, now);
        }
    }

    /// Drops the links and dials again at once; flows survive. After a refusal: asks again.
    pub fn reconnect(&mut self, now: Instant) {
        self.dialer.clear_wait(now);
        self.is_insisted_on |= self.refused.is_some();
        self.is_parted = false;
        let Some(session) = &mut self.session else {
            return;
        };
        let links: Vec<_> = session.live_links().map(|(link, _)| link).collect();
        for link in links {
            session.handle_link_down(link, now);
        }
    }

    /// Connection A, for its counters and for what the driver tells it of the host.
    pub fn netstack(&mut self) -> &mut Netstack {
        &mut self.netstack
    }

    /// What the daemon is doing.
    pub fn state(&self) -> State {
        match (&self.session, self.refused) {
            (Some(session), _) if session.is_attached() => State::Attached,
            (_, Some(_)) => State::Refused,
            (None, None) => State::Ready,
            (Some(session), None) if session.id().is_none() => State::Connecting,
            (Some(_), None) => State::Detached,
        }
    }

    /// Why a person is needed.
    pub fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// The session's name.
    pub fn session_id(&self) -> Option<SessionId> {
        self.session.as_ref()?.id()
    }

    /// The link that carries flows, then all others that are attached.
    pub fn links(&self) -> impl Iterator<Item = LinkId> {
        let carrier = self.session.as_ref().and_then(Session::carrier);
        let live = self
            .session
            .iter()
            .flat_map(Session::live_links)
            .map(|(link, _)| link);
        carrier
            .into_iter()
            .chain(live.filter(move |link| Some(*link) != carrier))
    }

    /// That link is attached and answers.
    pub fn is_working(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|s| s.is_working(link))
    }

    /// Outages since the start.
    pub fn outages(&self) -> Outages {
        self.outages
    }

    /// Bytes from applications and to applications, since the start.
    pub fn traffic(&self) -> Traffic {
        let now = self
            .session
            .as_ref()
            .map(Session::traffic)
            .unwrap_or_default();
        Traffic {
            taken: self.past.taken + now.taken,
            released: self.past.released + now.released,
        }
    }

    /// Bytes taken from applications, and bytes waiting for them, rings included.
    pub fn buffered(&mut self) -> (u64, u64) {
        let (up, down) = self
            .session
            .as_ref()
            .map(Session::buffered)
            .unwrap_or_default();
        let (ring_up, ring_down) = self.table.buffered(&mut self.netstack);
        (up + ring_up, down + ring_down)
    }

    /// Bytes of one flow that the session holds, each way.
    pub fn flow_buffered(&self, flow: FlowId) -> (u64, u64) {
        self.session
            .as_ref()
            .map(|s| s.flow_buffered(flow))
            .unwrap_or_default()
    }

    /// Flows under way.
    pub fn flows(&self) -> &FlowTable {
        &self.table
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
