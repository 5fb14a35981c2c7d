//! The resolver with name servers on loopback.

use super::*;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, ResourceRecord, TYPE};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket as StdUdp};
use std::sync::atomic::AtomicUsize;
use tund_daemon::clock;
use tund_session::wire::frame;

const PATIENCE: Duration = Duration::from_secs(10);

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    let name = Name::new(name).unwrap();
    packet
        .questions
        .push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().unwrap()
}

/// What a name server says: a public address and a private one; of "long." by TCP only.
fn reply(message: &[u8], is_tcp: bool) -> Vec<u8> {
    let query = Packet::parse(message).unwrap();
    let mut reply = Packet::new_reply(query.id());
    reply.questions.clone_from(&query.questions);
    let name = query.questions[0].qname.clone();
    if name.to_string().starts_with("long.") && !is_tcp {
        reply.set_flags(PacketFlag::TRUNCATION);
    } else {
        for address in [0xc000_0201, 0x0a00_0001] {
            let rdata = RData::A(A { address });
            reply
                .answers
                .push(ResourceRecord::new(name.clone(), CLASS::IN, 60, rdata));
        }
    }
    reply.build_bytes_vec().unwrap()
}

/// A name server on loopback, until the test process ends.
fn name_server() -> SocketAddr {
    let Sockets { address, udp, tcp } = Sockets::bind(Ipv4Addr::LOCALHOST.into()).unwrap();
    udp.set_nonblocking(false).unwrap();
    tcp.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            // Somebody else's answer comes first.
            let mut wrong = reply(&buffer[..len], false);
            wrong[0] ^= 0xff;
            udp.send_to(&wrong, from).unwrap();
            udp.send_to(&reply(&buffer[..len], false), from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let message = read_framed(&mut stream);
            write_framed(&mut stream, &reply(&message, true));
        }
    });
    address
}

fn read_framed(stream: &mut impl io::Read) -> Vec<u8> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message).unwrap();
    message
}

fn write_framed(stream: &mut impl io::Write, message: &[u8]) {
    let len = u16::try_from(message.len()).unwrap();
    stream
        .write_all(&[&len.to_be_bytes()[..], message].concat())
        .unwrap();
}

fn start(name_servers: &[SocketAddr]) -> Resolver {
    let admission = Admission::new(Vec::new(), Vec::new(), []);
    Resolver::start(NameServers::always(name_servers.to_vec()), admission).unwrap()
}

fn introduce(resolver: &Resolver, socket: Socket, (number, allow): (u8, &[&str])) {
    let allow: Vec<_> = allow.iter().map(|rule| rule.parse().unwrap()).collect();
    resolver.introduce(socket, SessionId([number; 16]), &allow);
}

/// A connection of that session's.
fn connected(resolver: &Resolver, session: u8) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&any.into()).unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    introduce(resolver, (Over::Tcp, local), (session, &[]));
    let to = resolver.address(true).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn socket() -> StdUdp {
    let socket = StdUdp::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn introduced(resolver: &Resolver, guest: (u8, &[&str])) -> StdUdp {
    let socket = socket();
    let local = socket.local_addr().unwrap();
    introduce(resolver, (Over::Udp, local), guest);
    socket.connect(resolver.address(true).unwrap()).unwrap();
    socket
}

fn received(socket: &StdUdp) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let len = socket.recv(&mut buffer).expect("an answer");
    buffer.truncate(len);
    buffer
}

/// How many addresses an answer has, and by which identifier it is known.
fn shown(answer: &[u8]) -> (u16, usize) {
    let packet = Packet::parse(answer).unwrap();
    assert_eq!(packet.rcode(), RCODE::NoError);
    (packet.id(), packet.answers.len())
}

#[test]
fn questions_are_answered_to_each_as_he_may_know() {
    // Nobody listens at the first.
    let closed = socket().local_addr().unwrap();
    let resolver = start(&[closed, name_server()]);
    let stranger = socket();
    stranger.connect(resolver.address(true).unwrap()).unwrap();
    stranger.send(&query(1, "example.org")).unwrap();

    let plain = introduced(&resolver, (1, &[]));
    plain.send(&query(2, "example.org")).unwrap();
    assert_eq!(shown(&received(&plain)), (2, 1));
    let insider = introduced(&resolver, (2, &["10.0.0.0/8"]));
    insider.send(&query(3, "example.org")).unwrap();
    assert_eq!(shown(&received(&insider)), (3, 2));

    plain.send(&query(4, "printer.local")).unwrap();
    let local = received(&plain);
    assert_eq!(Packet::parse(&local).unwrap().rcode(), RCODE::NameError);
    plain.send(&query(5, "long.example.org")).unwrap();
    assert!(
        Packet::parse(&received(&plain))
            .unwrap()
            .has_flags(PacketFlag::TRUNCATION)
    );

    stranger.set_nonblocking(true).unwrap();
    assert!(
        stranger.recv(&mut [0; 512]).is_err(),
        "who is not introduced gets nothing"
    );
    resolver.forget(Some((Over::Udp, plain.local_addr().unwrap())));
    plain.send(&query(6, "example.org")).unwrap();
    insider.send(&query(7, "example.org")).unwrap();
    assert_eq!(shown(&received(&insider)), (7, 2));
    plain.set_nonblocking(true).unwrap();
    assert!(
        plain.recv(&mut [0; 512]).is_err(),
        "nor who is so no longer"
    );
}

#[test]
fn several_questions_go_by_one_connection() {
    let resolver = start(&[name_server()]);
    let mut stream = connected(&resolver, 1);

    let names = ["one.example", "long.example.org", "two.example"];
    let all: Vec<u8> = (10..).zip(names).fold(Vec::new(), |mut all, (id, name)| {
        write_framed(&mut all, &query(id, name));
        all
    });
    // In pieces that end anywhere.
    for piece in all.chunks(7) {
        stream.write_all(piece).unwrap();
    }
    let mut ids: Vec<_> = names
        .iter()
        .map(|_| shown(&read_framed(&mut stream)).0)
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [10, 11, 12]);

    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        stream.read(&mut [0; 1]).unwrap(),
        0,
        "it ends when its client ends it"
    );
}

/// Whether something comes to be so, soon.
fn comes(mut is_so: impl FnMut() -> bool) -> bool {
    let end = clock::now() + PATIENCE;
    while clock::now() < end {
        if is_so() {
            return true;
        }
        thread::yield_now();
    }
    false
}

fn drained(socket: &StdUdp) -> usize {
    socket.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| socket.recv(&mut [0; 512]).ok()).count()
}

#[test]
fn a_flood_of_one_session_is_held_to_its_rate_and_leaves_others_their_answers() {
    const LOTS: usize = 50;
    const LOT: usize = 20;
    let resolver = start(&[name_server()]);
    let flood = introduced(&resolver, (1, &[]));
    let other = introduced(&resolver, (2, &[]));
    let begin = clock::now();
    let mut answered = 0;
    for lot in 0..LOTS {
        for _ in 0..LOT {
            flood.send(&query(1, "localhost")).unwrap();
        }
        // Questions are taken in turn: with this answer, all before have theirs.
        let id = u16::try_from(lot).unwrap();
        other.send(&query(id, "localhost")).unwrap();
        assert_eq!(Packet::parse(&received(&other)).unwrap().id(), id);
        answered += drained(&flood);
    }
    let took = clock::now().saturating_duration_since(begin);
    let most = 201 + usize::try_from(took.as_millis()).unwrap() / 5;
    assert!((200..=most).contains(&answered), "{answered} in {took:?}");
    other.send(&query(77, "example.org")).unwrap();
    assert_eq!(shown(&received(&other)), (77, 1));
}

#[test]
fn a_session_has_so_many_questions_under_way_and_others_have_theirs() {
    let slow = socket();
    let resolver = start(&[slow.local_addr().unwrap()]);
    let greedy = introduced(&resolver, (1, &[]));
    let other = introduced(&resolver, (2, &[]));
    for id in 0..100 {
        greedy.send(&query(id, &format!("n{id}.example"))).unwrap();
    }
    other.send(&query(777, "other.example")).unwrap();
    let mut names = BTreeSet::new();
    let mut asked = Vec::new();
    let mut buffer = [0; 512];
    while !names.contains("other.example") || names.len() < 65 {
        let (len, from) = slow.recv_from(&mut buffer).expect("questions");
        let message = buffer[..len].to_vec();
        names.insert(
            Packet::parse(&message).unwrap().questions[0]
                .qname
                .to_string(),
        );
        asked.push((message, from));
    }
    assert_eq!(names.len(), 65);
    for (message, from) in asked {
        slow.send_to(&reply(&message, false), from).unwrap();
    }
    assert_eq!(shown(&received(&other)), (777, 1));
    (0..64).for_each(|_| drop(received(&greedy)));
    // There is room again, and nothing that was lost has been kept.
    greedy.send(&query(1000, "again.example")).unwrap();
    let name = loop {
        let (len, _) = slow.recv_from(&mut buffer).expect("a question");
        let packet = Packet::parse(&buffer[..len]).unwrap();
        let name = packet.questions[0].qname.to_string();
        if !names.contains(&name) {
            break name;
        }
    };
    assert_eq!(name, "again.example");
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let read = stream.read(&mut [0; 512]).map_err(|error| error.kind());
    matches!(read, Ok(0) | Err(io::ErrorKind::ConnectionReset))
}

#[test]
fn a_session_has_so_many_connections() {
    let resolver = start(&[name_server()]);
    let is_served = |stream: &mut TcpStream| {
        write_framed(stream, &query(1, "localhost"));
        matches!(stream.read(&mut [0; 512]), Ok(1..))
    };
    let mut all: Vec<_> = (0..64).map(|_| connected(&resolver, 1)).collect();
    assert!(all.iter_mut().all(is_served));
    assert!(is_closed(&mut connected(&resolver, 1)));
    assert!(is_served(&mut connected(&resolver, 2)), "another session");
    all.pop();
    assert!(comes(|| is_served(&mut connected(&resolver, 1))));
}

#[test]
fn a_message_that_no_question_is_as_long_as_ends_its_connection() {
    let resolver = start(&[name_server()]);
    let mut stream = connected(&resolver, 1);
    stream.write_all(&4097_u16.to_be_bytes()).unwrap();
    assert!(is_closed(&mut stream));
}

/// A name server that answers with that code, and how often it was asked.
fn failing(code: RCODE) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = socket();
    socket.set_read_timeout(None).unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            counted.fetch_add(1, Ordering::Relaxed);
            let query = Packet::parse(&buffer[..len]).unwrap();
            let mut answer = query.into_reply();
            *answer.rcode_mut() = code;
            let answer = answer.build_bytes_vec().unwrap();
            socket.send_to(&answer, from).unwrap();
        }
    });
    (address, asked)
}

#[test]
fn who_cannot_tell_has_another_asked() {
    let (broken, asked) = failing(RCODE::ServerFailure);
    let resolver = start(&[broken, name_server()]);
    let guest = introduced(&resolver, (1, &[]));
    guest.send(&query(5, "example.org")).unwrap();
    assert_eq!(shown(&received(&guest)), (5, 1));
    assert_eq!(asked.load(Ordering::Relaxed), 1);

    let (refusing, also_asked) = failing(RCODE::Refused);
    let resolver = start(&[broken, refusing]);
    let guest = introduced(&resolver, (1, &[]));
    guest.send(&query(6, "example.org")).unwrap();
    let answer = received(&guest);
    assert_eq!(Packet::parse(&answer).unwrap().rcode(), RCODE::Refused);
    let both = [&asked, &also_asked].map(|asked| asked.load(Ordering::Relaxed));
    assert_eq!(both, [2, 1], "each once");
}

#[test]
fn what_serves_starts_again_when_it_ends() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let starts = AtomicUsize::new(0);
    let (third, mut is_third) = tokio::sync::mpsc::channel(1);
    let kept = keep("tests", Duration::ZERO, || {
        let start = starts.fetch_add(1, Ordering::Relaxed);
        let third = third.clone();
        async move {
            assert_ne!(start, 0, "this test has it panic once");
            if start == 1 {
                return Err(io::ErrorKind::Other.into());
            }
            third.send(()).await.map_err(io::Error::other)?;
            std::future::pending().await
        }
    });
    runtime.block_on(async {
        tokio::select! {
            () = kept => panic!("it goes on"),
            started = is_third.recv() => started.unwrap(),
            () = tokio::time::sleep(PATIENCE) => panic!("it was not started again"),
        }
    });
}

#[test]
fn one_that_has_ended_has_no_address_and_its_port_is_closed() {
    let mut resolver = start(&[name_server()]);
    let guest = introduced(&resolver, (1, &[]));
    guest.send(&query(1, "localhost")).unwrap();
    received(&guest);
    drop(resolver.stop.take());
    assert!(comes(|| resolver.address(true).is_none()));
    assert!(resolver.at(frame::resolver(true)).is_none());
    let source = (Ipv4Addr::LOCALHOST, 4000).into();
    let admission = Admission::new(Vec::new(), Vec::new(), []);
    let mut mapping = resolver.mapping(Protocol::Udp, source).unwrap();
    let sent = mapping.outgoing(&admission, &[], frame::resolver(true));
    assert!(sent.is_err());
    guest.set_nonblocking(true).unwrap();
    let refused = io::ErrorKind::ConnectionRefused;
    assert!(comes(|| {
        let sent = guest.send(&query(2, "localhost")).map(drop);
        let heard = guest.recv(&mut [0; 512]).map(drop);
        [sent, heard]
            .map(Result::err)
            .iter()
            .flatten()
            .any(|error| error.kind() == refused)
    }));
}
