//! Many clients at once, and clients that mean no good.

use std::time::Duration;

use tund_daemon::clock;
use tund_tests::crowd::{Crowd, Pair, Strangers, Target, View};
use tund_tests::lab::{Family, Keys, Lab, ORIGIN_PORT, Origin, ServerDaemon, Settings, wait};

use crate::support::{Echo, LATER, LONG, Scene, figure};

/// Within which every application has been told, counted from the server's return.
const TOLD: Duration = Duration::from_secs(2);
/// Within which every client is attached again, and its application connected.
const BACK: Duration = Duration::from_secs(5);
/// Handshakes that a client may need for that: RESUME, HELLO, and one to spare.
const HANDSHAKES: usize = 3;

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
    let mut handshakes = [0; 8];
    for (old, new) in before.iter().zip(&after) {
        let since = |at: Option<tund_session::Instant>| at.unwrap().saturating_duration_since(back);
        slowest = [
            slowest[0].max(since(new.reset_at)),
            slowest[1].max(since(new.attached_at)),
        ];
        let count = usize::try_from(new.handshakes - old.handshakes).unwrap();
        handshakes[count.min(7)] += 1;
        assert_eq!(new.resets, old.resets + 1, "told once: {new:?}");
        assert_ne!(new.session, old.session);
        assert!(new.is_attached && new.refused.is_none(), "{new:?}");
    }
    figure(&format!(
        "{members} members: told after {:?}, attached after {:?}; members by their handshakes: {handshakes:?}",
        slowest[0], slowest[1]
    ));
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
    assert_eq!(handshakes[HANDSHAKES + 1..], [0; 7 - HANDSHAKES]);
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

/// A small request that takes no longer than this is fast enough, whatever it was before.
const FAST: Duration = Duration::from_millis(5);
/// Between two small requests of somebody else.
const PAUSE: Duration = Duration::from_millis(2);
/// Idle connections and halves of handshakes beside the unlisted keys.
const IDLE: usize = 1000;

/// What 99 of 100 small requests do not exceed, one after the other until `is_over`.
fn p99(echo: &mut Echo, mut is_over: impl FnMut(usize) -> bool) -> Duration {
    let mut times = Vec::new();
    while !is_over(times.len()) {
        let start = wait::now();
        echo.round_trip().unwrap();
        times.push(wait::now() - start);
        wait::let_pass(PAUSE);
    }
    times.sort();
    times[times.len() * 99 / 100]
}

/// Connections and files of the server daemon.
fn belongings(scene: &Scene) -> (usize, usize) {
    let links = scene
        .lab
        .server
        .run("ss -Htn state established sport = :443");
    let files = std::fs::read_dir(format!("/proc/{}/fd", scene.tund.server.process.pid()));
    (links.lines().count(), files.unwrap().count())
}

fn strangers_are_no_burden(unlisted: u32, a_second: u32) {
    let scene = Scene::new("a flood of strangers", &Settings::new());
    let mut echo = scene.echo();
    let calm = p99(&mut echo, |count| count >= 500);
    let (owned, log) = (belongings(&scene), scene.tund.server.process.log());
    let key = scene.tund.server_keys.public.parse().unwrap();
    let server = (scene.lab.server_address(Family::V4), key);
    let start = wait::now();

    let strangers = Strangers::start(&scene.lab.origin, server, (unlisted, a_second), IDLE);
    let flooded = p99(&mut echo, |_| strangers.is_over());
    let outcome = strangers.finish();

    let calm = calm.max(p99(&mut echo, |count| count >= 500));
    figure(&format!(
        "{unlisted} unlisted and {IDLE} idle strangers: {outcome:?}; p99 {calm:?} without, {flooded:?} with them"
    ));
    assert_eq!(outcome.kept, 0, "{outcome:?}");
    assert_eq!(outcome.refused + outcome.closed, u64::from(unlisted) + 1000);
    // Those who find the gate full are closed without a word; the idle ones fill it at first.
    assert!(outcome.refused > 0, "{outcome:?}");
    assert!(flooded <= FAST.max(calm * 2), "{flooded:?} after {calm:?}");
    let said = scene.tund.server.process.log()[log.len()..].to_owned();
    let lines = u64::try_from(said.lines().count()).unwrap();
    let minutes = (wait::now() - start).as_secs() / 60;
    assert!((1..=1 + minutes).contains(&lines), "{lines} lines: {said}");
    wait::until_true("nothing of them is left", LATER, || {
        belongings(&scene) == owned
    });
    assert_eq!(scene.tund.server.sessions().unwrap().len(), 1);
    assert_eq!(scene.tund.client.status().outages.count, 0);
    echo.round_trip().unwrap();
}

#[test]
fn strangers_of_every_kind_are_turned_away_and_slow_nobody_down() {
    strangers_are_no_burden(300, 100);
}

#[test]
#[ignore = "long: 5,000 unlisted keys at 100 a second"]
fn long_five_thousand_strangers_and_a_thousand_idle_ones_slow_nobody_down() {
    strangers_are_no_burden(5000, 100);
}

/// Connections opened through one client daemon, and how many in a second.
const CONNECTIONS: u32 = 1000;
const A_SECOND: u32 = 500;

#[test]
fn five_hundred_connections_a_second_are_all_answered() {
    let scene = Scene::new("connections by the hundred", &Settings::new());
    drop(scene.echo());
    let to = scene.target();

    let opened = scene.lab.client.spawn("applications", move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            let mut pace = tokio::time::interval(Duration::from_secs(1) / A_SECOND);
            for _ in 0..CONNECTIONS {
                pace.tick().await;
                all.spawn(async move {
                    let start = wait::now();
                    let opened = tokio::net::TcpStream::connect(to).await;
                    opened.map(|_stream| wait::now() - start)
                });
            }
            all.join_all().await
        })
    });
    let opened: std::io::Result<Vec<_>> = opened.join().unwrap().into_iter().collect();

    let mut times = opened.expect("no connection is refused");
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    figure(&format!(
        "{CONNECTIONS} connections at {A_SECOND} a second: SYN to answer {:?} median, {:?} p99, {:?} at most",
        at(50),
        at(99),
        at(100)
    ));
    assert!(at(100) < LATER, "{:?}", at(100));
    scene.wait_without_flows();
    wait::until_true("nothing is left on the server either", LATER, || {
        scene.tund.server.sessions().unwrap()[0]["flows"]["tcp"] == 0
    });
}
