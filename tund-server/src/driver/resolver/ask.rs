//! Questions on their way to name servers: by a fresh socket and identifier each, so that nobody
//! can answer who has not seen the question.

use super::guests::Over;
use super::name_servers::NameServers;
use super::{MESSAGE_BYTES, lock};
use crate::driver::random;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tund_daemon::clock;
use tund_server_core::resolver::{Question, Silence, Tries};

/// A name server has so long for its answer, before the next is asked, or it again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Puts questions to name servers.
#[derive(Debug)]
pub(super) struct Asker(Mutex<Servers>);

#[derive(Debug)]
struct Servers {
    listed: NameServers,
    /// Who is silent by the one protocol may answer by the other.
    by_tcp: Silence,
    by_udp: Silence,
}

impl Servers {
    fn silence(&mut self, over: Over) -> &mut Silence {
        match over {
            Over::Tcp => &mut self.by_tcp,
            Over::Udp => &mut self.by_udp,
        }
    }
}

impl Asker {
    pub(super) fn new(listed: NameServers) -> Self {
        Self(Mutex::new(Servers {
            listed,
            by_tcp: Silence::default(),
            by_udp: Silence::default(),
        }))
    }

    /// What name servers answer to a question that a client has written as `message`; nothing if none
    /// does.
    pub(super) async fn ask(
        &self,
        over: Over,
        question: &Question,
        mut message: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let mut tries = self.tries(over);
        while let Some(server) = tries.next_server() {
            let id = random();
            Question::send_as(&mut message, id);
            let is_answer = |answer: &[u8]| question.is_answered_by(answer, id);
            let asked = async {
                match over {
                    Over::Tcp => by_tcp(server, &message).await,
                    Over::Udp => by_udp(server, &message, is_answer).await,
                }
            };
            let answer = match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) if is_answer(&answer) => Some(answer),
                Ok(Ok(_)) => {
                    tracing::debug!("a name server answered something else");
                    None
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a name server was not reached");
                    None
                }
                Err(_) => {
                    tracing::debug!("a name server did not answer");
                    None
                }
            };
            self.note(over, server, answer.is_some());
            if let Some(answer) = answer {
                tries.answered(server, answer);
            }
        }
        tries.into_answer()
    }

    fn tries(&self, over: Over) -> Tries {
        let mut servers = lock(&self.0);
        let listed = servers.listed.list();
        servers.silence(over).tries(&listed, clock::now())
    }

    fn note(&self, over: Over, server: SocketAddr, has_answered: bool) {
        let mut servers = lock(&self.0);
        servers
            .silence(over)
            .note(server, has_answered, clock::now());
    }
}

async fn by_udp(
    server: SocketAddr,
    message: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From nobody else is anything heard.
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut answer = vec![0; MESSAGE_BYTES];
    loop {
        let len = socket.recv(&mut answer).await?;
        if answer.get(..len).is_some_and(&is_answer) {
            answer.truncate(len);
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&len.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
