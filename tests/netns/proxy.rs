//! What origins are told by the PROXY protocol: the session's id, and where its client is.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use proxy_header::{ParseConfig, ProxyHeader};
use tund_session::wire::frame::{Control, Data, Frame};
use tund_session::{FlowId, Offset};
use tund_tests::crowd::Rogue;
use tund_tests::lab::{
    ClientDaemon, Family, Keys, Lab, Namespace, Origin, Process, ServerDaemon, Settings, TUN, Tund,
    wait,
};

use crate::rogues;
use crate::support::{Echo, LATER, SOON, Scene};

const PORT: u16 = 9100;
pub(crate) const HAPROXY_PORT: u16 = 9200;

/// Both listed ports, at every address of the origin.
pub(crate) const LISTED: &str =
    "[\"10.77.4.0/24:9100\", \"[fd77:0:0:4::/64]:9100\", \"10.77.0.0/16:9200\"]";

/// What an origin reads of a connection: header and payload.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    source: SocketAddr,
    destination: SocketAddr,
    id: String,
    payload: Vec<u8>,
}

fn told(stream: &mut TcpStream) -> Told {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(LATER)).unwrap();
    stream.read_to_end(&mut bytes).unwrap();
    let (header, len) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
    let addresses = header.proxied_address().expect("it has addresses");
    Told {
        source: addresses.source,
        destination: addresses.destination,
        id: String::from_utf8(header.unique_id().expect("it has an id").to_vec()).unwrap(),
        payload: bytes[len..].to_vec(),
    }
}

#[test]
fn an_origin_learns_session_and_link_and_then_gets_the_payload() {
    let settings = Settings::new().server("origin", "proxy_protocol", LISTED);
    let scene = Scene::new("proxy protocol", &settings);
    let listener = scene.lab.origin.listen(PORT);
    // An application's own header is payload, and moves no one's address.
    let payload = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nhello";

    for family in [Family::V4, Family::V6] {
        let to = scene.lab.origin_address(family, PORT);
        let before = scene.tund.client.status().bytes.up;
        let mut near = scene.lab.client.connect(to, LATER).unwrap();
        near.write_all(payload).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let told = told(&mut far);

        let status = scene.tund.client.wait_attached(SOON);
        let link: SocketAddr = status.link.unwrap().local.parse().unwrap();
        let expected = match family {
            Family::V4 => link,
            Family::V6 => format!("[::ffff:{}]:{}", link.ip(), link.port())
                .parse()
                .unwrap(),
        };
        assert_eq!(told.source, expected, "as the server sees the link");
        assert_eq!(told.destination, to);
        assert_eq!(Some(told.id), status.session_id);
        assert_eq!(told.payload, payload);
        let carried = u64::try_from(payload.len()).unwrap();
        assert_eq!(
            status.bytes.up - before,
            carried,
            "the header is not the flow's"
        );
    }
}

#[test]
fn a_client_cannot_forge_the_address_that_an_origin_is_told() {
    let settings = Settings::new().server("origin", "proxy_protocol", LISTED);
    let (scene, pair) = rogues::scene("a forged source", &settings);
    let listener = scene.lab.origin.listen(PORT);
    let to = scene.lab.origin_address(Family::V4, PORT);
    let mut rogue = rogues::connect(&scene, &pair.private);
    let session = rogue.greet().session;
    // Of nobody, of the other client, of the server.
    let forged = ["192.0.2.1:1", "10.77.1.2:40000", "10.77.3.2:443"];
    for (flow, source) in (1..).zip(forged) {
        let frame = Rogue::open_frame(0, flow, to);
        let Frame::Control {
            message: Control::Open(mut open),
            ..
        } = frame
        else {
            panic!("no OPEN: {frame:?}");
        };
        open.source = source.parse().unwrap();
        rogue.say(Control::Open(open));
        let answer = rogues::answer(&mut rogue, flow);
        assert!(matches!(answer, Control::OpenOk { .. }), "{answer:?}");
        let payload = format!("PROXY TCP4 {source} 10.77.4.2 1 {PORT}\r\n");
        rogue.send(&Frame::Data(Data {
            flow: FlowId(flow),
            offset: Offset(0),
            fin: true,
            payload: payload.clone().into(),
        }));
        let expected = Told {
            source: rogue.local_address(),
            destination: to,
            id: session.to_string(),
            payload: payload.into(),
        };
        assert_eq!(told(&mut listener.accept().unwrap().0), expected);
    }
}

#[test]
fn an_origin_that_is_not_listed_gets_the_payload_alone() {
    let settings = Settings::new().server("origin", "proxy_protocol", LISTED);
    let scene = Scene::new("not listed", &settings);
    let listener = scene.lab.origin.listen(PORT + 1);
    let to = scene.lab.origin_address(Family::V4, PORT + 1);
    let mut near = scene.lab.client.connect(to, LATER).unwrap();
    near.write_all(b"hello").unwrap();
    near.shutdown(Shutdown::Write).unwrap();

    let mut bytes = Vec::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_end(&mut bytes)
        .unwrap();

    assert_eq!(bytes, b"hello");
}

/// haproxy in front of the origin's echo, with a line of its log for each connection.
pub(crate) fn haproxy(lab: &Lab) -> Process {
    let config = lab.directory().join("haproxy.cfg");
    let text = format!(
        "global\n log stdout format raw local0 info\n\
         defaults\n mode tcp\n log global\n option logasap\n timeout connect 5s\n \
         timeout client 1m\n timeout server 1m\n\
         frontend tund\n bind :::{HAPROXY_PORT} v4v6 accept-proxy\n \
         log-format \"id=%[fc_pp_unique_id] from=%[src] \"\n default_backend echo\n\
         backend echo\n server echo 127.0.0.1:8080\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let process = Process::start(&lab.origin, lab.directory(), "haproxy", &mut command);
    let listing = format!("ss -Htln sport = :{HAPROXY_PORT}");
    wait::until_true("haproxy listens", LATER, || {
        !lab.origin.run(&listing).is_empty()
    });
    process
}

/// What haproxy logs of one more connection from `host`: id and source.
pub(crate) fn logged(proxy: &Process, host: &Namespace, to: SocketAddr) -> (String, String) {
    let lines = |log: &str| log.lines().filter(|line| line.starts_with("id=")).count();
    let before = lines(&proxy.log());
    let echo = Echo::open(host, to).unwrap();
    wait::until_true("haproxy logs it", SOON, || lines(&proxy.log()) > before);
    drop(echo);
    let log = proxy.log();
    let line = log
        .lines()
        .filter(|line| line.starts_with("id="))
        .nth(before);
    let mut words = line.expect("it is there").split_whitespace();
    let mut value = |key: &str| {
        let word = words.next().expect("two words");
        word.strip_prefix(key).expect("in this order").to_owned()
    };
    (value("id="), value("from="))
}

/// The id that both daemons show of the client's session.
pub(crate) fn shown(scene: &Scene) -> String {
    let id = scene.tund.client.wait_attached(LATER).session_id.unwrap();
    let rows = scene.tund.server.sessions().unwrap();
    let of_client = rows.iter().filter(|row| row["client"] == "client");
    let shown: Vec<_> = of_client.map(|row| row["session_id"].clone()).collect();
    assert_eq!(shown, [id.as_str()], "`status` and `sessions` agree");
    id
}

/// A scene with a second client, in the router's namespace, which is not steered through the first.
fn two_clients(settings: &Settings) -> (Scene, ClientDaemon) {
    let lab = Lab::new("haproxy");
    let origin = Origin::start(&lab.origin);
    let keys = |title| Keys::generate(lab.directory(), title);
    let (first, second, server_keys) = (keys("client"), keys("second"), keys("server"));
    let server = ServerDaemon::start(
        &lab.server,
        lab.directory(),
        ("server", &server_keys),
        &[("client", &first), ("second", &second)],
        settings,
    );
    let public = &server_keys.public;
    let client = ClientDaemon::start(&lab, &lab.client, ("client", &first), public, settings);
    let other = ClientDaemon::start(&lab, &lab.router, ("second", &second), public, settings);
    tund_tests::lab::steer(&lab);
    let hidden = lab.hidden_origin_address(Family::V4, 0).ip();
    lab.router.run(&format!("ip route add {hidden} dev {TUN}"));
    let tund = Tund {
        client,
        server,
        client_keys: first,
        server_keys,
    };
    (Scene { tund, origin, lab }, other)
}

#[test]
fn haproxy_logs_one_id_for_each_session_and_no_other() {
    let settings = Settings::new().grace("2s");
    let settings = settings.server("origin", "proxy_protocol", LISTED);
    let (scene, other) = two_clients(&settings);
    let proxy = haproxy(&scene.lab);
    let to = scene.lab.origin_address(Family::V4, HAPROXY_PORT);
    let mut kept = Echo::open(&scene.lab.client, to).unwrap();
    let first = shown(&scene);

    for _ in 0..5 {
        let outages = scene.tund.client.status().outages.count;
        scene.lab.forget();
        kept.round_trip().unwrap();
        wait::until_true("it was resumed", LATER, || {
            scene.tund.client.status().outages.count > outages
        });
        let seen = logged(&proxy, &scene.lab.client, to);
        assert_eq!(seen, (first.clone(), "10.77.1.2".to_owned()));
        assert_eq!(shown(&scene), first);
    }

    let hidden = scene.lab.hidden_origin_address(Family::V4, HAPROXY_PORT);
    let (of_other, from) = logged(&proxy, &scene.lab.router, hidden);
    assert_eq!(Some(&of_other), other.status().session_id.as_ref());
    assert_ne!(of_other, first);
    assert_eq!(from, "10.77.3.1");

    scene.tund.client.command(&["disconnect"]).unwrap();
    let (second, _) = logged(&proxy, &scene.lab.client, to);
    assert_eq!(second, shown(&scene));
    assert_ne!(second, first, "new after disconnect");

    let mut kept = Echo::open(&scene.lab.client, to).unwrap();
    scene.lab.cut();
    scene.lab.forget();
    assert!(kept.round_trip().is_err(), "its grace is over");
    scene.lab.heal();
    let (third, _) = logged(&proxy, &scene.lab.client, to);
    assert_eq!(third, shown(&scene));
    assert!(third != second && third != first, "new after expiry");
}
