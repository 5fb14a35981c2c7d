//! Strangers by the hundred, who can do TLS but are not listed: turned away, cheaply and quietly.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::link::{ClientTls, Link, SocketOptions};
use tund_tests::lab::{Family, Settings, wait};

use crate::support::{Echo, Scene, figure};

/// How long a stranger waits for an answer; the server gives it 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// A crowd of strangers, and the pace at which they come.
#[derive(Clone, Copy, Debug)]
struct Crowd {
    strangers: u32,
    a_second: u32,
}

/// How often each ending was met.
type Endings = BTreeMap<&'static str, u32>;

/// One stranger: a whole handshake with a key of its own that nobody lists.
async fn knock(server: SocketAddr, server_key: PublicKey) -> &'static str {
    let private = PrivateKey::generate().unwrap();
    let tls = ClientTls::new(&private, vec![server_key]).unwrap();
    let socket = Socket::new(
        Domain::for_address(server),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .unwrap();
    socket.set_nonblocking(true).unwrap();
    let Ok(mut link) = Link::connect(socket, server, &tls, &SocketOptions::default()) else {
        return "not connected";
    };
    let answer = tokio::time::timeout(PATIENCE, async {
        poll_fn(|cx| link.poll_handshake(cx))
            .await
            .map_err(|_| "handshake refused")?;
        match poll_fn(|cx| link.poll_recv(cx, 1000)).await {
            Ok(Some(_)) => Err("let in"),
            Ok(None) => Err("closed"),
            Err(_) => Err("refused"),
        }
    });
    match answer.await {
        Ok(Ok(())) => "let in",
        Ok(Err(ending)) => ending,
        Err(_) => "left waiting",
    }
}

impl Crowd {
    /// Has them come from the origin's host, which is in another /24 than the client.
    fn start(self, scene: &Scene) -> JoinHandle<Endings> {
        let server = scene.lab.server_address(Family::V4);
        let server_key: PublicKey = scene.tund.server_keys.public.parse().unwrap();
        scene.lab.origin.spawn("strangers", move || {
            // The strangers' own work is not to be taken from the server's share of the machine.
            let thread = nix::unistd::gettid().to_string();
            let renice = std::process::Command::new("renice")
                .args(["-n", "19", "-p", &thread])
                .output();
            assert!(
                renice.is_ok_and(|output| output.status.success()),
                "renice -n 19"
            );
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(self.come(server, server_key))
        })
    }

    async fn come(self, server: SocketAddr, server_key: PublicKey) -> Endings {
        let mut endings = Endings::new();
        let mut knocking = JoinSet::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.a_second);
        for _ in 0..self.strangers {
            pace.tick().await;
            knocking.spawn(knock(server, server_key));
            while let Some(ending) = knocking.try_join_next() {
                *endings.entry(ending.unwrap()).or_default() += 1;
            }
        }
        while let Some(ending) = knocking.join_next().await {
            *endings.entry(ending.unwrap()).or_default() += 1;
        }
        endings
    }
}

/// The time that 99 of 100 small requests keep within.
fn p99(echo: &mut Echo, mut go_on: impl FnMut(usize) -> bool) -> Duration {
    let mut times = Vec::new();
    while go_on(times.len()) {
        let start = wait::now();
        echo.round_trip().unwrap();
        times.push(wait::now() - start);
        wait::let_pass(Duration::from_millis(2));
    }
    times.sort();
    times[times.len() * 99 / 100]
}

fn are_turned_away(crowd: Crowd) -> (Duration, Duration) {
    let scene = Scene::new("unlisted strangers", &Settings::new());
    let mut echo = scene.echo();
    let lines = |scene: &Scene| scene.tund.server.process.log().lines().count();
    let quiet = p99(&mut echo, |done| done < 500);
    let before = lines(&scene);

    let strangers = crowd.start(&scene);
    let loud = p99(&mut echo, |_| !strangers.is_finished());
    let endings = strangers.join().unwrap();

    figure(&format!(
        "{crowd:?}: {endings:?}; p99 {quiet:?} without, {loud:?} with them"
    ));
    assert_eq!(endings.get("let in"), None, "{endings:?}");
    assert_eq!(endings.get("left waiting"), None, "{endings:?}");
    assert_eq!(scene.tund.server.sessions().unwrap().len(), 1);
    let minutes = crowd.strangers / crowd.a_second / 60 + 1;
    let said = lines(&scene) - before;
    assert!(
        said <= usize::try_from(2 * minutes).unwrap(),
        "{said} lines in {minutes} minutes"
    );
    (quiet, loud)
}

#[test]
fn hundreds_of_unlisted_strangers_are_turned_away_and_hardly_mentioned() {
    are_turned_away(Crowd {
        strangers: 300,
        a_second: 100,
    });
}

#[test]
#[ignore = "long: 5,000 unlisted strangers at 100 a second"]
fn long_five_thousand_strangers_do_not_slow_another_session_down() {
    let (quiet, loud) = are_turned_away(Crowd {
        strangers: 5000,
        a_second: 100,
    });

    assert!(
        loud <= (quiet * 2).max(Duration::from_millis(5)),
        "p99 {quiet:?} then {loud:?}"
    );
}
