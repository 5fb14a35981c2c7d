//! `[dns] mode = "stub"`: names are asked for at an address inside the tunnel, and the server's
//! resolver answers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use std::{fs, io};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, ResourceRecord, TYPE};
use tund_tests::lab::{NameServer, Scene, Settings, wait};

use crate::support::{LATER, SOON};

const STUB: &str = "10.111.0.1:53";

/// A name server beside the origin, which the server's host asks.
fn scene(title: &str, settings: &Settings) -> (Scene, NameServer, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("resolv.conf");
    fs::write(&file, "nameserver 10.77.4.2\n").expect("a file");
    let settings = settings
        .clone()
        .client("dns", "mode", "\"stub\"")
        .server_resolv_conf(&file);
    let scene = Scene::new(title, &settings);
    scene
        .lab
        .client
        .run("ip route replace 10.111.0.1 dev tund0");
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let public = [ip("198.51.100.7"), ip("2001:db8::7")];
    let names: [(&str, &[IpAddr]); 4] = [
        ("web.example", &public),
        ("long.example", &public),
        ("inside.example", &[ip("192.168.7.1"), ip("10.77.4.2")]),
        ("printer.local", &public),
    ];
    let server = NameServer::start(&scene.lab.origin, ip("10.77.4.2"), &names);
    (scene, server, directory)
}

fn query(id: u16, name: &str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).expect("a name");
    let question = Question::new(name, kind.into(), CLASS::IN.into(), false);
    packet.questions.push(question);
    packet.build_bytes_vec().expect("a question")
}

fn stub() -> SocketAddr {
    STUB.parse().expect("an address")
}

fn socket(scene: &Scene) -> UdpSocket {
    let socket = scene.lab.client.enter(|| UdpSocket::bind("0.0.0.0:0"));
    let socket = socket.expect("a port");
    let limit = socket.set_read_timeout(Some(Duration::from_secs(2)));
    limit.expect("an open socket takes options");
    socket.connect(stub()).expect("a route to the stub");
    socket
}

/// As a stub resolver: it asks again after a while.
fn ask(scene: &Scene, name: &str, kind: TYPE) -> io::Result<Vec<u8>> {
    let socket = socket(scene);
    let mut buffer = vec![0; 4096];
    let mut last = Err(io::ErrorKind::TimedOut.into());
    for _ in 0..5 {
        socket.send(&query(7, name, kind))?;
        last = socket.recv(&mut buffer);
        if let Ok(len) = last {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
    last.map(|_| buffer)
}

fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let packet = Packet::parse(answer).expect("a message");
    assert_eq!(packet.rcode(), RCODE::NoError);
    let records = packet.answers.iter();
    let address = |record: &ResourceRecord<'_>| -> Option<IpAddr> {
        if let RData::A(a) = &record.rdata {
            Some(Ipv4Addr::from(a.address).into())
        } else if let RData::AAAA(aaaa) = &record.rdata {
            Some(Ipv6Addr::from(aaaa.address).into())
        } else {
            None
        }
    };
    records.filter_map(address).collect()
}

#[test]
fn names_are_answered_by_the_servers_resolver() {
    let (scene, server, _directory) = scene("names", &Settings::new());
    let known = |name, kind| addresses(&ask(&scene, name, kind).expect("an answer"));
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert_eq!(known("web.example", TYPE::A), [ip("198.51.100.7")]);
    assert_eq!(known("web.example", TYPE::AAAA), [ip("2001:db8::7")]);
    // The lab's server opens the origin's network, and no other private one.
    assert_eq!(known("inside.example", TYPE::A), [ip("10.77.4.2")]);

    let asked = server.asked();
    let local = ask(&scene, "printer.local", TYPE::A).expect("an answer");
    assert_eq!(
        Packet::parse(&local).expect("a message").rcode(),
        RCODE::NameError
    );
    assert_eq!(server.asked(), asked, "nobody is asked for local names");

    let cut = ask(&scene, "long.example", TYPE::A).expect("an answer");
    assert!(
        Packet::parse(&cut)
            .expect("a message")
            .has_flags(PacketFlag::TRUNCATION)
    );
    let mut stream = scene
        .lab
        .client
        .connect(stub(), LATER)
        .expect("TCP to the stub");
    stream
        .set_read_timeout(Some(LATER))
        .expect("an open socket takes options");
    let question = query(9, "long.example", TYPE::A);
    let len = u16::try_from(question.len()).expect("it is short");
    let framed = [&len.to_be_bytes()[..], &question].concat();
    stream.write_all(&framed).expect("it is open");
    let mut len = [0; 2];
    stream.read_exact(&mut len).expect("an answer");
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).expect("all of it");
    assert_eq!(addresses(&answer), [ip("198.51.100.7")]);

    // Nothing else is there.
    let closed = "10.111.0.1:80".parse().expect("an address");
    let refused = scene.lab.client.connect(closed, SOON).map(drop);
    let refused = refused.expect_err("nobody listens there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn names_are_answered_after_a_switch_and_a_cut() {
    let (mut scene, _server, _directory) = scene("names after events", &Settings::new());
    assert_eq!(
        addresses(&ask(&scene, "web.example", TYPE::A).expect("an answer")).len(),
        1
    );
    scene.lab.cut();
    scene.lab.forget();
    wait::let_pass(Duration::from_secs(3));
    scene.lab.heal();
    assert_eq!(
        addresses(&ask(&scene, "web.example", TYPE::A).expect("an answer")).len(),
        1
    );
    scene.lab.switch();
    assert_eq!(
        addresses(&ask(&scene, "web.example", TYPE::A).expect("an answer")).len(),
        1
    );
}

#[test]
fn a_flood_of_questions_is_held_to_its_rate() {
    let (scene, _server, _directory) = scene("a flood of questions", &Settings::new());
    assert_eq!(
        addresses(&ask(&scene, "web.example", TYPE::A).expect("an answer")).len(),
        1
    );
    // Local names: what is answered is held to the rate alone.
    let start = wait::now();
    let socket = socket(&scene);
    let limit = socket.set_read_timeout(Some(Duration::from_millis(20)));
    limit.expect("an open socket takes options");
    let mut answered = 0_u128;
    for _ in 0..40 {
        for id in 0..50 {
            let sent = socket.send(&query(id, "printer.local", TYPE::A));
            sent.expect("it is taken");
        }
        while socket.recv(&mut [0; 512]).is_ok() {
            answered += 1;
        }
    }
    let took = (wait::now() - start).as_millis();
    // Those of the second before that the first question has left, and the last ones under way.
    assert!(answered >= 200, "{answered} answers");
    assert!(
        answered <= 210 + took / 5,
        "{answered} answers in {took} ms"
    );
    assert_eq!(
        addresses(&ask(&scene, "web.example", TYPE::A).expect("an answer")).len(),
        1
    );
}
