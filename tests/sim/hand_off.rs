//! Lines from an origin, and B killed at every byte: what a connection did not get, the next one of
//! its user gets, so that all of them together have each line once and in order.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig, RegistryEvent};
use tund_session::wire::frame::{
    CloseCode, FlowCode, Framing, HandOff, OnExpiry, Protocol, Take, capability,
};
use tund_session::{
    Config, Event, FlowId, Instance, Instant, LinkId, Offset, Outbox, Secret, Session, SessionId,
    Target,
};
use tund_tests::harness::rng::Rng;

const KEY: ClientKey = ClientKey([7; 32]);
const GRACE: Duration = Duration::from_secs(60);
const USER: u32 = 1000;

/// The application of one connection, and the ring before it.
#[derive(Debug, Default)]
struct App {
    ring: Vec<u8>,
    got: Vec<u8>,
}

/// One client daemon, one server daemon, one origin that pushes lines, and at most one link.
struct World {
    now: Instant,
    client: Session,
    registry: Registry,
    link: Option<LinkId>,
    links: u64,
    /// The application's TCP leaves so many of the last bytes unacknowledged.
    lag: usize,
    user: u32,
    flow: Option<FlowId>,
    app: App,
    /// Those of connections that are over, in their order.
    past: Vec<Vec<u8>>,
    takes: Vec<Take>,
    /// What connections C still have to send.
    origins: BTreeMap<(SessionId, FlowId), Vec<u8>>,
    /// All that was pushed.
    pushed: Vec<u8>,
    lines: usize,
    /// Bytes that went from server to client.
    carried: usize,
}

fn config(instance: u8) -> Config {
    Config {
        instance: Instance([instance; 16]),
        buffer_bytes: 1 << 20,
        max_flows: 16,
        max_grace: Duration::from_secs(3600),
        capabilities: capability::HAND_OFF,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
    }
}

impl World {
    fn new(lag: usize) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        Self {
            now,
            client: Session::new_client(&config(1), now),
            registry: Registry::new(RegistryConfig {
                session: config(2),
                max_sessions: 8,
                memory_bytes: 1 << 30,
            }),
            link: None,
            links: 0,
            lag,
            user: USER,
            flow: None,
            app: App::default(),
            past: Vec::new(),
            takes: Vec::new(),
            origins: BTreeMap::new(),
            pushed: Vec::new(),
            lines: 0,
            carried: 0,
        }
    }

    fn dial(&mut self) {
        self.links += 1;
        let link = LinkId(self.links);
        let name = u8::try_from(self.links).unwrap();
        let (secret, fresh) = (Secret::new([name; 32]), SessionId([name; 16]));
        self.registry
            .handle_link_up(link, KEY, secret.clone(), fresh, self.now);
        self.client.handle_link_up(link, secret, self.now);
        self.link = Some(link);
    }

    fn open(&mut self) {
        let target = Target {
            protocol: Protocol::Tcp,
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: "192.0.2.1:5222".parse().unwrap(),
            grace: GRACE,
            on_expiry: OnExpiry::Reset,
            accept_early: false,
        };
        let hand_off = HandOff {
            user: self.user,
            framing: Framing::Line,
            retain: Duration::from_secs(3600),
            takes: self.takes.clone(),
        };
        let flow = self.client.open_handed_off(&target, hand_off, self.now);
        self.flow = Some(flow.unwrap());
    }

    /// The origin pushes lines of different lengths, each with its number, if it has a connection.
    fn push(&mut self, count: usize) {
        for _ in 0..count {
            let Some(mut last) = self.origins.last_entry() else {
                return;
            };
            let n = self.lines;
            let line = format!("{n}{}\n", "x".repeat(n % 4)).into_bytes();
            self.lines += 1;
            last.get_mut().extend_from_slice(&line);
            self.pushed.extend_from_slice(&line);
        }
        self.serve();
    }

    /// Moves bytes until nothing moves, or the link dies behind `budget` bytes of the server.
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
                let bytes = out.to_vec().into();
                self.registry.handle_bytes(link, bytes, self.now);
                self.serve();
            }
            out.clear();
            let now = self.now;
            if self.registry.poll_transmit(link, 60_000, &mut out, now) {
                moved = true;
                let bytes = Bytes::from(out.to_vec());
                let some = bytes.len().min(budget - self.carried);
                self.carried += some;
                self.client.handle_bytes(link, bytes.slice(..some), now);
                if self.carried == budget {
                    self.kill();
                    return;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn kill(&mut self) {
        self.serve();
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
            self.on_client(&event);
        }
        while let Some(event) = self.registry.poll_event() {
            moved = true;
            match event {
                RegistryEvent::Session { session, event } => self.on_server(session, &event),
                RegistryEvent::Held { session, flow } => self.read_rest((session, flow)),
                RegistryEvent::TurnedAway { .. } | RegistryEvent::Final { .. } => {}
            }
        }
        let (now, registry) = (self.now, &mut self.registry);
        for ((session, flow), to_send) in &mut self.origins {
            registry.with(*session, now, |s| {
                let room = usize::try_from(s.intake(*flow)).unwrap();
                let some: Vec<u8> = to_send.drain(..room.min(to_send.len())).collect();
                moved |= !some.is_empty();
                s.write(*flow, some.into(), now);
            });
        }
        moved
    }

    fn on_client(&mut self, event: &Event) {
        if let Event::FlowAccepted { flow } = event {
            if self.flow == Some(*flow) {
                self.takes.clear();
                self.read();
            }
        } else if let Event::FlowReadable { .. } = event {
            self.read();
        } else if let Event::FlowAborted { .. } | Event::Ended { .. } = event {
            self.leave();
        }
    }

    /// The application's connection is over.
    fn leave(&mut self) {
        let Some(flow) = self.flow.take() else {
            return;
        };
        let app = std::mem::take(&mut self.app);
        if let Some(session) = self.client.id() {
            self.takes.push(Take {
                session,
                flow,
                delivered: Offset(u64::try_from(app.got.len()).unwrap()),
            });
        }
        self.past.push(app.got);
    }

    /// The ring takes what has come, and the application's TCP all but the last of it.
    fn read(&mut self) {
        let Some(flow) = self.flow else {
            return;
        };
        let bytes: Vec<u8> = self.client.readable(flow).flatten().copied().collect();
        self.client.release(flow, bytes.len(), self.now);
        self.app.ring.extend_from_slice(&bytes);
        let count = self.app.ring.len().saturating_sub(self.lag);
        self.app.got.extend(self.app.ring.drain(..count));
        let drained = u64::try_from(count).unwrap();
        self.client.drained(flow, drained, self.now);
    }

    fn on_server(&mut self, session: SessionId, event: &Event) {
        if let Event::FlowOpened { open, .. } = event {
            self.origins.insert((session, open.flow), Vec::new());
            self.registry.accept_flow(session, open.flow, self.now);
        } else if let Event::FlowAborted { flow, .. } | Event::FlowForgotten { flow, .. } = event {
            self.origins.remove(&(session, *flow));
            self.registry
                .with(session, self.now, |s| s.strand(*flow, 0, self.now));
        } else if let Event::Ended { .. } = event {
            self.origins.retain(|(of, _), _| *of != session);
        }
    }

    fn read_rest(&mut self, (session, flow): (SessionId, FlowId)) {
        if let Some(to_send) = self.origins.get_mut(&(session, flow)) {
            assert!(self.registry.room_for_rest(session, flow).unwrap() >= to_send.len());
            let rest = std::mem::take(to_send);
            self.registry.add_rest(session, flow, Some(&rest));
        }
    }

    /// The outage outlasts the grace at the client, and at the server too if it is that long.
    fn outlast(&mut self, is_long: bool) {
        self.kill();
        self.now = self.now + GRACE + Duration::from_secs(1);
        self.client.handle_timeout(self.now);
        if is_long {
            self.now = self.now + Duration::from_secs(40);
            self.registry.handle_timeout(self.now);
        }
        self.serve();
        if self.client.flow_count() == 0 && !self.client.is_ended() {
            // It died before there was anything that has a grace.
            self.client.close(CloseCode::Idle, self.now);
        }
        assert!(self.client.is_ended());
        self.serve();
    }

    /// A new session, and a connection that lives until `budget` bytes of the server have come.
    fn begin(&mut self, budget: usize) {
        self.client = Session::new_client(&config(1), self.now);
        self.app = App::default();
        self.carried = 0;
        self.open();
        self.dial();
        self.run(budget);
    }

    /// A connection that lives gets everything; all of them together have each line once.
    fn check(&mut self, case: &str) {
        self.lag = 0;
        self.begin(usize::MAX);
        self.push(3);
        self.run(usize::MAX);
        let last = std::mem::take(&mut self.app.got);
        let whole = |got: &Vec<u8>| {
            let end = got.iter().rposition(|byte| *byte == b'\n');
            got[..end.map_or(0, |end| end + 1)].to_vec()
        };
        let all: Vec<u8> = self
            .past
            .iter()
            .map(whole)
            .chain([last])
            .flatten()
            .collect();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(text(&all), text(&self.pushed), "{case}");
        assert!(self.registry.offers().is_empty(), "{case}");
        assert_eq!(self.registry.offers().tally().lost, 0, "{case}");
    }
}

#[test]
fn wherever_b_dies_the_next_connection_has_the_rest() {
    let mut died = 0;
    for budget in 1.. {
        for (lag, is_long) in [(0, true), (0, false), (3, true), (11, false)] {
            let case = format!("behind {budget} bytes, lag {lag}, long {is_long}");
            let mut world = World::new(lag);
            world.begin(budget);
            for _ in 0..6 {
                world.push(10);
                world.run(budget);
            }
            if world.link.is_some() {
                assert!(died > 4 * 300, "{died} deaths");
                return;
            }
            died += 1;
            world.push(5);
            world.outlast(is_long);
            world.check(&case);
        }
    }
}

#[test]
fn wherever_the_connection_that_was_given_it_dies_the_one_after_has_the_rest() {
    let mut died = 0;
    for budget in 1.. {
        for (lag, is_long) in [(0, true), (2, false)] {
            let case = format!("behind {budget} bytes, lag {lag}, long {is_long}");
            let mut world = World::new(lag);
            world.begin(usize::MAX);
            world.push(3);
            world.run(usize::MAX);
            world.kill();
            world.push(60);
            world.outlast(is_long);
            world.begin(budget);
            world.push(10);
            world.run(budget);
            if world.link.is_some() {
                assert!(died > 2 * 200, "{died} deaths");
                return;
            }
            died += 1;
            world.outlast(is_long);
            world.check(&case);
        }
    }
}

#[test]
fn what_one_was_given_and_had_no_room_for_is_held_again_when_it_is_given_up() {
    let mut world = World::new(0);
    world.begin(usize::MAX);
    world.kill();
    world.push(20_000);
    world.outlast(false);
    world.client = Session::new_client(&config(1), world.now);
    world.dial();
    world.run(usize::MAX);
    world.open();
    let (link, flow) = (world.link.unwrap(), world.flow.unwrap());
    let mut out = Outbox::new();
    world
        .client
        .poll_transmit(link, 60_000, &mut out, world.now);
    world
        .registry
        .handle_bytes(link, out.to_vec().into(), world.now);
    world.serve();
    let (session, _) = *world.origins.keys().next().unwrap();
    let waits = world.registry.session(session).unwrap().prologue_bytes();
    assert!(
        waits > 10_000,
        "{waits} of {} bytes wait",
        world.pushed.len()
    );

    world.client.abort(flow, FlowCode::Cancelled, world.now);
    world.leave();
    world.run(usize::MAX);

    world.outlast(false);
    world.check("given up before its answer");
}

#[test]
fn another_user_gets_none_and_the_first_one_all() {
    let mut world = World::new(0);
    world.begin(usize::MAX);
    world.kill();
    world.push(20);
    world.outlast(false);
    let before = world.pushed.clone();

    world.user = USER + 1;
    world.begin(usize::MAX);
    world.push(2);
    world.run(usize::MAX);
    assert_eq!(world.app.got, world.pushed[before.len()..]);
    assert_eq!(world.registry.offers().len(), 1);

    world.user = USER;
    world.takes = vec![Take {
        session: SessionId([1; 16]),
        flow: FlowId(1),
        delivered: Offset(0),
    }];
    world.begin(usize::MAX);
    assert_eq!(world.app.got, before);
}

/// Lines are pushed, the application falls behind, the link dies, outages outlast the grace.
fn play(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut world = World::new(0);
    let mut budget = usize::MAX;
    world.begin(budget);
    for _ in 0..rng.below(60) {
        match rng.below(10) {
            0..4 => world.push(1 + rng.below(40)),
            4 => world.lag = rng.below(30),
            5 | 6 => budget = world.carried + 1 + rng.below(300),
            _ => {
                world.outlast(rng.chance(50));
                budget = 1 + rng.below(900);
                world.begin(budget);
            }
        }
        world.run(budget);
    }
    world.outlast(true);

    world.check(&format!("seed {seed}"));
}

#[test]
fn whatever_happens_each_line_comes_once() {
    (0..400).for_each(play);
}
