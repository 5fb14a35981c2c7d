//! Many clients at once, and clients that mean no good.

use std::time::Duration;

use tund_daemon::clock;
use tund_tests::crowd::{Crowd, Pair, Target, View};
use tund_tests::lab::{Family, Keys, Lab, ORIGIN_PORT, Origin, ServerDaemon, Settings, wait};

use crate::support::{LATER, LONG};

/// Within which every application has been told, counted from the server's return.
const TOLD: Duration = Duration::from_secs(2);
/// Within which every client is attached again, and its application connected.
const BACK: Duration = Duration::from_secs(5);
/// Handshakes that a client may need for that: RESUME, HELLO, and one to spare.
const HANDSHAKES: u64 = 3;

/// A server and an origin for simulated clients.
struct Stage {
    server: ServerDaemon,
    target: Target,
    _origin: Origin,
    /// Below the daemon: fields are dropped in order.
    lab: Lab,
}

impl Stage {
    fn new(title: &str, pairs: &[Pair], settings: &Settings) -> Self {
        let lab = Lab::new(title);
        let origin = Origin::start(&lab.origin);
        let keys = Keys::generate(lab.directory(), "server");
        let names: Vec<_> = (0..pairs.len())
            .map(|number| format!("member-{number}"))
            .collect();
        let listed = names.iter().map(String::as_str);
        let clients: Vec<_> = listed.zip(pairs.iter().map(|pair| &pair.listed)).collect();
        let server = ServerDaemon::start(
            &lab.server,
            lab.directory(),
            ("server", &keys),
            &clients,
            settings,
        );
        let target = Target {
            server: lab.server_address(Family::V4),
            key: keys.public.parse().unwrap(),
            origin: lab.origin_address(Family::V4, ORIGIN_PORT),
        };
        Self {
            server,
            target,
            _origin: origin,
            lab,
        }
    }
}

fn all(
    crowd: &Crowd,
    what: &str,
    limit: Duration,
    is_so: impl Fn(usize, &View) -> bool,
) -> Vec<View> {
    let start = wait::now();
    wait::until(what, limit + LATER, || {
        let views = crowd.views();
        let right = views
            .iter()
            .enumerate()
            .filter(|(n, view)| is_so(*n, view))
            .count();
        if wait::now() - start > limit {
            let wrong = views.iter().enumerate().find(|(n, view)| !is_so(*n, view));
            panic!(
                "{what}: {right} of {} after {limit:?}, not so {wrong:?}",
                views.len()
            );
        }
        (right == views.len()).then_some(views)
    })
}

/// A restart of the server with so many clients attached, each with a connection under way.
fn a_restart_is_survived_by(members: usize) {
    let pairs: Vec<_> = (0..members).map(|_| Pair::generate()).collect();
    let mut stage = Stage::new("restart with a crowd", &pairs, &Settings::new());
    let crowd = Crowd::start(&stage.lab, stage.target, pairs);
    let before = all(&crowd, "everybody's connection answers", LONG, |_, view| {
        view.echoes == 1
    });
    crowd.exchange();
    all(&crowd, "small requests are answered", LATER, |_, view| {
        view.echoes == 2
    });

    stage.server.process.kill();
    stage.server.start_again(&stage.lab);
    let back = clock::now();

    let after = all(
        &crowd,
        "everybody's next connection answers",
        BACK,
        |_, view| view.echoes == 3,
    );
    let mut slowest = [Duration::ZERO; 2];
    let mut most = 0;
    for (old, new) in before.iter().zip(&after) {
        let since = |at: Option<tund_session::Instant>| at.unwrap().saturating_duration_since(back);
        slowest = [
            slowest[0].max(since(new.reset_at)),
            slowest[1].max(since(new.attached_at)),
        ];
        most = most.max(new.handshakes - old.handshakes);
        assert_eq!(new.resets, old.resets + 1, "told once: {new:?}");
        assert_ne!(new.session, old.session);
        assert!(new.is_attached && new.refused.is_none(), "{new:?}");
    }
    eprintln!(
        "{members} members: told after {:?}, attached after {:?}, {most} handshakes",
        slowest[0], slowest[1]
    );
    assert!(
        slowest[0] <= TOLD,
        "the last was told after {:?}",
        slowest[0]
    );
    assert!(
        slowest[1] <= BACK,
        "the last attached after {:?}",
        slowest[1]
    );
    assert!(most <= HANDSHAKES, "one needed {most} handshakes");
    assert_eq!(stage.server.sessions().unwrap().len(), members);
}

#[test]
fn sixteen_clients_are_told_of_a_restart_and_back_with_three_handshakes_each() {
    a_restart_is_survived_by(16);
}

#[test]
fn two_hundred_clients_of_sixteen_networks_are_back_within_5_s_of_a_restart() {
    a_restart_is_survived_by(200);
}
