//! UDP through the real daemons: what an application's socket sees, beside what origins see.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use proxy_header::{ParseConfig, ProxyHeader};
use tund_tests::lab::{Family, Namespace, Settings, TUN, address, wait};

use crate::support::{LATER, SOON, Scene, figure};

const PORT: u16 = 9300;
const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Longer than a daemon keeps a datagram.
const STALE: Duration = Duration::from_secs(3);
/// How long a rate is measured.
const RATE_TIME: Duration = Duration::from_secs(4);
/// The end of an origin's service.
const STOP: &[u8] = b"stop";

/// An origin that sends each datagram back, and tells who sent it.
struct Answerer {
    seen: Receiver<(SocketAddr, Vec<u8>)>,
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    fn start(scene: &Scene, at: SocketAddr) -> Self {
        let socket = bind(&scene.lab.origin, at);
        let (tell, seen) = sync_channel(1000);
        let answering = socket.try_clone().unwrap();
        let thread = scene
            .lab
            .origin
            .spawn("answerer", move || answer(&answering, &tell));
        Self {
            seen,
            socket,
            thread: Some(thread),
        }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Who sent the next one, and what.
    #[track_caller]
    fn next(&self) -> (SocketAddr, Vec<u8>) {
        self.seen
            .recv_timeout(SOON)
            .expect("a datagram at the origin")
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        let stopped = self.socket.send_to(STOP, self.address());
        if let Some(thread) = self.thread.take()
            && stopped.is_ok()
        {
            drop(thread.join());
        }
    }
}

fn answer(socket: &UdpSocket, tell: &SyncSender<(SocketAddr, Vec<u8>)>) {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
            Ok((len, from)) => {
                let payload = &buffer[..len];
                if payload == STOP || tell.send((from, payload.to_vec())).is_err() {
                    return;
                }
                drop(socket.send_to(payload, from));
            }
        }
    }
}

fn bind(host: &Namespace, at: SocketAddr) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// An application's socket.
fn application(scene: &Scene, family: Family) -> UdpSocket {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    bind(&scene.lab.client, (any, 0).into())
}

/// One that speaks to one remote only, and hears of its errors.
fn connected(scene: &Scene, to: SocketAddr) -> UdpSocket {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let socket = application(scene, family);
    socket.connect(to).unwrap();
    socket
}

fn payload(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|index| ((index * 7 + seed) % 251).to_le_bytes()[0])
        .collect()
}

/// There and back; who sent it, as the origin sees it.
#[track_caller]
fn exchange(socket: &UdpSocket, origin: &Answerer, sent: &[u8]) -> SocketAddr {
    socket.send_to(sent, origin.address()).unwrap();
    let (from, at_origin) = origin.next();
    assert!(at_origin == sent, "{} bytes at the origin", at_origin.len());
    let mut buffer = vec![0; 65_536];
    let (len, answered_by) = socket.recv_from(&mut buffer).expect("an answer");
    assert_eq!(answered_by, origin.address());
    assert!(&buffer[..len] == sent, "{len} bytes came back");
    from
}

fn origins(scene: &Scene, port: u16) -> [Answerer; 2] {
    BOTH.map(|family| Answerer::start(scene, scene.lab.origin_address(family, port)))
}

fn flows(scene: &Scene, ended: bool) -> Vec<serde_json::Value> {
    let arguments: &[&str] = if ended {
        &["flows", "--ended", "--json"]
    } else {
        &["flows", "--json"]
    };
    let text = scene.tund.client.command(arguments).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    rows.into_iter()
        .filter(|row| row["protocol"] == "udp")
        .collect()
}

#[test]
fn datagrams_of_all_sizes_go_there_and_back_by_one_port() {
    let scene = Scene::new("datagrams", &Settings::new());
    for origin in origins(&scene, PORT) {
        let (family, most) = match origin.address() {
            SocketAddr::V4(_) => (Family::V4, 65_507),
            SocketAddr::V6(_) => (Family::V6, 65_527),
        };
        let socket = application(&scene, family);

        let sizes = [
            1, 0, 100, 1452, 1472, 1473, 4000, 16_384, 16_385, 40_000, most,
        ];
        let ports: Vec<SocketAddr> = sizes
            .into_iter()
            .map(|size| exchange(&socket, &origin, &payload(size, size)))
            .collect();

        assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
        assert_eq!(ports[0].ip(), address(family, 3, 2), "of the server");
    }
    let rows = flows(&scene, false);
    assert_eq!(rows.len(), 2, "{rows:?}");
    let sum: usize = [1, 0, 100, 1452, 1472, 1473, 4000, 16_384, 16_385, 40_000]
        .iter()
        .sum();
    assert_eq!(rows[0]["bytes"]["up"], sum + 65_507);
    assert_eq!(rows[0]["bytes"]["down"], sum + 65_507);
    assert_eq!(rows[0]["destination"], serde_json::Value::Null);
    assert_eq!(scene.tund.client.status().flows.udp, 2);
    let sessions = scene.tund.server.sessions().unwrap();
    assert_eq!(sessions[0]["flows"]["udp"], 2);
}

#[test]
fn a_burst_in_one_go_arrives_each_way() {
    const BURST: usize = 1000;
    let scene = Scene::new("a burst", &Settings::new());
    let near = application(&scene, Family::V4);
    let to = scene.lab.origin_address(Family::V4, PORT);
    let far = bind(&scene.lab.origin, to);
    for end in [&near, &far] {
        // What these two lose themselves, while they wait for their turn, is not what is asked.
        setsockopt(end, sockopt::RcvBufForce, &(BURST * 4096)).unwrap();
    }
    near.send_to(b"hello", to).unwrap();
    let (_, port) = far.recv_from(&mut [0; 10]).unwrap();
    for (from, to, at) in [(&near, to, &far), (&far, port, &near)] {
        // Longer than all of it takes on a crowded machine, and asked for once: the end.
        at.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let sender = from.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            for number in 0..BURST {
                sender.send_to(&payload(100, number), to).unwrap();
            }
        });
        let mut buffer = [0; 200];
        let mut arrived = 0;
        while arrived < BURST
            && let Ok((len, _)) = at.recv_from(&mut buffer)
        {
            assert_eq!(len, 100);
            arrived += 1;
        }
        sending.join().unwrap();
        assert!(arrived >= BURST * 95 / 100, "{arrived} of {BURST}");
    }
}

#[test]
fn one_mapping_speaks_to_many_remotes() {
    let scene = Scene::new("one mapping", &Settings::new());
    let socket = application(&scene, Family::V4);
    let remotes: Vec<Answerer> = (0..5)
        .map(|n| Answerer::start(&scene, scene.lab.origin_address(Family::V4, PORT + n)))
        .collect();

    let ports: Vec<SocketAddr> = remotes
        .iter()
        .map(|origin| exchange(&socket, origin, b"hello"))
        .collect();

    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    assert_eq!(flows(&scene, false).len(), 1);
}

#[test]
fn a_port_that_nobody_listens_at_is_refused() {
    let scene = Scene::new("refused datagrams", &Settings::new());
    for family in BOTH {
        let socket = connected(&scene, scene.lab.origin_address(family, PORT));
        socket.send(b"anybody?").unwrap();

        let error = socket.recv(&mut [0; 10]).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{family:?}");
    }
}

#[test]
fn a_remote_that_is_denied_is_told_of_and_others_answer_still() {
    let scene = Scene::new("denied datagrams", &Settings::new());
    let origin = Answerer::start(&scene, scene.lab.origin_address(Family::V4, PORT));
    let denied: SocketAddr = "10.77.6.1:53".parse().unwrap();
    let route = format!("ip route add {} dev {TUN}", denied.ip());
    scene.lab.client.run(&route);
    let socket = connected(&scene, denied);
    socket.send(b"let me in").unwrap();

    let error = socket.recv(&mut [0; 10]).unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{error:?}");
    let told = |log: String| log.contains("10.77.0.0/16") || log.contains("are refused unless");
    wait::until_true("the server's log names the setting", SOON, || {
        told(scene.tund.server.process.log())
    });
    exchange(&application(&scene, Family::V4), &origin, b"hello");
}

#[test]
fn a_datagram_too_big_for_the_path_is_told_of_with_its_size() {
    let scene = Scene::new("path MTU", &Settings::new());
    for origin in origins(&scene, PORT) {
        let family = match origin.address() {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        };
        let unconnected = application(&scene, family);
        exchange(&unconnected, &origin, b"hello");
    }
    scene.lab.router.run("ip link set dev o0 mtu 1300");
    // IPv6 tells nobody who has not asked, and the kernel of the application cuts its next ones.
    let origin = scene.lab.origin_address(Family::V4, PORT);
    let socket = connected(&scene, origin);
    socket.send(&payload(1400, 1)).unwrap();
    let error = socket.recv(&mut [0; 10]).unwrap_err();
    let code = error.raw_os_error();
    assert_eq!(code, Some(nix::errno::Errno::EMSGSIZE as i32), "{error:?}");
    for family in BOTH {
        let origin = scene.lab.origin_address(family, PORT);
        let socket = application(&scene, family);
        wait::until_true("the route knows the path's MTU", SOON, || {
            socket.send_to(&payload(1400, 1), origin).unwrap();
            let route = scene
                .lab
                .client
                .run(&format!("ip route get {}", origin.ip()));
            route.contains("mtu 1300")
        });
    }
}

#[test]
fn a_mapping_keeps_its_port_through_an_outage_and_a_switch() {
    let mut scene = Scene::new("a mapping's outage", &Settings::new());
    let origin = Answerer::start(&scene, scene.lab.origin_address(Family::V4, PORT));
    let socket = application(&scene, Family::V4);
    let before = exchange(&socket, &origin, b"before");

    scene.lab.cut();
    scene.lab.forget();
    socket.send_to(b"stale", origin.address()).unwrap();
    scene.tund.client.wait_for("detached", LATER);
    wait::let_pass(STALE);
    let rows = flows(&scene, false);
    assert_eq!(rows[0]["buffered_bytes"]["up"], 0, "{rows:?}");
    scene.lab.heal();
    scene.tund.client.wait_attached(LATER);

    assert_eq!(exchange(&socket, &origin, b"after"), before);
    scene.lab.switch();
    let after = wait::until("an answer by the other network", LATER, || {
        socket.send_to(b"switched", origin.address()).ok()?;
        origin.seen.recv_timeout(Duration::from_millis(300)).ok()
    });
    assert_eq!(after, (before, b"switched".to_vec()));
    let rows = flows(&scene, false);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(rows[0]["outages"].as_u64() >= Some(1), "{rows:?}");
}

#[test]
#[ignore = "long: an outage of 20 s, and as much before it"]
fn long_a_mapping_that_is_nearly_idle_outlives_an_outage_with_a_switch() {
    let settings = Settings::new().client("udp", "idle", "\"30s\"");
    let mut scene = Scene::new("a quiet mapping's outage", &settings);
    let origin = Answerer::start(&scene, scene.lab.origin_address(Family::V4, PORT));
    let socket = application(&scene, Family::V4);
    let before = exchange(&socket, &origin, b"before");
    let length = Duration::from_secs(20);

    wait::let_pass(length);
    scene.lab.cut();
    scene.lab.forget();
    wait::let_pass(length);
    scene.lab.switch();
    scene.lab.heal();
    scene.tund.client.wait_attached(LATER);

    assert_eq!(exchange(&socket, &origin, b"after"), before);
}

#[test]
fn strangers_are_heard_only_where_they_are_wanted() {
    for (filtering, is_heard) in [("address", false), ("endpoint", true)] {
        let settings = Settings::new().client("udp", "filtering", &format!("\"{filtering}\""));
        let scene = Scene::new("strangers", &settings);
        let origin = Answerer::start(&scene, scene.lab.origin_address(Family::V4, PORT));
        let socket = application(&scene, Family::V4);
        let port = exchange(&socket, &origin, b"hello");
        let other_port = bind(&scene.lab.origin, scene.lab.origin_address(Family::V4, 0));
        // Strangers of private networks are never heard: this one has a public address.
        let public = "9.9.9.9:0";
        let at = scene.lab.origin_address(Family::V4, 0).ip();
        scene.lab.origin.run("ip addr add 9.9.9.9/32 dev lo");
        let route = format!("ip route add 9.9.9.9/32 via {at}");
        scene.lab.router.run(&route);
        let stranger = bind(&scene.lab.origin, public.parse().unwrap());
        let private = bind(
            &scene.lab.origin,
            scene.lab.plain_origin_address(Family::V4, 0),
        );

        stranger.send_to(b"stranger", port).unwrap();
        private.send_to(b"private", port).unwrap();
        other_port.send_to(b"friend", port).unwrap();

        let mut heard = Vec::new();
        let mut buffer = [0; 100];
        while heard.last().is_none_or(|last: &Vec<u8>| last != b"friend") {
            let (len, _) = socket.recv_from(&mut buffer).unwrap();
            heard.push(buffer[..len].to_vec());
        }
        assert_eq!(
            heard.contains(&b"stranger".to_vec()),
            is_heard,
            "{filtering}"
        );
        assert!(!heard.contains(&b"private".to_vec()), "{filtering}");
    }
}

#[test]
fn each_datagram_to_a_listed_origin_bears_a_header() {
    let listed = format!("[\"10.77.4.0/24:{PORT}\"]");
    let settings = Settings::new().server("origin", "proxy_protocol", &listed);
    let scene = Scene::new("PROXY for datagrams", &settings);
    let origin = bind(
        &scene.lab.origin,
        scene.lab.origin_address(Family::V4, PORT),
    );
    let socket = application(&scene, Family::V4);
    let to = origin.local_addr().unwrap();

    for number in 0..3 {
        let sent = payload(100, number);
        socket.send_to(&sent, to).unwrap();
        let mut buffer = vec![0; 1000];
        let (len, from) = origin.recv_from(&mut buffer).unwrap();
        let (header, header_len) =
            ProxyHeader::parse(&buffer[..len], ParseConfig::default()).unwrap();
        let status = scene.tund.client.wait_attached(SOON);
        let addresses = header.proxied_address().expect("it has addresses");
        assert_eq!(addresses.source.to_string(), status.link.unwrap().local);
        assert_eq!(addresses.destination, to);
        let id = header
            .unique_id()
            .map(|id| String::from_utf8(id.to_vec()).unwrap());
        assert_eq!(id, status.session_id);
        assert_eq!(&buffer[header_len..len], sent);
        origin.send_to(b"ok", from).unwrap();
        let (len, _) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"ok", "answers are bare");
    }
}

#[test]
fn an_idle_mapping_ends_and_its_account_says_so() {
    let settings = Settings::new().client("udp", "idle", "\"10s\"");
    let scene = Scene::new("an idle mapping", &settings);
    let origin = Answerer::start(&scene, scene.lab.origin_address(Family::V4, PORT));
    let socket = application(&scene, Family::V4);
    let first = exchange(&socket, &origin, b"hello");

    wait::until_true("the mapping ends", LATER, || {
        scene.tund.client.status().flows.udp == 0
    });

    let ended = wait::until("its account", SOON, || flows(&scene, true).pop());
    assert_eq!(
        (&ended["ended_by"], &ended["how"]),
        (&"client".into(), &"idle".into())
    );
    assert_eq!(ended["bytes"], serde_json::json!({"up": 5, "down": 5}));
    wait::until_true("the server has closed its socket", SOON, || {
        let sessions = scene.tund.server.sessions().unwrap();
        sessions[0]["flows"]["udp"] == 0
    });
    let sockets = scene.lab.server.run("ss -Hunap");
    assert!(
        !sockets.contains(&format!(":{} ", first.port())),
        "{sockets}"
    );
    exchange(&socket, &origin, b"again");
}

/// How many datagrams of 1200 bytes arrive in `RATE_TIME`, and in how many that were sent.
fn rate(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> (usize, usize) {
    let sender = from.try_clone().unwrap();
    let until = wait::now() + RATE_TIME;
    let sending = std::thread::spawn(move || {
        let payload = [7; 1200];
        let mut sent = 0;
        while wait::now() < until {
            for _ in 0..32 {
                sent += usize::from(sender.send_to(&payload, to).is_ok());
            }
        }
        sent
    });
    at.set_read_timeout(Some(RATE_TIME / 4)).unwrap();
    let mut buffer = [0; 2000];
    let mut arrived = 0;
    while at.recv_from(&mut buffer).is_ok() {
        arrived += 1;
    }
    (arrived, sending.join().unwrap())
}

#[test]
#[ignore = "long: a measurement"]
fn long_datagrams_per_second_beside_a_direct_path() {
    let scene = Scene::new("datagrams per second", &Settings::new());
    let near = application(&scene, Family::V4);
    for (title, to) in [
        ("through tund", scene.lab.origin_address(Family::V4, PORT)),
        ("direct", scene.lab.plain_origin_address(Family::V4, PORT)),
    ] {
        let far = bind(&scene.lab.origin, to);
        near.send_to(b"hello", to).unwrap();
        let (_, port) = far.recv_from(&mut [0; 10]).unwrap();
        let (up, up_sent) = rate(&near, to, &far);
        let (down, down_sent) = rate(&far, port, &near);
        let per_second = |count: usize| count / usize::try_from(RATE_TIME.as_secs()).unwrap();
        figure(&format!(
            "datagrams of 1200 bytes per second {title}: up {} of {}, down {} of {}",
            per_second(up),
            per_second(up_sent),
            per_second(down),
            per_second(down_sent)
        ));
        assert!(up > 0 && down > 0);
    }
}
