//! Tests of connection C over loopback: each way it can begin, end and fail.

use super::*;
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// How long a test waits for what has to come.
const DEADLINE: Duration = Duration::from_secs(4);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("it comes within the deadline")
}

/// An origin's socket, with buffers small enough to be filled quickly.
fn listen() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket
        .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .unwrap();
    socket.listen(16).unwrap()
}

/// Our end and the origin's of one connection.
async fn pair() -> (Origin, TcpStream) {
    let listener = listen();
    let mut origin = Origin::connect(listener.local_addr().unwrap(), Bytes::new()).unwrap();
    soon(poll_fn(|cx| origin.poll_connected(cx))).await.unwrap();
    let (far, _) = soon(listener.accept()).await.unwrap();
    (origin, far)
}

#[tokio::test]
async fn the_preface_comes_before_all_else_and_counts_as_nothing_written() {
    let listener = listen();
    let preface = Bytes::from_static(b"who speaks");
    let mut origin = Origin::connect(listener.local_addr().unwrap(), preface).unwrap();

    soon(poll_fn(|cx| origin.poll_connected(cx))).await.unwrap();
    write_all(&mut origin, &[Bytes::from_static(b" payload")]).await;
    origin.finish().unwrap();

    let (mut far, _) = soon(listener.accept()).await.unwrap();
    let mut all = Vec::new();
    soon(far.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"who speaks payload");
}

async fn read(origin: &mut Origin, max: usize) -> io::Result<Bytes> {
    let mut buffer = ReadBuffer::new();
    soon(poll_fn(|cx| origin.poll_read(cx, &mut buffer, max))).await
}

/// Reads until FIN, or the error that comes instead.
async fn read_all(origin: &mut Origin) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    loop {
        match read(origin, usize::MAX).await {
            Ok(bytes) if bytes.is_empty() => return (all, Ok(())),
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (all, Err(error)),
        }
    }
}

async fn write_all(origin: &mut Origin, pieces: &[Bytes]) {
    let mut left: Vec<Bytes> = pieces.to_vec();
    while left.iter().any(|piece| !piece.is_empty()) {
        let mut count = soon(poll_fn(|cx| origin.poll_write(cx, left.iter())))
            .await
            .unwrap();
        for piece in &mut left {
            let taken = count.min(piece.len());
            drop(piece.split_to(taken));
            count -= taken;
        }
        left.retain(|piece| !piece.is_empty());
    }
}

/// Writes until the socket takes no more; returns how much it took.
async fn fill(origin: &mut Origin) -> usize {
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut written = 0;
    poll_fn(|cx| {
        loop {
            match origin.poll_write(cx, std::iter::once(&piece)) {
                std::task::Poll::Ready(taken) => written += taken.unwrap(),
                std::task::Poll::Pending => return std::task::Poll::Ready(()),
            }
        }
    })
    .await;
    written
}

/// Closes the origin's end so that it sends RST.
fn reset(far: TcpStream) {
    socket2::SockRef::from(&far)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

fn bytes(len: usize) -> Bytes {
    (0..len)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

#[tokio::test]
async fn a_closed_port_is_refused() {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    drop(listener);

    let mut origin = Origin::connect(address, Bytes::new()).unwrap();
    let error = soon(poll_fn(|cx| origin.poll_connected(cx)))
        .await
        .unwrap_err();

    assert_eq!(open_error(&error), OpenError::Refused);
}

#[tokio::test]
async fn a_network_without_a_route_is_unreachable_at_once() {
    // 240.0.0.0/4 is reserved; the kernel has no route to broadcast or multicast for TCP.
    let error =
        Origin::connect(SocketAddr::from(([255, 255, 255, 255], 80)), Bytes::new()).unwrap_err();
    assert!(
        matches!(
            open_error(&error),
            OpenError::NetworkUnreachable | OpenError::Other(_)
        ),
        "{error}"
    );
}

#[tokio::test]
async fn options_are_set_before_the_first_packet() {
    let listener = listen();
    let origin = Origin::connect(listener.local_addr().unwrap(), Bytes::new()).unwrap();

    let socket = socket2::SockRef::from(&origin);
    assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert!(socket.tcp_keepalive_time().unwrap() <= Duration::from_secs(60));
    assert!(socket.tcp_keepalive_interval().unwrap() <= Duration::from_secs(60));
}

#[tokio::test]
async fn bytes_pass_both_ways_whole_and_in_order() {
    let (mut origin, mut far) = pair().await;
    let data = bytes(1_000_000);
    let pieces: Vec<Bytes> = data.chunks(16_384).map(Bytes::copy_from_slice).collect();
    assert!(
        pieces.len() < tcp::WRITE_PIECES,
        "one write can take them all"
    );
    let echo = async {
        let mut seen = vec![0; data.len()];
        far.read_exact(&mut seen).await.unwrap();
        far.write_all(&seen).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let ours = async {
        write_all(&mut origin, &pieces).await;
        read_all(&mut origin).await
    };

    let ((), (back, end)) = soon(async { tokio::join!(echo, ours) }).await;

    assert!(back == data, "{} bytes came back", back.len());
    end.unwrap();
}

#[tokio::test]
async fn more_pieces_than_one_write_takes_are_written_in_turn() {
    let (mut origin, mut far) = pair().await;
    let data = bytes(tcp::WRITE_PIECES * 3);
    let pieces: Vec<Bytes> = data.chunks(1).map(Bytes::copy_from_slice).collect();

    assert_eq!(
        soon(poll_fn(|cx| origin.poll_write(cx, [].iter())))
            .await
            .unwrap(),
        0
    );
    write_all(&mut origin, &pieces).await;

    let mut seen = vec![0; data.len()];
    soon(far.read_exact(&mut seen)).await.unwrap();
    assert_eq!(seen, data);
}

#[tokio::test]
async fn after_our_fin_the_origin_can_go_on_and_after_its_own_so_can_we() {
    let (mut origin, mut far) = pair().await;

    write_all(&mut origin, &[Bytes::from_static(b"question")]).await;
    origin.finish().unwrap();
    let mut question = String::new();
    soon(far.read_to_string(&mut question)).await.unwrap();
    far.write_all(b"answer").await.unwrap();
    drop(far);
    assert_eq!(question, "question");
    let (answer, end) = read_all(&mut origin).await;
    assert_eq!(answer, b"answer");
    end.unwrap();

    let (mut origin, mut far) = pair().await;
    far.shutdown().await.unwrap();
    assert!(read(&mut origin, 10).await.unwrap().is_empty());
    assert!(
        read(&mut origin, 10).await.unwrap().is_empty(),
        "FIN stays read"
    );
    write_all(&mut origin, &[Bytes::from_static(b"late")]).await;
    origin.finish().unwrap();
    let mut late = String::new();
    soon(far.read_to_string(&mut late)).await.unwrap();
    assert_eq!(late, "late");
}

#[tokio::test]
async fn a_drop_after_both_have_ended_still_delivers_what_the_kernel_holds() {
    let (mut origin, mut far) = pair().await;
    far.shutdown().await.unwrap();
    assert!(read(&mut origin, 10).await.unwrap().is_empty());
    let written = fill(&mut origin).await;
    origin.finish().unwrap();
    assert!(
        origin.unsent().unwrap() > 64 * 1024,
        "the origin does not read"
    );

    drop(origin);

    let mut seen = Vec::new();
    soon(far.read_to_end(&mut seen)).await.unwrap();
    assert_eq!(seen.len(), written);
}

#[tokio::test]
async fn a_drop_before_both_have_ended_resets() {
    for our_fin_is_sent in [false, true] {
        let (mut origin, mut far) = pair().await;
        if our_fin_is_sent {
            origin.finish().unwrap();
            assert_eq!(soon(far.read(&mut [0])).await.unwrap(), 0);
        }

        drop(origin);

        let socket = socket2::SockRef::from(&far);
        soon(far.ready(tokio::io::Interest::ERROR)).await.unwrap();
        let error = socket.take_error().unwrap().unwrap();
        assert!(
            matches!(
                Errno::from_raw(error.raw_os_error().unwrap()),
                Errno::ECONNRESET | Errno::EPIPE
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn reset_sends_rst_even_when_both_have_ended_and_bytes_are_under_way() {
    let (mut origin, mut far) = pair().await;
    far.shutdown().await.unwrap();
    assert!(read(&mut origin, 10).await.unwrap().is_empty());
    let written = fill(&mut origin).await;
    origin.finish().unwrap();

    origin.reset();

    let mut seen = Vec::new();
    let end = soon(far.read_to_end(&mut seen)).await;
    assert_eq!(errno(end), Errno::ECONNRESET);
    assert!(seen.len() < written);
}

#[tokio::test]
async fn an_origin_that_resets_is_seen_by_its_reader_after_its_bytes() {
    let (mut origin, mut far) = pair().await;
    far.write_all(b"last words").await.unwrap();
    // A write without room behind it waits for the peer: all is in our kernel, then comes RST.
    soon(async {
        while origin_has(&origin) < 10 {
            tokio::task::yield_now().await
        }
    })
    .await;
    reset(far);

    let (words, end) = read_all(&mut origin).await;

    assert_eq!(words, b"last words");
    assert_eq!(errno(end), Errno::ECONNRESET);
    assert_eq!(
        errno(read(&mut origin, 10).await),
        Errno::ECONNRESET,
        "and stays so"
    );
}

/// Bytes that wait to be read.
fn origin_has(origin: &Origin) -> usize {
    let mut peeked = [std::mem::MaybeUninit::uninit(); 64];
    socket2::SockRef::from(origin)
        .peek(&mut peeked)
        .unwrap_or(0)
}

#[tokio::test]
async fn a_reset_met_by_a_write_does_not_become_a_fin_for_the_reader() {
    let (mut origin, mut far) = pair().await;
    far.write_all(b"last words").await.unwrap();
    soon(async {
        while origin_has(&origin) < 10 {
            tokio::task::yield_now().await
        }
    })
    .await;
    reset(far);

    let write = async {
        loop {
            let piece = Bytes::from_static(b"?");
            if let Err(error) = poll_fn(|cx| origin.poll_write(cx, std::iter::once(&piece))).await {
                break error;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(errno::<()>(Err(soon(write).await)), Errno::ECONNRESET);

    let (words, end) = read_all(&mut origin).await;
    assert_eq!(words, b"last words");
    assert_eq!(errno(end), Errno::ECONNRESET);
}

#[tokio::test]
async fn a_reset_is_learnt_of_while_nothing_is_read() {
    let mut failures = Failures::new().unwrap();
    let (mut origin, mut far) = pair().await;
    let (mut healthy, mut busy) = pair().await;
    failures.watch(&origin, 17).unwrap();
    failures.watch(&healthy, 18).unwrap();
    far.write_all(&bytes(10_000)).await.unwrap();
    busy.write_all(b"data is no failure").await.unwrap();
    busy.shutdown().await.unwrap();
    assert_eq!(read(&mut healthy, 100).await.unwrap().len(), 18);
    soon(async {
        while origin_has(&origin) < 64 {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert!(origin.failure().is_none());
    reset(far);

    let mut failed = Vec::new();
    soon(poll_fn(|cx| failures.poll_failed(cx, &mut failed)))
        .await
        .unwrap();

    assert_eq!(failed, [17]);
    assert_eq!(
        errno::<()>(Err(origin.failure().unwrap())),
        Errno::ECONNRESET
    );
    let (words, end) = read_all(&mut origin).await;
    assert_eq!(words.len(), 10_000);
    assert_eq!(
        errno(end),
        Errno::ECONNRESET,
        "although the failure was asked for"
    );
    assert!(healthy.failure().is_none());
}

#[tokio::test]
async fn more_failures_than_one_batch_are_all_told_once() {
    let mut failures = Failures::new().unwrap();
    let mut origins = Vec::new();
    for token in 0..100 {
        let (origin, far) = pair().await;
        failures.watch(&origin, token).unwrap();
        origins.push((origin, far));
    }
    let (origins, far): (Vec<_>, Vec<_>) = origins.into_iter().unzip();
    far.into_iter().for_each(reset);

    let mut failed = Vec::new();
    while failed.len() < origins.len() {
        soon(poll_fn(|cx| failures.poll_failed(cx, &mut failed)))
            .await
            .unwrap();
    }

    failed.sort_unstable();
    assert_eq!(failed, (0..100).collect::<Vec<u64>>());
    let mut again = Vec::new();
    let silent = tokio::select! {
        biased;
        _ = poll_fn(|cx| failures.poll_failed(cx, &mut again)) => false,
        () = tokio::task::yield_now() => true,
    };
    assert!(silent, "{again:?}");
}

#[tokio::test]
async fn unsent_falls_to_zero_once_the_origin_has_read_everything() {
    let (mut origin, mut far) = pair().await;
    assert_eq!(origin.unsent().unwrap(), 0);
    let written = fill(&mut origin).await;
    assert!((1..=written).contains(&origin.unsent().unwrap()));

    let mut seen = vec![0; written];
    soon(far.read_exact(&mut seen)).await.unwrap();

    soon(async {
        while origin.unsent().unwrap() > 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_reset_threw_away_was_never_acknowledged() {
    let (mut origin, far) = pair().await;
    let written = fill(&mut origin).await;
    let before = origin.unsent().unwrap();
    assert!(before > 0 && before <= written);

    reset(far);
    soon(async {
        while origin.failure().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let after = origin.unsent().unwrap();
    assert!(after > 0 && after <= before, "{after} of {before}");
}

#[tokio::test]
async fn an_origin_that_never_ends_is_left_to_the_kernel() {
    let (mut origin, mut far) = pair().await;
    let sent = bytes(100_000);
    write_all(&mut origin, &[sent.slice(..50_000)]).await;
    origin.finish().unwrap();
    assert!(origin.is_finished());

    origin.let_go();
    drop(origin);

    let mut got = Vec::new();
    soon(far.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, sent[..50_000]);
}

#[tokio::test]
async fn a_full_socket_wakes_its_writer_once_there_is_room() {
    let (mut origin, mut far) = pair().await;
    let written = fill(&mut origin).await;
    let more = Bytes::from_static(b"more");
    let write = poll_fn(|cx| origin.poll_write(cx, std::iter::once(&more)));
    let mut seen = vec![0; written + more.len()];

    let (taken, read) = soon(async { tokio::join!(write, far.read_exact(&mut seen)) }).await;

    assert_eq!(
        (taken.unwrap(), read.unwrap()),
        (more.len(), written + more.len())
    );
}

#[test]
fn errors_of_a_connect_have_their_names_on_the_wire() {
    for (errno, error) in [
        (Errno::ECONNREFUSED, OpenError::Refused),
        (Errno::ENETUNREACH, OpenError::NetworkUnreachable),
        (Errno::ENETDOWN, OpenError::NetworkUnreachable),
        (Errno::EHOSTUNREACH, OpenError::HostUnreachable),
        (Errno::ETIMEDOUT, OpenError::TimedOut),
        (Errno::EADDRNOTAVAIL, OpenError::Exhausted),
        (Errno::EMFILE, OpenError::Exhausted),
        (Errno::ENFILE, OpenError::Exhausted),
        (Errno::ENOMEM, OpenError::Exhausted),
        (Errno::EACCES, OpenError::Other(13)),
    ] {
        assert_eq!(open_error(&errno.into()), error, "{errno}");
    }
}
