//! A client that is listed and says what it likes: every frame is made by hand.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Runtime;
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::link::{ClientTls, Link, LinkError, SocketOptions};
use tund_session::wire::codec;
use tund_session::wire::frame::{
    Control, Frame, Hello, Limits, OnExpiry, Open, Protocol as Carried, Welcome,
};
use tund_session::{FlowId, Instance, Offset, Secret};

use crate::lab::{Namespace, wait};

/// For everything that the server answers at once.
const SOON: Duration = Duration::from_secs(10);
/// Bytes given to the link at once.
const PIECE: usize = 64 * 1024;

/// One link to the server, and no session behind it: nothing is answered unless told to.
#[derive(Debug)]
pub struct Rogue {
    runtime: Runtime,
    link: Link,
    secret: Secret,
    received: BytesMut,
    /// Of the last control message said.
    said: u64,
}

impl Rogue {
    /// Completes a handshake with the server.
    ///
    /// # Errors
    /// What the link says.
    pub fn connect(
        from: &Namespace,
        (server, server_key): (SocketAddr, PublicKey),
        key: &PrivateKey,
    ) -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let socket = from.enter(|| {
            let kind = Type::STREAM.nonblocking().cloexec();
            Socket::new(Domain::for_address(server), kind, Some(Protocol::TCP))
        })?;
        let tls = ClientTls::new(key, vec![server_key]).map_err(LinkError::Tls)?;
        let (link, established) = runtime.block_on(async {
            let mut link = Link::connect(socket, server, &tls, &SocketOptions::default())?;
            let established = poll_fn(|cx| link.poll_handshake(cx)).await?;
            Ok::<_, LinkError>((link, established))
        })?;
        Ok(Self {
            runtime,
            link,
            secret: established.secret,
            received: BytesMut::new(),
            said: 0,
        })
    }

    /// Asks for a session and confirms it; panics unless the server gives one.
    #[track_caller]
    pub fn greet(&mut self) -> Welcome {
        self.greet_with(0)
    }

    /// The same, with capabilities on offer.
    #[track_caller]
    pub fn greet_with(&mut self, capabilities: u64) -> Welcome {
        let hello = Hello {
            versions: (1, 1),
            capabilities,
            instance: Instance([0x66; 16]),
            limits: Limits {
                max_flows: 100_000,
                buffer_bytes: 64 << 20,
                floor_bytes: 512,
            },
        };
        self.send(&Frame::Hello(hello));
        let answer = self.receive();
        let Some(Frame::Welcome(welcome)) = answer else {
            panic!("HELLO was answered by {answer:?}");
        };
        self.send(&Frame::Ping { nonce: 1 });
        welcome
    }

    /// What only the two ends of the link know.
    pub fn secret(&self) -> Secret {
        self.secret.clone()
    }

    /// Its end of the link.
    pub fn local_address(&self) -> SocketAddr {
        self.link.local_addr().expect("an open socket has a name")
    }

    /// The next control message.
    pub fn say(&mut self, message: Control) {
        self.said += 1;
        let number = self.said;
        self.send(&Frame::Control { number, message });
    }

    /// Asks for a flow to `destination`.
    pub fn open(&mut self, flow: u64, destination: SocketAddr) {
        self.said += 1;
        let frame = Self::open_frame(self.said, flow, destination);
        self.send(&frame);
    }

    /// An OPEN of that number in the lane.
    pub fn open_frame(number: u64, flow: u64, destination: SocketAddr) -> Frame {
        let source = match destination {
            SocketAddr::V4(_) => SocketAddr::from(([10, 111, 0, 2], 40_000)),
            SocketAddr::V6(_) => SocketAddr::from(([0xfd11, 0, 0, 0, 0, 0, 0, 2], 40_000)),
        };
        let message = Control::Open(Open {
            flow: FlowId(flow),
            protocol: Carried::Tcp,
            source,
            destination,
            limit: Offset(1 << 20),
            grace: Duration::from_secs(600),
            on_expiry: OnExpiry::Reset,
            hand_off: None,
        });
        Frame::Control { number, message }
    }

    /// Sends a frame; true while the link takes it.
    pub fn send(&mut self, frame: &Frame) -> bool {
        let mut bytes = Vec::new();
        codec::encode(frame, &mut bytes);
        self.send_bytes(&bytes)
    }

    /// Sends any bytes; false once the link has ended, or takes nothing for some seconds.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        let Self { runtime, link, .. } = self;
        runtime.block_on(async {
            for piece in bytes.chunks(PIECE) {
                if link.send([piece].into_iter()).is_err() {
                    return false;
                }
                let flushed = tokio::time::timeout(SOON, poll_fn(|cx| link.poll_flush(cx))).await;
                if !matches!(flushed, Ok(Ok(()))) {
                    return false;
                }
            }
            true
        })
    }

    /// The next frame; none once the link has ended. Panics when neither comes.
    #[track_caller]
    pub fn receive(&mut self) -> Option<Frame> {
        loop {
            let mut bytes = self.received.clone().freeze();
            let before = bytes.len();
            if let Some(frame) = codec::decode(&mut bytes).expect("the server speaks our protocol")
            {
                drop(self.received.split_to(before - bytes.len()));
                return Some(frame);
            }
            match self.read() {
                Read::Bytes(bytes) => self.received.extend_from_slice(&bytes),
                Read::Ended => return None,
                Read::Silence => panic!("the server says nothing for {SOON:?}"),
            }
        }
    }

    /// Reads and forgets everything until the server ends the link; panics when it does not.
    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) {
        let start = wait::now();
        while wait::now() - start < limit {
            if matches!(self.read(), Read::Ended) {
                return;
            }
        }
        panic!("the server keeps the link");
    }

    fn read(&mut self) -> Read {
        let Self { runtime, link, .. } = self;
        runtime.block_on(async {
            let next = poll_fn(|cx| match link.poll_recv(cx, PIECE) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(Some(bytes))) => Poll::Ready(Read::Bytes(bytes)),
                Poll::Ready(Ok(None) | Err(_)) => Poll::Ready(Read::Ended),
            });
            tokio::time::timeout(SOON, next)
                .await
                .unwrap_or(Read::Silence)
        })
    }
}

enum Read {
    Bytes(Bytes),
    Ended,
    Silence,
}
