//! Connections without a listed key: a flood, and what became of it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::gettid;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::link::{ClientTls, Link, LinkError, SocketOptions};

use crate::lab::Namespace;

/// The server turns everybody away within 10 s; beyond this it has not.
const PATIENCE: Duration = Duration::from_secs(15);
/// The beginning of a TLS record that announces a ClientHello and never goes on.
const HALF_A_HANDSHAKE: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
/// Idle connections opened in one go.
const BURST: usize = 50;

/// What became of a flood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Told that their key is not listed.
    pub refused: u64,
    /// Closed or reset without a word, or not accepted at all.
    pub closed: u64,
    /// Still there when the server's patience had to be over.
    pub kept: u64,
}

/// A flood from one namespace, in a thread that runs when nobody else wants to (nice 19).
#[derive(Debug)]
pub struct Strangers {
    thread: JoinHandle<Outcome>,
}

impl Strangers {
    /// Starts `unlisted` handshakes with keys that nobody lists at `per_second`, beside `idle`
    /// connections of which every third sends random bytes and every third half a handshake.
    pub fn start(
        from: &Namespace,
        server: (SocketAddr, PublicKey),
        (unlisted, per_second): (u32, u32),
        idle: usize,
    ) -> Self {
        let thread = from.spawn("strangers", move || {
            be_nice();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(flood(server, (unlisted, per_second), idle))
        });
        Self { thread }
    }

    /// Whether all of them are through.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the last of them.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.thread.join().expect("strangers do not panic")
    }
}

/// The priority of this thread alone.
fn be_nice() {
    let mut renice = std::process::Command::new("renice");
    renice.args(["-n", "19", "-p", &gettid().to_string()]);
    let output = renice.output().expect("renice is installed");
    assert!(output.status.success(), "{output:?}");
}

#[derive(Clone, Copy)]
enum Fate {
    Refused,
    Closed,
    Kept,
}

async fn flood(
    (server, key): (SocketAddr, PublicKey),
    (unlisted, per_second): (u32, u32),
    idle: usize,
) -> Outcome {
    let mut all = JoinSet::new();
    let mut clock = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut left = idle;
    for _ in 0..unlisted {
        clock.tick().await;
        all.spawn(async move {
            let fate = tokio::time::timeout(PATIENCE, knock(server, key)).await;
            fate.unwrap_or(Fate::Kept)
        });
        for _ in 0..BURST.min(left) {
            let kind = left;
            left -= 1;
            all.spawn(async move {
                let fate = tokio::time::timeout(PATIENCE, loiter(server, kind)).await;
                fate.map_or(Fate::Kept, |_either_way| Fate::Closed)
            });
        }
    }
    let mut outcome = Outcome::default();
    while let Some(fate) = all.join_next().await {
        match fate.expect("a stranger does not panic") {
            Fate::Refused => outcome.refused += 1,
            Fate::Closed => outcome.closed += 1,
            Fate::Kept => outcome.kept += 1,
        }
    }
    outcome
}

/// A handshake with a key of its own.
async fn knock(server: SocketAddr, server_key: PublicKey) -> Fate {
    let key = PrivateKey::generate().expect("the kernel gives randomness");
    let attempt = async {
        let tls = ClientTls::new(&key, vec![server_key]).map_err(LinkError::Tls)?;
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(server), kind, Some(Protocol::TCP))?;
        let mut link = Link::connect(socket, server, &tls, &SocketOptions::default())?;
        poll_fn(|cx| link.poll_handshake(cx)).await?;
        // The proof of its key goes out with this.
        poll_fn(|cx| link.poll_flush(cx)).await?;
        while poll_fn(|cx| link.poll_recv(cx, 1024)).await?.is_some() {}
        Ok::<(), LinkError>(())
    };
    match attempt.await {
        Err(LinkError::KeyNotListed(_)) => Fate::Refused,
        Ok(()) | Err(_) => Fate::Closed,
    }
}

/// A connection that gets nowhere, until the server closes it.
async fn loiter(server: SocketAddr, kind: usize) -> io::Result<()> {
    let socket = if server.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    let mut stream = socket.connect(server).await?;
    match kind % 3 {
        0 => {
            let rubbish: Vec<u8> = (0..999_u32)
                .map(|place| (place * 7 % 251).to_le_bytes()[0])
                .collect();
            stream.write_all(&rubbish).await?;
        }
        1 => stream.write_all(&HALF_A_HANDSHAKE).await?,
        _ => {}
    }
    tokio::io::copy(&mut stream, &mut tokio::io::sink())
        .await
        .map(drop)
}
