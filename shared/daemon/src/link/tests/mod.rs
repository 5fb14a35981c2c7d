//! Two ends of a link over loopback: what passes, what is refused, and what each end learns.

mod listing;
mod turns;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::sign::CertifiedKey;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::record::{FIRST_BYTES, FIRST_PLAIN_BYTES};
use super::up::{KEY_AGE_MAX, KEY_BYTES_MAX, KEY_RECORDS_MAX};
use super::*;
use crate::identity::PrivateKey;

/// Socket buffers of a few records; with smaller ones, loopback waits for its window probes.
const TINY_BYTES: usize = 32 << 10;
/// Longer than anything here takes; a test that hangs fails by it.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn both_ends_prove_their_keys_and_share_a_secret_of_that_link_alone() {
    let world = World::new();
    let (mut near, mut far) = world.pair().await;

    let (client, server) = world.establish(&mut near, &mut far).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.peer, world.server.public());
    assert_eq!(server.peer, world.client.public());
    assert!(client.secret == server.secret);

    let (mut near, mut far) = world.pair().await;
    let (again, _) = world.establish(&mut near, &mut far).await;
    assert!(client.secret != again.unwrap().secret);
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once_through_tiny_socket_buffers() {
    let world = World {
        buffers: Some(TINY_BYTES),
        ..World::new()
    };
    let (mut near, mut far) = world.up().await;
    let (up, down) = (pattern(3_000_017, 1), pattern(2_500_003, 2));

    let (at_near, at_far) = within(exchange(&mut near, &mut far, &up, &down)).await;

    assert!(at_far == up, "what went up arrived changed");
    assert!(at_near == down, "what went down arrived changed");
    let wear = near.wear(clock::now());
    assert_eq!(wear.bytes, wide(up.len() + down.len()));
    assert!(
        wear.records >= wide(up.len() / RECORD_PLAIN_BYTES),
        "{wear:?}"
    );
    assert!(!wear.is_due());
}

#[tokio::test]
async fn an_orderly_end_is_told_from_a_cut_and_the_other_direction_goes_on() {
    let world = World::new();
    let (mut near, mut far) = world.up().await;
    near.send([b"last".as_slice()].into_iter()).unwrap();
    near.shutdown();
    assert_eq!(near.room(), 0);
    flush(&mut near).await.unwrap();

    assert_eq!(recv(&mut far).await.unwrap().unwrap(), "last");
    assert!(recv(&mut far).await.unwrap().is_none());
    far.send([b"answer".as_slice()].into_iter()).unwrap();
    flush(&mut far).await.unwrap();
    assert_eq!(recv(&mut near).await.unwrap().unwrap(), "answer");

    drop(far);
    assert!(matches!(recv(&mut near).await, Err(LinkError::PeerClosed)));
    assert!(matches!(
        recv(&mut near).await,
        Err(LinkError::Transport(_))
    ));
}

#[tokio::test]
async fn a_record_is_handed_out_in_pieces_that_fit() {
    let world = World::new();
    let (mut near, mut far) = world.up().await;
    near.send([b"abc".as_slice(), b"", b"defg"].into_iter())
        .unwrap();
    flush(&mut near).await.unwrap();

    let mut pieces: Vec<Vec<u8>> = Vec::new();
    while pieces.iter().map(Vec::len).sum::<usize>() < 7 {
        let piece = within(poll_fn(|cx| far.poll_recv(cx, 3)))
            .await
            .unwrap()
            .unwrap();
        pieces.push(piece.to_vec());
    }

    assert_eq!(pieces, [b"abc".to_vec(), b"def".to_vec(), b"g".to_vec()]);
}

#[tokio::test]
async fn slices_are_gathered_into_full_records_once_the_first_segments_are_readable_alone() {
    let world = World::new();
    let (mut near, mut far) = world.up().await;
    let data = pattern(FIRST_BYTES + 3 * RECORD_PLAIN_BYTES + 100, 3);
    let (early, late) = data.split_at(FIRST_PLAIN_BYTES + 10);
    near.send(early.chunks(1000)).unwrap();
    near.send(late.chunks(1000)).unwrap();
    flush(&mut near).await.unwrap();

    let mut lengths = Vec::new();
    while lengths.iter().sum::<usize>() < data.len() {
        lengths.push(recv(&mut far).await.unwrap().unwrap().len());
    }

    let mut small = vec![FIRST_PLAIN_BYTES; FIRST_BYTES / FIRST_PLAIN_BYTES];
    small.insert(1, 10);
    let (first, full) = lengths.split_at(small.len());
    assert_eq!(first, small);
    assert_eq!(
        full.split_last(),
        Some((&90, [RECORD_PLAIN_BYTES; 3].as_slice()))
    );
}

#[tokio::test]
async fn room_shrinks_while_the_peer_does_not_read_and_comes_back() {
    let world = World {
        buffers: Some(TINY_BYTES),
        ..World::new()
    };
    let (mut near, mut far) = world.up().await;
    let full = near.room();
    assert_eq!(full % RECORD_PLAIN_BYTES, 0);

    let mut sent = 0;
    while near.room() > 0 {
        let data = vec![7; near.room()];
        near.send([data.as_slice()].into_iter()).unwrap();
        sent += data.len();
        let flushed = poll_fn(|cx| Poll::Ready(near.poll_flush(cx))).await;
        assert!(!matches!(flushed, Poll::Ready(Err(_))));
        assert!(sent < 64 << 20, "the bound of the outbox does not hold");
    }
    assert!(near.outbox.len() <= OUTBOX_BYTES_MAX);

    let reader = async {
        let mut got = 0;
        while got < sent {
            got += recv(&mut far).await.unwrap().unwrap().len();
        }
    };
    let (flushed, ()) = tokio::join!(flush(&mut near), reader);
    flushed.unwrap();
    assert_eq!(near.room(), full);
}

#[tokio::test]
async fn a_server_with_another_key_is_named_and_is_not_final() {
    let world = World::new();
    let other = World::new();
    let tls = ClientTls::new(&world.client, vec![other.server.public()]).unwrap();
    let (mut near, mut far) = world.pair_with(&tls).await;

    let (client, server) = world.establish(&mut near, &mut far).await;

    let Err(LinkError::NotOurServer(Impostor::AnotherKey(key))) = client else {
        panic!("{client:?}")
    };
    assert_eq!(key, world.server.public());
    assert!(matches!(server, Err(LinkError::Tls(_))), "{server:?}");
}

#[tokio::test]
async fn one_of_several_server_keys_is_enough() {
    let world = World::new();
    let stranger = PrivateKey::generate().unwrap();
    let keys = vec![stranger.public(), world.server.public()];
    let (mut near, mut far) = world
        .pair_with(&ClientTls::new(&world.client, keys).unwrap())
        .await;

    let (client, server) = world.establish(&mut near, &mut far).await;

    assert!(client.is_ok() && server.is_ok());
}

#[tokio::test]
async fn an_unlisted_client_learns_it_for_good_though_it_sent_at_once() {
    let world = World::new();
    let stranger = PrivateKey::generate().unwrap();
    let tls = ClientTls::new(&stranger, vec![world.server.public()]).unwrap();
    let (mut near, mut far) = world.pair_with(&tls).await;

    let client = async {
        within(poll_fn(|cx| near.poll_handshake(cx))).await.unwrap();
        let hello = vec![1; 20_000];
        near.send([hello.as_slice()].into_iter()).unwrap();
        flush(&mut near).await.unwrap();
        let told = recv(&mut near).await;
        drop(near);
        told
    };
    let (client, server) = tokio::join!(client, within(poll_fn(|cx| far.poll_handshake(cx))));

    assert!(
        matches!(client, Err(LinkError::KeyNotListed(None))),
        "{client:?}"
    );
    let Err(LinkError::KeyNotListed(Some(key))) = server else {
        panic!("{server:?}")
    };
    assert_eq!(key, stranger.public());
}

#[tokio::test]
async fn a_key_shown_without_its_private_half_opens_nothing() {
    let world = World::new();
    let thief = PrivateKey::generate().unwrap();
    let shown = stolen(&world.client, &thief);
    let tls = ClientTls::showing(shown, vec![world.server.public()]).unwrap();
    let (mut near, mut far) = world.pair_with(&tls).await;
    let (_, server) = world.establish(&mut near, &mut far).await;
    assert!(matches!(server, Err(LinkError::Tls(_))), "{server:?}");

    let tls = ServerTls::showing(stolen(&world.server, &thief), world.clients.clone()).unwrap();
    let (mut near, stream) = world.raw_server().await;
    let mut far = Link::accept(stream, &tls, &SocketOptions::default()).unwrap();
    let (client, _) = world.establish(&mut near, &mut far).await;
    assert!(
        matches!(client, Err(LinkError::NotOurServer(_))),
        "{client:?}"
    );
}

#[tokio::test]
async fn a_client_that_does_not_name_our_protocol_is_not_let_in() {
    for protocols in [vec![], vec![b"tund/2".to_vec()]] {
        let world = World::new();
        let mut tls = world.client_tls();
        Arc::make_mut(&mut tls.config).alpn_protocols = protocols;
        let (mut near, mut far) = world.pair_with(&tls).await;

        let client = async {
            let result = within(poll_fn(|cx| near.poll_handshake(cx))).await;
            drop(near);
            result
        };
        let (client, server) = tokio::join!(client, within(poll_fn(|cx| far.poll_handshake(cx))));

        assert!(
            matches!(client, Err(LinkError::NotOurServer(_))),
            "{client:?}"
        );
        assert!(server.is_err(), "{server:?}");
    }
}

#[tokio::test]
async fn no_ticket_is_given_and_the_key_exchange_is_hybrid() {
    let world = World::new();
    let (near, far) = world.up().await;
    assert!(near.outbox.is_empty() && far.outbox.is_empty());
    assert!(near.inbox.bytes.is_empty());

    let first = world.client_tls().config.crypto_provider().kx_groups[0].name();
    assert_eq!(first, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn what_is_not_tls_is_no_server_of_ours() {
    for answer in [
        b"HTTP/1.1 302 Found\r\n\r\n".as_slice(),
        &[0xff; 64],
        &[0x16, 3, 3, 0xff, 0xff],
    ] {
        let world = World::new();
        let (mut near, mut peer) = world.raw_server().await;
        peer.write_all(answer).await.unwrap();

        let error = within(poll_fn(|cx| near.poll_handshake(cx)))
            .await
            .unwrap_err();

        assert!(
            matches!(error, LinkError::NotOurServer(Impostor::NotTund(_))),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_refusal_before_the_server_has_proved_its_key_is_not_believed() {
    let world = World::new();
    let (mut near, mut peer) = world.raw_server().await;
    // A plaintext alert, fatal: access_denied.
    peer.write_all(&[21, 3, 3, 0, 2, 2, 49]).await.unwrap();

    let error = within(poll_fn(|cx| near.poll_handshake(cx)))
        .await
        .unwrap_err();

    assert!(matches!(error, LinkError::NotOurServer(_)), "{error:?}");
}

#[tokio::test]
async fn random_bytes_and_plain_http_fail_at_the_server_at_once() {
    for noise in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &pattern(4000, 9),
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let world = World::new();
        let (mut peer, mut far) = world.raw_client().await;
        peer.write_all(noise).await.unwrap();

        let error = within(poll_fn(|cx| far.poll_handshake(cx)))
            .await
            .unwrap_err();

        assert!(matches!(error, LinkError::Tls(_)), "{error:?}");
    }
}

#[tokio::test]
async fn half_a_handshake_waits_and_its_end_is_seen() {
    let world = World::new();
    let (mut near, mut peer) = world.raw_server().await;
    let hello = async {
        let mut hello = vec![0; 300];
        peer.read_exact(&mut hello).await.unwrap();
        hello
    };
    let hello = tokio::select! {
        hello = hello => hello,
        _ = poll_fn(|cx| near.poll_handshake(cx)) => panic!("nobody answered"),
    };

    let (mut client, mut far) = world.raw_client().await;
    client.write_all(&hello).await.unwrap();
    let early = poll_fn(|cx| Poll::Ready(far.poll_handshake(cx))).await;
    assert!(early.is_pending());

    drop(client);
    let error = within(poll_fn(|cx| far.poll_handshake(cx)))
        .await
        .unwrap_err();
    assert!(matches!(error, LinkError::PeerClosed), "{error:?}");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_bounded() {
    let world = World::new();
    let (mut peer, mut far) = world.raw_client().await;
    // One handshake message of 60 KiB announced, in records that look right.
    let mut record = vec![0x16, 3, 1, 0x0f, 0xff, 1, 0, 0xf0, 0];
    record.resize(5 + 0x0fff, 0);
    let flood = async {
        // Refused half-way: then the server has seen enough.
        while peer.write_all(&record).await.is_ok() {
            record[5..9].copy_from_slice(&[0; 4]);
        }
    };
    let error = tokio::select! {
        error = within(poll_fn(|cx| far.poll_handshake(cx))) => error.unwrap_err(),
        () = flood => panic!("the server closed without an error"),
    };

    assert!(matches!(error, LinkError::Limit(_)), "{error:?}");
}

#[tokio::test]
async fn a_closed_port_is_a_transport_error_and_never_counts_as_connected() {
    let world = World::new();
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();

    let mut link = Link::connect(
        socket,
        address,
        &world.client_tls(),
        &SocketOptions::default(),
    )
    .unwrap();
    let error = within(poll_fn(|cx| link.poll_handshake(cx)))
        .await
        .unwrap_err();

    let LinkError::Transport(cause) = error else {
        panic!("{error:?}")
    };
    assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_record_cut_in_the_middle_or_changed_on_the_way_is_never_handed_out() {
    for damage in [Damage::Cut, Damage::Flip] {
        let world = World::new();
        let (mut near, mut far) = world.damaged(damage).await;
        near.send([[5; 1000].as_slice()].into_iter()).unwrap();
        flush(&mut near).await.unwrap();

        let error = recv(&mut far).await.unwrap_err();

        match damage {
            Damage::Cut => assert!(matches!(error, LinkError::PeerClosed), "{error:?}"),
            Damage::Flip => assert!(matches!(error, LinkError::Tls(_)), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn the_kernel_tells_progress_round_trip_and_congestion_control() {
    let world = World::new();
    let (mut near, mut far) = world.up().await;
    assert!(near.is_connected() && near.is_up());
    let before = (near.progress().unwrap(), far.progress().unwrap());
    near.send([[5; 10_000].as_slice()].into_iter()).unwrap();
    flush(&mut near).await.unwrap();
    let mut got = 0;
    while got < 10_000 {
        got += recv(&mut far).await.unwrap().unwrap().len();
    }

    let arrived = far.progress().unwrap().bytes_received - before.1.bytes_received;
    assert!(arrived > 10_000, "{arrived}");
    let acked = || near.progress().unwrap().bytes_acked - before.0.bytes_acked;
    within(async {
        while acked() < arrived {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let info = near.tcp_info().unwrap();
    assert!(
        info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1),
        "{info:?}"
    );
    assert_eq!(
        near.congestion_control().unwrap(),
        "reno",
        "near, hence no BBR"
    );
    assert_eq!(near.remote_addr(), far.local_addr().unwrap());
    assert_eq!(near.local_addr().unwrap(), far.remote_addr());
}

/// A client without flows that lost power says nothing, and is asked nothing.
#[tokio::test]
async fn the_kernel_asks_after_hours_whether_a_client_is_there() {
    let world = World::new();
    let (near, far) = world.up().await;
    let of = |link: &Link| {
        let socket = SockRef::from(&link.stream);
        let (time, every) = (
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
        );
        (socket.keepalive().unwrap(), time, every)
    };

    let hours = Duration::from_secs(2 * 3600);
    assert_eq!(of(&far), (true, hours, Duration::from_secs(75)));
    assert!(!of(&near).0);
}

#[tokio::test]
async fn an_idle_link_keeps_no_buffer_after_a_busy_time() {
    let world = World::new();
    let (mut near, mut far) = world.up().await;
    let data = pattern(4 << 20, 4);
    within(exchange(&mut near, &mut far, &data, &[])).await;

    for _ in 0..8 {
        near.send([b"ping".as_slice()].into_iter()).unwrap();
        flush(&mut near).await.unwrap();
        assert_eq!(recv(&mut far).await.unwrap().unwrap(), "ping");
        let empty = poll_fn(|cx| Poll::Ready(far.poll_recv(cx, 1))).await;
        assert!(empty.is_pending());
    }

    assert_eq!(far.inbox.bytes.capacity(), 0);
}

#[test]
fn wear_is_due_at_each_of_its_bounds_and_not_before() {
    let fresh = Wear {
        age: Duration::ZERO,
        bytes: 0,
        records: 0,
    };
    let nanosecond = Duration::from_nanos(1);

    assert!(
        !Wear {
            age: KEY_AGE_MAX - nanosecond,
            ..fresh
        }
        .is_due()
    );
    assert!(
        Wear {
            age: KEY_AGE_MAX,
            ..fresh
        }
        .is_due()
    );
    assert!(
        !Wear {
            bytes: KEY_BYTES_MAX - 1,
            ..fresh
        }
        .is_due()
    );
    assert!(
        Wear {
            bytes: KEY_BYTES_MAX,
            ..fresh
        }
        .is_due()
    );
    assert!(
        !Wear {
            records: KEY_RECORDS_MAX - 1,
            ..fresh
        }
        .is_due()
    );
    assert!(
        Wear {
            records: KEY_RECORDS_MAX,
            ..fresh
        }
        .is_due()
    );
}

/// What a thief shows who knows the public key and not the private one.
fn stolen(victim: &PrivateKey, thief: &PrivateKey) -> Arc<CertifiedKey> {
    let shown = tls::certified(victim).unwrap().cert.clone();
    Arc::new(CertifiedKey::new(shown, thief.signer()))
}

/// Keys of both ends, and how their sockets are made.
struct World {
    client: PrivateKey,
    server: PrivateKey,
    clients: ClientKeys,
    /// Size of the socket buffers; `None` as the system likes.
    buffers: Option<usize>,
}

impl World {
    fn new() -> Self {
        let client = PrivateKey::generate().unwrap();
        let clients = ClientKeys::new([client.public()]);
        Self {
            client,
            server: PrivateKey::generate().unwrap(),
            clients,
            buffers: None,
        }
    }

    fn client_tls(&self) -> ClientTls {
        ClientTls::new(&self.client, vec![self.server.public()]).unwrap()
    }

    fn server_tls(&self) -> ServerTls {
        ServerTls::new(&self.server, self.clients.clone()).unwrap()
    }

    async fn pair(&self) -> (Link, Link) {
        self.pair_with(&self.client_tls()).await
    }

    async fn pair_with(&self, tls: &ClientTls) -> (Link, Link) {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let near = self.dial(listener.local_addr().unwrap(), tls);
        let (stream, _) = listener.accept().await.unwrap();
        (near, self.take(stream))
    }

    async fn up(&self) -> (Link, Link) {
        let (mut near, mut far) = self.pair().await;
        let (client, server) = self.establish(&mut near, &mut far).await;
        client.unwrap();
        server.unwrap();
        (near, far)
    }

    async fn establish(
        &self,
        near: &mut Link,
        far: &mut Link,
    ) -> (
        Result<Established, LinkError>,
        Result<Established, LinkError>,
    ) {
        let client = async {
            let result = within(poll_fn(|cx| near.poll_handshake(cx))).await;
            if result.is_ok() {
                flush(near).await.unwrap();
            }
            result
        };
        tokio::join!(client, within(poll_fn(|cx| far.poll_handshake(cx))))
    }

    /// A client of ours, and what answers it to be played by the test.
    async fn raw_server(&self) -> (Link, TcpStream) {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let near = self.dial(listener.local_addr().unwrap(), &self.client_tls());
        (near, listener.accept().await.unwrap().0)
    }

    /// A client to be played by the test, and a server of ours.
    async fn raw_client(&self) -> (TcpStream, Link) {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        (client, self.take(listener.accept().await.unwrap().0))
    }

    /// An established pair whose path, from then on, damages the first record that goes up.
    async fn damaged(&self, damage: Damage) -> (Link, Link) {
        let (mut near, mut inner) = self.raw_server().await;
        let (mut outer, mut far) = self.raw_client().await;
        let (client, server) = tokio::select! {
            both = self.establish(&mut near, &mut far) => both,
            relayed = tokio::io::copy_bidirectional(&mut inner, &mut outer) => panic!("{relayed:?}"),
        };
        client.unwrap();
        server.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut space = vec![0; 1 << 16];
            let count = inner.read(&mut space).await.unwrap();
            match damage {
                Damage::Cut => space.truncate(count / 2),
                Damage::Flip => {
                    space.truncate(count);
                    space[count / 2] ^= 1;
                }
            }
            outer.write_all(&space).await.unwrap();
        });
        tasks.detach_all();
        (near, far)
    }

    fn dial(&self, address: SocketAddr, tls: &ClientTls) -> Link {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        self.shrink(&socket);
        let link = Link::connect(socket, address, tls, &SocketOptions::default()).unwrap();
        assert!(!link.is_connected());
        link
    }

    fn take(&self, stream: TcpStream) -> Link {
        self.shrink(&SockRef::from(&stream));
        Link::accept(stream, &self.server_tls(), &SocketOptions::default()).unwrap()
    }

    fn shrink(&self, socket: &Socket) {
        if let Some(bytes) = self.buffers {
            socket.set_send_buffer_size(bytes).unwrap();
            socket.set_recv_buffer_size(bytes).unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut,
    Flip,
}

/// Sends `up` and `down` at once, in slices of odd sizes; returns what arrived at either end.
async fn exchange(
    near: &mut Link,
    far: &mut Link,
    mut up: &[u8],
    mut down: &[u8],
) -> (BytesMut, BytesMut) {
    let (wanted_near, wanted_far) = (down.len(), up.len());
    let (mut at_near, mut at_far) = (BytesMut::new(), BytesMut::new());
    poll_fn(|cx| {
        let near_done = turn(near, cx, &mut up, &mut at_near, wanted_near);
        let far_done = turn(far, cx, &mut down, &mut at_far, wanted_far);
        if near_done && far_done {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    (at_near, at_far)
}

fn turn(
    link: &mut Link,
    cx: &mut Context<'_>,
    send: &mut &[u8],
    got: &mut BytesMut,
    wanted: usize,
) -> bool {
    let flushed = loop {
        let room = link.room();
        let (now, later) = send.split_at(send.len().min(room));
        if !now.is_empty() {
            link.send(now.chunks(997)).unwrap();
            *send = later;
        }
        match link.poll_flush(cx) {
            Poll::Ready(Ok(())) if send.is_empty() => break true,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => break false,
        }
    };
    while got.len() < wanted {
        match link.poll_recv(cx, 5000) {
            Poll::Ready(data) => got.extend_from_slice(&data.unwrap().unwrap()),
            Poll::Pending => break,
        }
    }
    flushed && got.len() == wanted
}

async fn recv(link: &mut Link) -> Result<Option<Bytes>, LinkError> {
    within(poll_fn(|cx| link.poll_recv(cx, usize::MAX))).await
}

async fn flush(link: &mut Link) -> Result<(), LinkError> {
    within(poll_fn(|cx| link.poll_flush(cx))).await
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .expect("took longer than anything here may")
}

/// Bytes that differ at every place where two could be swapped.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
