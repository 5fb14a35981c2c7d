//! A client and a server session back to back in virtual time, for stories about both.

use crate::wire::frame::{Control, Frame, OnExpiry, Open, Protocol};
use crate::*;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// A client and a server session, and links between them that lose nothing while they live.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [Session; 2],
    pub(super) events: [VecDeque<Event>; 2],
    pub(super) cut: bool,
    /// What both kernels say of the peer and the path.
    pub(super) heard_ago: Option<Duration>,
    pub(super) round_trip: Option<Duration>,
    /// What the server's sockets have of each flow when they are given up.
    pub(super) unsent: u64,
    pub(super) links: Vec<LinkId>,
    pub(super) next: u64,
}

/// When every story begins.
pub(super) const START: Instant = Instant::from_nanos(1_000_000_000);
pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;

pub(super) fn config(role: Role) -> Config {
    Config {
        instance: Instance([role as u8 + 1; 16]),
        buffer_bytes: 1 << 20,
        max_flows: 64,
        max_grace: Duration::from_secs(3600),
        capabilities: 0,
        datagram_age: limits::DATAGRAM_AGE,
    }
}

pub(super) fn secret(n: u64) -> Secret {
    Secret::new([u8::try_from(n).unwrap(); 32])
}

pub(super) fn target() -> Target {
    Target {
        protocol: Protocol::Tcp,
        source: "10.0.0.1:1000".parse().unwrap(),
        destination: "192.0.2.1:80".parse().unwrap(),
        grace: Duration::from_secs(60),
        on_expiry: OnExpiry::Reset,
        accept_early: false,
    }
}

/// OPEN, as a client of its own making says it.
pub(super) fn open(flow: FlowId, on_expiry: OnExpiry) -> Control {
    let target = target();
    Control::Open(Open {
        flow,
        protocol: target.protocol,
        source: target.source,
        destination: target.destination,
        limit: Offset(1),
        grace: target.grace,
        on_expiry,
        hand_off: None,
    })
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(&config(Role::Client), &config(Role::Server))
    }

    pub(super) fn with(ours: &Config, theirs: &Config) -> Self {
        let client = Session::new_client(ours, START);
        let mut pair = Self::greeted(client, theirs);
        pair.run();
        pair
    }

    /// A client that has said HELLO on its first link, and the session that the server made for it.
    pub(super) fn greeted(mut client: Session, theirs: &Config) -> Self {
        let link = LinkId(1);
        client.handle_link_up(link, secret(1), START);
        let mut out = Outbox::new();
        client.poll_transmit(link, 10_000, &mut out, START);
        let hello = match wire::codec::decode(&mut Bytes::from(out.to_vec())) {
            Ok(Some(Frame::Hello(hello))) => hello,
            other => panic!("{other:?}"),
        };
        let id = SessionId([7; 16]);
        let server = Session::new_server(theirs, id, &hello, (link, secret(1)), START);
        Self {
            now: START,
            ends: [client, server],
            events: [VecDeque::new(), VecDeque::new()],
            cut: false,
            heard_ago: None,
            round_trip: None,
            unsent: 0,
            links: vec![link],
            next: 2,
        }
    }

    /// Moves bytes until nothing is left to be moved.
    pub(super) fn run(&mut self) {
        let mut out = Outbox::new();
        loop {
            let mut moved = false;
            for end in [CLIENT, SERVER] {
                for link in self.links.clone() {
                    out.clear();
                    if self.ends[end].poll_transmit(link, 60_000, &mut out, self.now) && !self.cut {
                        self.ends[1 - end].handle_bytes(link, out.to_vec().into(), self.now);
                        moved = true;
                    }
                }
                while let Some(event) = self.ends[end].poll_event() {
                    if let Event::FlowAborted { flow, .. } = event
                        && end == SERVER
                    {
                        self.ends[SERVER].strand(flow, self.unsent, self.now);
                        moved = true;
                    }
                    self.events[end].push_back(event);
                }
            }
            if !moved {
                return;
            }
        }
    }

    pub(super) fn open(&mut self) -> FlowId {
        self.open_with_grace(Duration::from_secs(60))
    }

    pub(super) fn open_with_grace(&mut self, grace: Duration) -> FlowId {
        let target = Target { grace, ..target() };
        let flow = self.ends[CLIENT].open_flow(&target, self.now).unwrap();
        self.run();
        flow
    }

    pub(super) fn open_accepted(&mut self) -> FlowId {
        let flow = self.open();
        self.ends[SERVER].accept_flow(flow, self.now);
        self.run();
        flow
    }

    pub(super) fn write(&mut self, end: usize, flow: FlowId, len: usize) -> usize {
        let len = len.min(usize::try_from(self.ends[end].intake(flow)).unwrap());
        self.ends[end].write(flow, Bytes::from(vec![5; len]), self.now);
        len
    }

    pub(super) fn read(&mut self, end: usize, flow: FlowId) -> usize {
        let len = self.ends[end].readable(flow).map(Bytes::len).sum();
        self.ends[end].release(flow, len, self.now);
        self.ends[end].drained(flow, u64::try_from(len).unwrap(), self.now);
        len
    }

    pub(super) fn lose_link(&mut self) {
        for link in std::mem::take(&mut self.links) {
            self.ends[CLIENT].handle_link_down(link, self.now);
            self.ends[SERVER].handle_link_down(link, self.now);
        }
        self.cut = false;
        self.run();
    }

    pub(super) fn resume(&mut self) {
        self.join();
        self.run();
    }

    /// The server has the RESUME of a new link, and the client no answer yet.
    pub(super) fn join(&mut self) {
        let link = LinkId(self.next);
        let mine = secret(self.next);
        self.next += 1;
        self.ends[CLIENT].handle_link_up(link, mine.clone(), self.now);
        let mut out = Outbox::new();
        self.ends[CLIENT].poll_transmit(link, 10_000, &mut out, self.now);
        let mut bytes = Bytes::from(out.to_vec());
        let resume = match wire::codec::decode(&mut bytes) {
            Ok(Some(Frame::Resume(resume))) => resume,
            other => panic!("{other:?}"),
        };
        self.ends[SERVER]
            .handle_resume(link, &resume, mine, self.now)
            .unwrap();
        self.ends[SERVER].handle_bytes(link, bytes, self.now);
        self.links.push(link);
    }

    pub(super) fn seconds(&mut self, seconds: u64) {
        self.tenths(seconds * 10);
    }

    pub(super) fn tenths(&mut self, tenths: u64) {
        for _ in 0..tenths {
            self.now = self.now + Duration::from_millis(100);
            for end in &mut self.ends {
                end.handle_timeout(self.now);
            }
            self.run();
            let asked = self.events[CLIENT]
                .iter()
                .chain(&self.events[SERVER])
                .any(|e| matches!(e, Event::WantProgress { .. }));
            if asked {
                let progress = Progress {
                    heard_ago: self.heard_ago,
                    round_trip: self.round_trip,
                    ..Progress::default()
                };
                for link in self.links.clone() {
                    self.ends[CLIENT].handle_progress(link, progress, self.now);
                    self.ends[SERVER].handle_progress(link, progress, self.now);
                }
                self.events.iter_mut().for_each(|q| {
                    q.retain(|e| !matches!(e, Event::WantProgress { .. }));
                });
                self.run();
            }
        }
    }

    /// The reader reads on for a while: its flow gets more credit.
    pub(super) fn gain_credit(&mut self, flow: FlowId) {
        for _ in 0..50 {
            self.write(SERVER, flow, 100_000);
            self.run();
            self.read(CLIENT, flow);
            self.run();
        }
    }

    /// What a client of its own making says on the first link.
    pub(super) fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        wire::codec::encode(frame, &mut bytes);
        self.ends[SERVER].handle_bytes(LinkId(1), bytes.into(), self.now);
    }

    pub(super) fn saw(&self, end: usize, wanted: &Event) -> bool {
        self.events[end].contains(wanted)
    }
}
