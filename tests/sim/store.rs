//! Lines towards a collector, and B killed at every byte: stored, delivered, none missing.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tund_server_core::delivery::{Deliveries, Progress, Step, StoredFlow, Turn};
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig, RegistryEvent};
use tund_session::wire::frame::{CloseCode, Framing, OnExpiry, Protocol, capability};
use tund_session::{
    Config, DeliverTarget, Event, FlowId, Instance, Instant, LinkId, Offset, Outbox, Remainder,
    Secret, Session, SessionId, Target,
};
use tund_tests::harness::records::{Whose, cut as cut_up, unseal};

const KEY: ClientKey = ClientKey([7; 32]);
const GRACE: Duration = Duration::from_secs(60);
/// Messages in one record: enough for several records, and for several messages in each.
const RECORD_TEXT: usize = 50;

/// A connection to the collector: all that was written, and how much its TCP has told of.
#[derive(Debug, Default)]
struct Connection {
    got: Vec<u8>,
    has_fin: bool,
    /// The kernel holds so many of the last bytes as unacknowledged.
    lag: usize,
}

impl Connection {
    fn unacknowledged(&self) -> u64 {
        let sent = self.got.len() + usize::from(self.has_fin);
        wide(self.lag.min(sent))
    }

    /// It was reset: of what was not acknowledged, so many bytes never arrived.
    fn cut(&mut self, lost: usize) {
        let lost = lost.min(self.lag).min(self.got.len());
        self.got.truncate(self.got.len() - lost);
    }

    /// What a collector makes of it: lines, the last one only if the end is one.
    fn lines(&self) -> Vec<&[u8]> {
        let end = if self.has_fin {
            self.got.len()
        } else {
            self.got
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1)
        };
        self.got[..end].split_inclusive(|b| *b == b'\n').collect()
    }
}

/// One client daemon, one server daemon, one collector, and at most one link.
struct World {
    now: Instant,
    client: Session,
    registry: Registry,
    deliveries: Deliveries,
    connections: BTreeMap<(SessionId, FlowId), Connection>,
    /// Those that are over, in their order.
    closed: Vec<Connection>,
    lag: usize,
    lost: usize,
    link: Option<LinkId>,
    links: u64,
    /// What the client's session ended with, or its flow.
    stored: Option<(SessionId, FlowId, Remainder)>,
    /// Bytes that went from client to server.
    carried: usize,
    released: Offset,
}

fn config(instance: u8) -> Config {
    Config {
        instance: Instance([instance; 16]),
        buffer_bytes: 1 << 20,
        max_flows: 16,
        max_grace: Duration::from_secs(3600),
        capabilities: capability::DELIVERY,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
    }
}

impl World {
    /// The collector's TCP tells of all but the last `lag` bytes; of these the last `lost` vanish
    /// when its connection is reset.
    fn new(lag: usize, lost: usize) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        Self {
            now,
            client: Session::new_client(&config(1), now),
            registry: Registry::new(RegistryConfig {
                session: config(2),
                max_sessions: 8,
                memory_bytes: 1 << 30,
            }),
            deliveries: Deliveries::default(),
            connections: BTreeMap::new(),
            closed: Vec::new(),
            lag,
            lost,
            link: None,
            links: 0,
            stored: None,
            carried: 0,
            released: Offset(0),
        }
    }

    fn dial(&mut self) {
        self.links += 1;
        let link = LinkId(self.links);
        let secret = Secret::new([u8::try_from(self.links).unwrap(); 32]);
        let fresh = SessionId([u8::try_from(self.links).unwrap(); 16]);
        self.registry
            .handle_link_up(link, KEY, secret.clone(), fresh, self.now);
        self.client.handle_link_up(link, secret, self.now);
        self.link = Some(link);
    }

    fn open(&mut self) -> FlowId {
        let target = Target {
            protocol: Protocol::Tcp,
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: "192.0.2.1:514".parse().unwrap(),
            grace: GRACE,
            on_expiry: OnExpiry::Store(Framing::Line),
            accept_early: false,
        };
        self.client.open_flow(&target, self.now).unwrap()
    }

    /// Moves bytes until nothing moves, or the link dies behind `budget` bytes of the client.
    fn run(&mut self, budget: usize) {
        let mut out = Outbox::new();
        loop {
            let mut moved = self.serve();
            let Some(link) = self.link else {
                return;
            };
            out.clear();
            if self.client.poll_transmit(link, 60_000, &mut out, self.now) {
                moved = true;
                let bytes = out.to_vec();
                let some = bytes.len().min(budget - self.carried);
                self.carried += some;
                let bytes = Bytes::from(bytes).slice(..some);
                self.registry.handle_bytes(link, bytes, self.now);
                if self.carried == budget {
                    self.serve();
                    self.kill();
                    return;
                }
            }
            out.clear();
            if self
                .registry
                .poll_transmit(link, 60_000, &mut out, self.now)
            {
                moved = true;
                self.client
                    .handle_bytes(link, out.to_vec().into(), self.now);
            }
            if !moved {
                return;
            }
        }
    }

    fn kill(&mut self) {
        if let Some(link) = self.link.take() {
            self.client.handle_link_down(link, self.now);
            self.registry.handle_link_down(link, self.now);
        }
        self.serve();
    }

    /// Both drivers do what their cores want; true if there was something.
    fn serve(&mut self) -> bool {
        let mut moved = false;
        while let Some(event) = self.client.poll_event() {
            moved = true;
            self.on_client(event);
        }
        while let Some(event) = self.registry.poll_event() {
            moved = true;
            match event {
                RegistryEvent::Session { session, event } => self.on_server(session, event),
                RegistryEvent::Final {
                    session,
                    flow,
                    taken,
                    released,
                    ..
                } => self.note_final((session, flow), taken, released),
                RegistryEvent::TurnedAway { .. } | RegistryEvent::Held { .. } => {}
            }
        }
        moved
    }

    fn on_client(&mut self, event: Event) {
        let id = self.client.id();
        if let Event::FlowExpired { flow, remainder } = event {
            self.stored = id.map(|id| (id, flow, remainder));
        } else if let Event::Ended { .. } = event {
            for (flow, remainder) in self.client.take_remainders() {
                self.stored = id.map(|id| (id, flow, remainder));
            }
        } else if let Event::FlowReleased { released, .. } = event {
            self.released = released;
        }
    }

    fn on_server(&mut self, session: SessionId, event: Event) {
        let now = self.now;
        if let Event::FlowOpened { open, .. } = event {
            self.connect(session, open.flow);
        } else if let Event::DeliverOpened { deliver, .. } = event {
            assert!(self.deliveries.begin(session, KEY, deliver));
            self.connect(session, deliver.flow);
        } else if let Event::FlowReadable { flow } = event {
            if self.deliveries.get_mut(session, flow).is_some() {
                self.deliver(session, flow);
            } else {
                self.carry(session, flow);
            }
        } else if let Event::FlowAborted { flow, .. } | Event::FlowForgotten { flow, .. } = event {
            self.close(session, flow);
            self.registry.with(session, now, |s| s.strand(flow, 0, now));
        } else if let Event::Ended { .. } = event {
            let flows = self.connections.keys().filter(|(of, _)| *of == session);
            for (_, flow) in flows.copied().collect::<Vec<_>>() {
                self.close(session, flow);
            }
        }
        self.registry.with(session, now, |_| {});
    }

    fn connect(&mut self, session: SessionId, flow: FlowId) {
        let connection = Connection {
            lag: self.lag,
            ..Connection::default()
        };
        self.connections.insert((session, flow), connection);
        let now = self.now;
        self.registry
            .with(session, now, |s| s.accept_flow(flow, now));
    }

    fn carry(&mut self, session: SessionId, flow: FlowId) {
        let (now, key) = (self.now, (session, flow));
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        self.registry.with(session, now, |s| {
            let bytes: Vec<u8> = s.readable(flow).flatten().copied().collect();
            s.release(flow, bytes.len(), now);
            connection.got.extend_from_slice(&bytes);
            let offset = s.taken(flow).0 - connection.unacknowledged();
            s.settle_to(flow, Offset(offset), now);
        });
    }

    fn deliver(&mut self, session: SessionId, flow: FlowId) {
        let (now, key) = (self.now, (session, flow));
        let (Some(connection), Some(delivery)) = (
            self.connections.get_mut(&key),
            self.deliveries.get_mut(session, flow),
        ) else {
            return;
        };
        let of = delivery.of();
        let delivered = self.registry.delivered().offset(&of);
        self.registry.with(session, now, |s| {
            let mut turn = Turn::default();
            loop {
                let arrived = (s.readable(flow), s.has_all(flow));
                match delivery.step(arrived, delivered, &mut turn, unseal) {
                    Step::Write => {
                        let text = delivery.text().unwrap().clone();
                        connection.got.extend_from_slice(&text);
                        delivery.wrote(text.len());
                    }
                    Step::Take(count) => s.release(flow, count, now),
                    Step::Yield => turn = Turn::default(),
                    Step::Wait => break,
                    Step::Broken(what) => panic!("{what}"),
                }
            }
            if s.delivery(flow) == tund_session::Delivery::Fin {
                connection.has_fin = true;
                // In the end everything is acknowledged.
                connection.lag = 0;
                s.end_delivered(flow, now);
            }
        });
        let unacknowledged = connection.unacknowledged();
        let acknowledged = delivery.acknowledged(unacknowledged, connection.has_fin);
        if let Some(offset) = acknowledged {
            note(&mut self.registry, of, offset);
        }
        let known = self.registry.delivered().offset(&of);
        let has_fin_arrived = connection.has_fin && unacknowledged == 0;
        if let Some(released) = delivery.recorded(known, has_fin_arrived) {
            self.registry.with(session, now, |s| {
                s.settle_to(flow, released, now);
                if has_fin_arrived {
                    s.finish(flow, now);
                }
            });
        }
    }

    fn note_final(&mut self, key: (SessionId, FlowId), taken: Offset, released: Offset) {
        // Without a socket nobody knows more than the session.
        let connection = self.connections.get(&key);
        let acknowledged = connection.map_or(released, |connection| {
            Offset(taken.0 - connection.unacknowledged())
        });
        let of = StoredFlow {
            client: KEY,
            session: key.0,
            flow: key.1,
        };
        note(&mut self.registry, of, acknowledged.max(released));
    }

    fn close(&mut self, session: SessionId, flow: FlowId) {
        let Some(mut connection) = self.connections.remove(&(session, flow)) else {
            return;
        };
        if let Some(delivery) = self.deliveries.end(session, flow)
            && let Some(offset) =
                delivery.acknowledged(connection.unacknowledged(), connection.has_fin)
        {
            note(&mut self.registry, delivery.of(), offset);
        }
        connection.cut(self.lost);
        self.closed.push(connection);
    }

    /// The outage outlasts the grace at the client, and at the server too if it is that long.
    fn outlast(&mut self, is_long: bool) {
        self.now = self.now + GRACE + Duration::from_secs(1);
        self.client.handle_timeout(self.now);
        if is_long {
            self.now = self.now + Duration::from_secs(40);
            self.registry.handle_timeout(self.now);
        }
        self.serve();
        if self.client.flow_count() == 0 {
            // It died before there was anything that has a grace.
            self.client.close(CloseCode::Idle, self.now);
        }
        assert!(self.client.is_ended());
    }

    /// A new session delivers what was stored, and dies behind `budget` bytes; true if it is done.
    fn deliver_stored(&mut self, records: &Bytes, of: (SessionId, FlowId), budget: usize) -> bool {
        self.client = Session::new_client(&config(1), self.now);
        self.carried = 0;
        self.released = Offset(0);
        self.dial();
        self.run(budget);
        let target = DeliverTarget {
            session: of.0,
            origin_flow: of.1,
            user: 1000,
            destination: "192.0.2.1:514".parse().unwrap(),
            framing: Framing::Line,
            grace: GRACE,
        };
        let Ok(flow) = self.client.deliver(&target, self.now) else {
            return false;
        };
        self.run(budget);
        let mut rest = records.clone();
        while self.link.is_some() && !rest.is_empty() {
            let room = usize::try_from(self.client.intake(flow)).unwrap();
            let piece = rest.split_to(room.min(rest.len()).min(300));
            self.client.write(flow, piece, self.now);
            self.run(budget);
        }
        self.client.finish(flow, self.now);
        self.run(budget);
        self.client.end_delivered(flow, self.now);
        self.run(budget);
        self.released >= Offset(wide(records.len()))
    }
}

fn note(registry: &mut Registry, of: StoredFlow, offset: Offset) {
    let at = 0;
    registry.delivered_mut().note(&Progress { of, offset, at });
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap()
}

/// Lines of different lengths, each with its number.
fn lines(count: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|n| format!("{n}{}\n", "x".repeat(n % 4)).into_bytes())
        .collect()
}

/// What the collector has got: each line in its order, none missing, and how many of them twice. A
/// connection may begin with lines that came before; from there on it goes on in order.
fn check(world: &World, sent: &[u8], case: &str) -> usize {
    let expected: Vec<_> = sent.split_inclusive(|b| *b == b'\n').collect();
    let mut next = 0;
    let mut doubled = 0;
    let connections = world.closed.iter().chain(world.connections.values());
    for connection in connections {
        let mut before = None;
        for line in connection.lines() {
            let number = expected.iter().position(|e| *e == line);
            let number = number.unwrap_or_else(|| panic!("{case}: {line:?} was never sent"));
            assert!(number <= next, "{case}: line {next} is missing");
            if let Some(before) = before.replace(number) {
                assert_eq!(number, before + 1, "{case}: what comes behind {before}");
            }
            if number < next {
                doubled += 1;
            }
            next = next.max(number + 1);
        }
    }
    assert_eq!(next, expected.len(), "{case}");
    doubled
}

/// B dies behind `cut` bytes, and the delivery afterwards behind `again` bytes, then for good.
fn killed_at(cut: usize, again: usize, sent: &[u8], lag: usize, lost: usize) -> (usize, bool) {
    let case = format!("cut at {cut}, then at {again}, lag {lag}, lost {lost}");
    let mut world = World::new(lag, lost);
    world.dial();
    let flow = world.open();
    world.run(usize::MAX);
    world.carried = 0;
    for piece in sent.chunks(499) {
        assert!(world.client.intake(flow) >= wide(piece.len()), "{case}");
        world
            .client
            .write(flow, Bytes::copy_from_slice(piece), world.now);
        world.run(cut);
    }
    let is_whole = world.link.is_some();
    world.kill();
    world.outlast(cut.is_multiple_of(2));
    let (session, flow, remainder) = world.stored.take().expect("something is stored");
    let whose = Whose {
        session,
        flow,
        user: 1000,
        destination: "192.0.2.1:514".parse().unwrap(),
    };
    let records = cut_up(&remainder, RECORD_TEXT, &whose).records;
    for budget in [again, usize::MAX] {
        if world.deliver_stored(&records, (session, flow), budget) {
            break;
        }
        world.kill();
        world.outlast(again.is_multiple_of(2));
    }
    world.kill();
    let doubled = check(&world, sent, &case);
    // What the collector has and its TCP had not told of, message by message, and one more, for
    // each of the two connections that were cut.
    let most = 2 * (lag.saturating_sub(lost) / 2 + 2);
    assert!(doubled <= most, "{case}: {doubled} lines twice");
    if lag == 0 {
        assert_eq!(doubled, 0, "{case}");
    }
    (doubled, is_whole)
}

#[test]
fn whatever_byte_b_dies_behind_each_line_is_delivered_in_order() {
    let sent = lines(1000);
    let mut cut = 1;
    let mut doubled = 0;
    loop {
        let (lag, lost) = (cut % 40, cut % 7);
        let (twice, is_whole) = killed_at(cut, 200 + cut % 3000, &sent, lag, lost);
        doubled += twice;
        if is_whole {
            break;
        }
        cut += 1;
    }
    assert!(cut > sent.len(), "only {cut} places");
    assert!(doubled > 0, "nothing was ever under way");
}

#[test]
fn whatever_byte_a_delivery_dies_behind_each_line_is_delivered_in_order() {
    let sent = lines(60);
    for again in 1..1500 {
        killed_at(120, again, &sent, 0, 0);
        killed_at(120, again, &sent, again % 30, again % 5);
    }
}
