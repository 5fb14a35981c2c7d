//! What the server tells and does over its control socket.

use super::Server;
use super::links::LinkSlot;
use std::net::{IpAddr, SocketAddr};
use tund_daemon::control::{
    ByteCounts, FlowCounts, HeldReport, LinkReport, MemoryReport, Page, Request, SESSION_ROWS_MAX,
    ServerCommand, ServerState, ServerStatus, SessionCounts, SessionRow, SessionState,
};
use tund_server_core::registry::ClientKey;
use tund_session::wire::frame::CloseCode;
use tund_session::{Instant, Session, SessionId};

impl Server {
    pub(super) fn on_request(&mut self, request: Request<ServerCommand>, now: Instant) {
        match request.command.clone() {
            ServerCommand::Status => request.answer(&self.status()),
            ServerCommand::Sessions { after } => request.answer(&self.sessions(after, now)),
            ServerCommand::DisconnectSession { session_id } => {
                let wanted = |id: &SessionId, _: ClientKey| id.to_string() == session_id;
                request.answer(&self.disconnect(wanted, now));
            }
            ServerCommand::DisconnectClient { name } => {
                let Some(index) = self.config.clients.iter().position(|c| c.name == name) else {
                    request.refuse("unknown_client", format!("no [[client]] is named {name:?}"));
                    return;
                };
                let clients = self.client_of.clone();
                let wanted = |_: &SessionId, key| clients.get(&key) == Some(&index);
                request.answer(&self.disconnect(wanted, now));
            }
        }
    }

    fn disconnect(&mut self, wanted: impl Fn(&SessionId, ClientKey) -> bool, now: Instant) -> u64 {
        let named = self
            .registry
            .sessions()
            .filter(|(id, key, s)| !s.is_ended() && wanted(id, *key));
        let named: Vec<_> = named.map(|(id, ..)| id).collect();
        for id in &named {
            self.registry.close(*id, CloseCode::Asked, now);
        }
        u64::try_from(named.len()).unwrap_or(u64::MAX)
    }

    fn status(&self) -> ServerStatus {
        let mut sessions = SessionCounts::default();
        for (_, _, session) in self
            .registry
            .sessions()
            .filter(|(.., s)| s.is_confirmed() && !s.is_ended())
        {
            if session.is_attached() {
                sessions.attached += 1;
            } else {
                sessions.detached += 1;
            }
        }
        let listen = self
            .listeners
            .iter()
            .filter_map(|l| l.socket.local_addr().ok());
        ServerStatus {
            state: ServerState::Ready,
            listen: listen.collect(),
            sessions,
            memory: MemoryReport {
                used_bytes: self.registry.lent() + self.registry.offers().bytes(),
                limit_bytes: self.config.memory_bytes,
            },
            held: self.held(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn held(&self) -> HeldReport {
        let offers = self.registry.offers();
        HeldReport {
            flows: u64::try_from(offers.len()).unwrap_or(u64::MAX),
            bytes: offers.bytes(),
            handed_on_bytes: offers.tally().handed_on,
            lost_bytes: offers.tally().lost,
        }
    }

    fn sessions(&self, after: Option<String>, now: Instant) -> Page<SessionRow, String> {
        let live = self
            .registry
            .sessions()
            .filter(|(.., session)| session.is_confirmed() && !session.is_ended());
        let beyond = |id: &SessionId| after.as_ref().is_none_or(|after| id.to_string() > *after);
        let mut rows = live
            .filter(|(id, ..)| beyond(id))
            .take(SESSION_ROWS_MAX + 1)
            .map(|(id, key, session)| self.row(id, key, session, now))
            .collect::<Vec<_>>();
        let more = rows.len() > SESSION_ROWS_MAX;
        rows.truncate(SESSION_ROWS_MAX);
        let next = rows
            .last()
            .filter(|_| more)
            .map(|row| row.session_id.clone());
        Page { rows, next }
    }

    fn row(&self, id: SessionId, key: ClientKey, session: &Session, now: Instant) -> SessionRow {
        let client = self
            .client_of
            .get(&key)
            .and_then(|index| self.config.clients.get(*index));
        let (down, up) = session.buffered();
        let traffic = session.traffic();
        let links = session
            .live_links()
            .filter(|(link, _)| session.is_working(*link))
            .filter_map(|(link, _)| self.links.get(&link).and_then(|slot| report(slot, now)));
        SessionRow {
            session_id: id.to_string(),
            client: client.map(|client| client.name.clone()).unwrap_or_default(),
            state: if session.is_attached() {
                SessionState::Attached
            } else {
                SessionState::Detached
            },
            links: links.collect(),
            flows: FlowCounts {
                tcp: count(session.flow_count() - session.mapping_count()),
                udp: count(session.mapping_count() - session.echo_count()),
                icmp: count(session.echo_count()),
            },
            bytes: ByteCounts {
                up: traffic.released,
                down: traffic.taken,
            },
            buffered_bytes: ByteCounts { up, down },
            age_ms: millis(now, session.born()),
        }
    }
}

fn report(slot: &LinkSlot, now: Instant) -> Option<LinkReport> {
    Some(LinkReport {
        transport: "tls".to_owned(),
        local: plain(slot.link.local_addr().ok()?),
        remote: plain(slot.link.remote_addr()),
        interface: None,
        rtt_us: slot.link.tcp_info().ok().map(|info| micros(info.rtt)),
        up_ms: millis(now, slot.since),
        congestion_control: slot.link.congestion_control().ok(),
    })
}

/// As the client shows it: a dual-stack socket writes IPv4 addresses as IPv6 ones.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

fn count(flows: usize) -> u64 {
    u64::try_from(flows).unwrap_or(u64::MAX)
}

fn millis(now: Instant, since: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
