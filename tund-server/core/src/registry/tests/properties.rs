//! Whatever comes in whatever order: no panic, no deadline in the past, nothing kept.

use super::world::{START, config, key, secret};
use crate::registry::{Registry, RegistryConfig, RegistryEvent};
use bytes::Bytes;
use proptest::prelude::*;
use std::time::Duration;
use tund_session::wire::codec;
use tund_session::wire::frame::{
    Ack, CloseCode, Control, Data, FlowCode, Frame, Hello, Limits, LinkCloseReason, OnExpiry, Open,
    Protocol, Resume,
};
use tund_session::{
    Event, FlowId, Instance, Instant, LinkId, LinkNumber, Offset, Outbox, Progress, SessionId,
};

#[derive(Clone, Debug)]
enum Step {
    Up(u64, u8),
    Down(u64),
    Say(u64, Frame),
    Garbage(u64, Vec<u8>),
    Progress(u64, u64),
    Pass(u64),
    Accept(u64),
    Write(u64, usize),
    Close(u64),
    Retain(u8),
    Drain,
}

fn frame() -> impl Strategy<Value = Frame> {
    let small = 0..4_u64;
    let hello = (0..3_u8, 0..3_u64).prop_map(|(instance, version)| {
        Frame::Hello(Hello {
            versions: (version, 2),
            capabilities: 0,
            instance: Instance([instance; 16]),
            limits: Limits {
                max_flows: 5,
                buffer_bytes: 1000,
                floor_bytes: 1,
            },
        })
    });
    let resume = (0..12_u64, 199..202_u8, small.clone()).prop_map(|(of, instance, proved)| {
        Frame::Resume(Resume {
            versions: (1, 1),
            session: fresh(of),
            instance: Instance([instance; 16]),
            proved: LinkNumber(proved),
            proof: [0; 32],
        })
    });
    let open = small.clone().prop_map(|flow| {
        Control::Open(Open {
            flow: FlowId(flow),
            protocol: Protocol::Tcp,
            source: ([10, 0, 0, 1], 1).into(),
            destination: ([192, 0, 2, 1], 80).into(),
            limit: Offset(10_000),
            grace: Duration::from_secs(flow * 20),
            on_expiry: OnExpiry::Reset,
            hand_off: None,
        })
    });
    let flow = small.clone().prop_map(FlowId);
    let message = prop_oneof![
        4 => open,
        1 => (flow.clone(), small.clone()).prop_map(|(flow, end)| Control::Reset {
            flow, end: Offset(end), code: FlowCode::PeerReset }),
        1 => flow.clone().prop_map(|flow| Control::Stop { flow, code: FlowCode::Cancelled }),
        1 => (flow.clone(), small.clone()).prop_map(|(flow, released)| Control::Done {
            flow, released: Offset(released) }),
        1 => small.clone().prop_map(|n| Control::Retire { older_than: LinkNumber(n) }),
        1 => small.clone().prop_map(|n| Control::LinkDown { link: LinkNumber(n) }),
        1 => Just(Control::SessionClose { code: CloseCode::Asked }),
    ];
    prop_oneof![
        6 => hello,
        2 => resume,
        6 => (1..4_u64, message).prop_map(|(number, message)| Frame::Control { number, message }),
        3 => small.clone().prop_map(|nonce| Frame::Ping { nonce }),
        1 => small.clone().prop_map(|nonce| Frame::Pong { nonce }),
        1 => small.clone().prop_map(|number| Frame::ControlAck { number }),
        2 => (flow.clone(), small.clone(), any::<bool>()).prop_map(|(flow, at, fin)| {
            Frame::Data(Data { flow, offset: Offset(at), fin, payload: Bytes::from_static(b"abc") })
        }),
        2 => (flow, small).prop_map(|(flow, n)| Frame::Ack(Ack {
            flow, accepted: Offset(n), released: Offset(n), limit: Offset(9_000) })),
        1 => Just(Frame::LinkClose { reason: LinkCloseReason::Unneeded }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let link = 0..8_u64;
    prop_oneof![
        6 => (link.clone(), 0..3_u8).prop_map(|(link, key)| Step::Up(link, key)),
        2 => link.clone().prop_map(Step::Down),
        20 => (link.clone(), frame()).prop_map(|(link, frame)| Step::Say(link, frame)),
        1 => (link.clone(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(link, bytes)| Step::Garbage(link, bytes)),
        1 => (link, 0..3_u64).prop_map(|(link, n)| Step::Progress(link, n)),
        6 => prop_oneof![Just(0), 1..3000_u64, 10_000..100_000_u64].prop_map(Step::Pass),
        3 => (0..5_u64).prop_map(Step::Accept),
        3 => (0..5_u64, 1..5000_usize).prop_map(|(flow, n)| Step::Write(flow, n)),
        1 => (0..12_u64).prop_map(Step::Close),
        1 => (0..3_u8).prop_map(Step::Retain),
        1 => Just(Step::Drain),
    ]
}

fn fresh(n: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    SessionId(id)
}

struct Driver {
    registry: Registry,
    now: Instant,
    drawn: u64,
    up: std::collections::BTreeSet<LinkId>,
}

impl Driver {
    fn each_session(&mut self, work: impl Fn(&mut tund_session::Session)) {
        let all: Vec<_> = self.registry.sessions().map(|(id, ..)| id).collect();
        for id in all {
            self.registry.with(id, self.now, &work);
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Up(link, of) => {
                self.drawn += 1;
                let link = LinkId(link);
                if self.up.insert(link) {
                    let id = fresh(self.drawn);
                    self.registry
                        .handle_link_up(link, key(of), secret(link), id, now);
                }
            }
            Step::Down(link) => {
                self.up.remove(&LinkId(link));
                self.registry.handle_link_down(LinkId(link), now);
            }
            Step::Say(link, frame) => {
                let mut bytes = Vec::new();
                codec::encode(&frame, &mut bytes);
                self.registry.handle_bytes(LinkId(link), bytes.into(), now);
            }
            Step::Garbage(link, bytes) => {
                self.registry.handle_bytes(LinkId(link), bytes.into(), now);
            }
            Step::Progress(link, n) => {
                let progress = Progress {
                    bytes_acked: n,
                    bytes_received: n,
                    ..Progress::default()
                };
                self.registry.handle_progress(LinkId(link), progress, now);
            }
            Step::Pass(millis) => self.now = now + Duration::from_millis(millis),
            Step::Accept(flow) => self.each_session(|s| s.accept_flow(FlowId(flow), now)),
            Step::Write(flow, n) => self.each_session(|s| {
                let flow = FlowId(flow);
                let n = n.min(usize::try_from(s.intake(flow)).unwrap());
                s.write(flow, vec![1; n].into(), now);
            }),
            Step::Close(n) => self.registry.close(fresh(n), CloseCode::Asked, now),
            Step::Retain(n) => self.registry.retain_keys(|of| *of != key(n), now),
            Step::Drain => self.registry.drain(),
        }
    }

    /// What the real driver does after each turn.
    fn settle(&mut self) {
        self.registry.handle_timeout(self.now);
        let due = self.registry.poll_timeout();
        assert!(
            due.is_none_or(|at| at > self.now),
            "{due:?} at {:?}",
            self.now
        );
        loop {
            let mut links = Vec::new();
            self.registry.poll_dirty(&mut links);
            let mut out = Outbox::new();
            for link in &links {
                while self.registry.poll_transmit(*link, 1000, &mut out, self.now) {
                    out.clear();
                }
            }
            let mut closing = Vec::new();
            let mut said = false;
            while let Some(event) = self.registry.poll_event() {
                said = true;
                match event {
                    RegistryEvent::TurnedAway { link, .. }
                    | RegistryEvent::Session {
                        event: Event::LinkDead { link, .. },
                        ..
                    } => closing.push(link),
                    RegistryEvent::Session { .. }
                    | RegistryEvent::Final { .. }
                    | RegistryEvent::Held { .. } => {}
                }
            }
            for link in closing {
                self.up.remove(&link);
                self.registry.handle_link_down(link, self.now);
            }
            if links.is_empty() && !said {
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_panics_hangs_or_leaks(
        memory in prop_oneof![Just(0), Just(4_000), Just(1_u64 << 30)],
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let base = config();
        let registry = Registry::new(RegistryConfig { memory_bytes: memory, max_sessions: 4, ..base });
        let up = std::collections::BTreeSet::new();
        let mut driver = Driver { registry, now: START, drawn: 0, up };
        for step in steps {
            driver.step(step);
            driver.settle();
            prop_assert!(driver.registry.lent() <= memory);
        }
        driver.registry.close_all(driver.now);
        driver.settle();
        for link in 0..8 {
            driver.registry.handle_link_down(LinkId(link), driver.now);
        }
        driver.settle();
        prop_assert_eq!(driver.registry.kept(), [0; 8]);
    }
}
