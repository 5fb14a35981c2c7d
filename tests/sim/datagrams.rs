//! Datagrams over links that die: whatever arrives was sent, once, whole and not long ago.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tund_server_core::admission::{Admission, Protocol, Rule};
use tund_server_core::mapping::Mapping;
use tund_session::wire::codec;
use tund_session::wire::frame::{FlowCode, Frame, OnExpiry, capability};
use tund_session::{
    Config, Event, FlowId, Instance, Instant, LinkId, MappingError, Outbox, Secret, Session,
    SessionId, Strangers, Target, Timer, limits,
};
use tund_tests::harness::rng::Rng;

const CLIENT: usize = 0;
const SERVER: usize = 1;
const SCHEDULES: u64 = 400;
const STEPS: usize = 150;
/// What a datagram begins with: its number.
const NUMBER: usize = 8;

/// A datagram under way.
struct Thrown {
    by: usize,
    flow: FlowId,
    remote: SocketAddr,
    len: usize,
    at: Instant,
}

/// Both ends, one link at a time between them, and every datagram that has not arrived.
struct World {
    rng: Rng,
    now: Instant,
    ends: [Session; 2],
    link: Option<LinkId>,
    links: u64,
    mappings: BTreeMap<FlowId, Mapping>,
    admission: Admission,
    strangers: Strangers,
    thrown: BTreeMap<u64, Thrown>,
    numbers: u64,
    arrived: u64,
    met: BTreeMap<&'static str, u64>,
}

fn config(end: u8) -> Config {
    Config {
        instance: Instance([end; 16]),
        buffer_bytes: 1 << 20,
        max_flows: 16,
        max_grace: Duration::from_secs(3600),
        capabilities: capability::DATAGRAM,
        datagram_age: limits::DATAGRAM_AGE,
    }
}

fn secret(link: LinkId) -> Secret {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&link.0.to_be_bytes());
    Secret::new(bytes)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let mut client = Session::new_client(&config(1), now);
        let link = LinkId(1);
        client.handle_link_up(link, secret(link), now);
        let mut out = Outbox::new();
        client.poll_transmit(link, 10_000, &mut out, now);
        let Ok(Some(Frame::Hello(hello))) = codec::decode(&mut out.to_vec().into()) else {
            panic!("no HELLO")
        };
        let id = SessionId([7; 16]);
        let server = Session::new_server(&config(2), id, &hello, (link, secret(link)), now);
        let allow: Vec<Rule> = vec!["192.0.2.0/24".parse().expect("a rule")];
        let mut world = Self {
            rng: Rng::new(seed),
            now,
            ends: [client, server],
            link: Some(link),
            links: 1,
            mappings: BTreeMap::new(),
            admission: Admission::new(allow, Vec::new(), Vec::new()),
            strangers: Strangers::default(),
            thrown: BTreeMap::new(),
            numbers: 0,
            arrived: 0,
            met: BTreeMap::new(),
        };
        world.settle();
        world
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    /// One end sends about so much; true if anything went.
    fn transmit(&mut self, end: usize, budget: usize) -> bool {
        let Some(link) = self.link else { return false };
        let mut out = Outbox::new();
        let sent = self.ends[end].poll_transmit(link, budget, &mut out, self.now);
        self.ends[1 - end].handle_bytes(link, out.to_vec().into(), self.now);
        sent
    }

    /// Everything moves, and every socket takes what is there for it.
    fn settle(&mut self) {
        loop {
            let moved = self.transmit(CLIENT, 60_000) | self.transmit(SERVER, 60_000);
            self.take_events();
            self.catch_all();
            if !moved {
                return;
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.ends[SERVER].poll_event() {
            if let Event::FlowOpened { open, .. } = &event {
                let mapping = Mapping::new(open.protocol, open.source, None);
                let mapping = mapping.expect("a mapping was asked for");
                self.mappings.insert(open.flow, mapping);
                self.ends[SERVER].accept_flow(open.flow, self.now);
            }
            if let Event::FlowForgotten { flow, .. } | Event::FlowAborted { flow, .. } = &event {
                self.mappings.remove(flow);
            }
            if let Event::Ended { reason } = event {
                panic!("the server's session ended: {reason:?}");
            }
        }
        while let Some(event) = self.ends[CLIENT].poll_event() {
            if let Event::Ended { reason } = event {
                panic!("the client's session ended: {reason:?}");
            }
        }
    }

    fn flows(&self) -> Vec<FlowId> {
        let count = self.numbers_of_flows();
        let all = (1..=count).map(FlowId);
        all.filter(|flow| self.ends[CLIENT].is_mapping(*flow))
            .collect()
    }

    fn numbers_of_flows(&self) -> u64 {
        self.met.get("opened").copied().unwrap_or(0)
    }

    fn catch_all(&mut self) {
        for flow in (1..=self.numbers_of_flows()).map(FlowId) {
            for end in [CLIENT, SERVER] {
                while let Some((remote, payload)) = self.ends[end].datagram(flow, self.now) {
                    let payload = payload.clone();
                    self.ends[end].datagram_taken(flow);
                    self.caught(end, flow, remote, &payload);
                }
            }
            while let Some(error) = self.ends[CLIENT].take_datagram_error(flow) {
                assert_eq!((error.errno, error.info), (90, 1400));
                self.meet("error");
            }
        }
    }

    fn caught(&mut self, end: usize, flow: FlowId, remote: SocketAddr, payload: &Bytes) {
        let number = payload.first_chunk::<NUMBER>().expect("its number");
        let number = u64::from_be_bytes(*number);
        let thrown = self.thrown.remove(&number);
        let thrown = thrown.unwrap_or_else(|| panic!("datagram {number} twice, or from nowhere"));
        assert_eq!(
            (thrown.by, thrown.flow, thrown.remote),
            (1 - end, flow, remote)
        );
        assert_eq!(payload.len(), thrown.len, "datagram {number} is not whole");
        let rest = payload.iter().skip(NUMBER);
        let fill = number.to_le_bytes()[0];
        assert!(
            rest.clone().all(|byte| *byte == fill),
            "datagram {number} is mixed"
        );
        let age = self.now.saturating_duration_since(thrown.at);
        // To the server, each end counts for itself.
        let most = limits::DATAGRAM_AGE * if end == SERVER { 2 } else { 1 };
        assert!(age <= most, "datagram {number} is {age:?} old");
        self.arrived += 1;
        if payload.len() > codec::MAX_PAYLOAD {
            self.meet("large");
        }
        if end == SERVER
            && let Some(mapping) = self.mappings.get_mut(&flow)
        {
            let used = mapping.outgoing(&self.admission, &[], remote);
            assert_eq!(used, Ok(remote));
        }
    }

    fn throw(&mut self, by: usize, flow: FlowId, len: usize) {
        let last = self.rng.pick(&[1, 2, 3]);
        let remote = SocketAddr::from(([192, 0, 2, last], 53));
        if by == SERVER {
            // What comes to the socket is judged as a driver has it judged.
            let stranger = address("192.0.2.99:53");
            let Some(mapping) = self.mappings.get_mut(&flow) else {
                return;
            };
            let by = (&self.admission, &[][..]);
            let heard = mapping.incoming(by, &mut self.strangers, (stranger, 100), self.now);
            assert!(heard.is_err(), "a stranger is heard");
            let known = mapping.incoming(by, &mut self.strangers, (remote, 100), self.now);
            if known.is_err() {
                self.meet("stranger");
                return;
            }
        }
        self.numbers += 1;
        let number = self.numbers;
        let mut payload = vec![number.to_le_bytes()[0]; len.max(NUMBER)];
        payload[..NUMBER].copy_from_slice(&number.to_be_bytes());
        let thrown = Thrown {
            by,
            flow,
            remote,
            len: payload.len(),
            at: self.now,
        };
        self.thrown.insert(number, thrown);
        self.ends[by].send_datagram(flow, remote, payload.into(), self.now);
    }

    fn open(&mut self) {
        let target = Target {
            protocol: Protocol::Udp,
            source: address("10.111.0.2:4000"),
            destination: address("192.0.2.1:53"),
            grace: Duration::from_secs(3600),
            on_expiry: OnExpiry::Reset,
            accept_early: false,
        };
        if self.ends[CLIENT].open_flow(&target, self.now).is_ok() {
            self.meet("opened");
        }
    }

    fn lose(&mut self) {
        if let Some(link) = self.link.take() {
            for end in &mut self.ends {
                end.handle_link_down(link, self.now);
            }
            self.meet("lost");
        }
    }

    fn resume(&mut self) {
        if self.link.is_some() {
            return;
        }
        self.links += 1;
        let link = LinkId(self.links);
        self.ends[CLIENT].handle_link_up(link, secret(link), self.now);
        let mut out = Outbox::new();
        self.ends[CLIENT].poll_transmit(link, 10_000, &mut out, self.now);
        let Ok(Some(Frame::Resume(resume))) = codec::decode(&mut out.to_vec().into()) else {
            panic!("no RESUME")
        };
        self.ends[SERVER]
            .handle_resume(link, &resume, secret(link), self.now)
            .expect("the secret counts");
        self.link = Some(link);
        self.meet("resumed");
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        for end in &mut self.ends {
            end.handle_timeout(self.now);
            let due = end.poll_timeout().map(|(at, _)| at);
            assert!(due.is_none_or(|at| at > self.now), "a deadline in the past");
        }
    }

    fn length(&mut self) -> usize {
        let most = match self.rng.below(8) {
            0 => 65_507,
            1 => 20_000,
            _ => 1_400,
        };
        self.rng.below(most)
    }

    fn step(&mut self) {
        let flows = self.flows();
        let flow = flows.get(self.rng.below(flows.len())).copied();
        match (self.rng.below(20), flow) {
            (0, _) | (_, None) => self.open(),
            (1, Some(flow)) if self.rng.below(4) == 0 => {
                self.ends[CLIENT].abort(flow, FlowCode::Idle, self.now);
                self.meet("ended");
            }
            (1, _) => self.lose(),
            (2..=4, _) => self.resume(),
            (5, _) => {
                let millis = self.rng.below(1500);
                self.pass(u64::try_from(millis).unwrap_or(0));
            }
            (6, Some(flow)) => {
                let error = MappingError {
                    remote: address("192.0.2.1:53"),
                    errno: 90,
                    info: 1400,
                };
                self.ends[SERVER].send_datagram_error(flow, error);
            }
            (7..=9, Some(flow)) => {
                let len = self.length();
                self.throw(SERVER, flow, len);
            }
            (10..=15, Some(flow)) => {
                let len = self.length();
                self.throw(CLIENT, flow, len);
            }
            (16, _) => {
                // A link that takes little at a time, and may die behind any piece.
                self.transmit(CLIENT, 10_000);
            }
            (17, _) => {
                self.transmit(SERVER, 10_000);
            }
            _ => self.settle(),
        }
        self.take_events();
    }

    /// Links are back: what is fresh arrives, what has ended leaves nothing.
    fn heal(&mut self) {
        self.resume();
        self.settle();
        for flow in self.flows() {
            let before = self.arrived;
            self.throw(CLIENT, flow, 60_000);
            self.throw(CLIENT, flow, 100);
            self.settle();
            let arrived = self.arrived - before;
            assert_eq!(arrived, 2, "on a live link nothing is lost");
        }
        for flow in self.flows() {
            self.ends[CLIENT].abort(flow, FlowCode::Idle, self.now);
        }
        self.settle();
        for end in &self.ends {
            assert_eq!((end.flow_count(), end.buffered()), (0, (0, 0)));
            assert!(!matches!(end.poll_timeout(), Some((_, Timer::Datagrams))));
        }
        assert!(self.mappings.is_empty());
    }
}

#[test]
fn what_arrives_was_sent_once_whole_and_not_long_ago() {
    let mut met: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut arrived = 0;
    for seed in 0..SCHEDULES {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.heal();
        arrived += world.arrived;
        for (what, count) in world.met {
            *met.entry(what).or_default() += count;
        }
        for end in &world.ends {
            let counts = end.datagram_counts();
            let mut tell = |what, count| *met.entry(what).or_default() += count;
            tell("stale", counts.stale);
            tell("crowded out", counts.crowded_out);
            tell("abandoned", counts.abandoned);
        }
    }
    assert!(arrived > SCHEDULES * 10, "{arrived} datagrams arrived");
    for what in [
        "opened",
        "ended",
        "lost",
        "resumed",
        "error",
        "large",
        "stranger",
        "stale",
        "crowded out",
        "abandoned",
    ] {
        let count = met.get(what).copied().unwrap_or(0);
        assert!(count * 10 >= SCHEDULES, "{what} was met {count} times only");
    }
}
