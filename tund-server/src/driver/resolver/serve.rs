//! What is done for guests: their questions are taken by UDP and TCP, and their answers sent.

use super::ask::Asker;
use super::bounded::Bounded;
use super::guests::{Admitted, Guest, Guests, Over};
use super::{MESSAGE_BYTES, lock};
use bytes::{Buf as _, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tund_daemon::clock;
use tund_daemon::telemetry::Tally;
use tund_server_core::resolver::{QUESTION_BYTES, Question, Verdict, judge};
use tund_session::SessionId;

/// Questions under way, of one session and of all: a socket each, with what its answer takes.
const QUESTIONS: (usize, usize) = (64, 512);
/// TCP connections, of one session and of all.
const CONNECTIONS: (usize, usize) = (64, 1024);
/// Questions of one TCP connection under way; then the next is read later.
const PIPELINED: usize = 16;
/// A TCP connection without a question for so long is closed (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(30);
/// Nobody takes longer for an answer who wants it.
const WRITE: Duration = Duration::from_secs(10);
/// How often it is looked whether what was lost is to be told.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What all who serve share.
#[derive(Debug)]
pub(super) struct Service {
    guests: Arc<Guests>,
    asker: Asker,
    questions: Bounded,
    connections: Bounded,
    lost: Mutex<Tally>,
}

impl Service {
    pub(super) fn new(guests: Arc<Guests>, asker: Asker) -> Self {
        Self {
            guests,
            asker,
            questions: Bounded::new(QUESTIONS.0, QUESTIONS.1),
            connections: Bounded::new(CONNECTIONS.0, CONNECTIONS.1),
            lost: Mutex::new(Tally::new()),
        }
    }

    /// Counts something that a guest does not get.
    fn lose(&self, what: &'static str) {
        lock(&self.lost).add(what);
        self.tell_lost();
    }

    fn tell_lost(&self) {
        let summary = lock(&self.lost).poll_summary(clock::now());
        if let Some(summary) = summary {
            tracing::warn!(%summary, "the resolver left unanswered in the last minute");
        }
    }

    /// Tells what was counted after it was told last.
    pub(super) async fn tell(&self) {
        loop {
            sleep(TELL_EVERY).await;
            self.tell_lost();
        }
    }

    /// The answer to a guest's question, which he has written as `message`; none if he is gone.
    async fn answer(
        &self,
        over: Over,
        guest: Guest,
        question: &Question,
        message: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let raw = self.asker.ask(over, question, message).await;
        let policy = self.guests.policy(guest)?;
        Some(raw.map_or_else(
            || question.unanswered(),
            |raw| question.answer(&raw, |ip| policy.may_learn(ip)),
        ))
    }

    /// Waits until one more question of that session is allowed.
    async fn await_allowance(&self, session: SessionId) -> io::Result<()> {
        loop {
            let now = clock::now();
            let taken = self.guests.take(session, now);
            match taken.ok_or(io::ErrorKind::ConnectionAborted)? {
                Ok(()) => return Ok(()),
                Err(due) => sleep(due.saturating_duration_since(now)).await,
            }
        }
    }
}

/// Answers datagrams.
pub(super) async fn datagrams(
    udp: io::Result<std::net::UdpSocket>,
    service: Arc<Service>,
) -> io::Result<()> {
    let udp = Arc::new(UdpSocket::from_std(udp?)?);
    let mut buffer = vec![0; MESSAGE_BYTES];
    let mut asking = JoinSet::new();
    loop {
        while asking.try_join_next().is_some() {}
        let (len, from) = match udp.recv_from(&mut buffer).await {
            // An ICMP message about an answer to a socket that is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            other => other?,
        };
        let guest = match service.guests.admit((Over::Udp, from), clock::now()) {
            Admitted::Guest(guest) => guest,
            Admitted::TooMany => {
                service.lose("question beyond the rate of its session");
                continue;
            }
            Admitted::Stranger => continue,
        };
        let message = buffer.get(..len).unwrap_or_default();
        match judge(message) {
            Verdict::Drop => {}
            Verdict::Answer(answer) => {
                let _lost = udp.try_send_to(&answer, from).is_err();
            }
            Verdict::Ask(question) => {
                // Beyond the bound it is lost, as on a network, and asked again.
                let Some(room) = service.questions.take(guest.session) else {
                    service.lose("question beyond those under way");
                    continue;
                };
                let (udp, service) = (Arc::clone(&udp), Arc::clone(&service));
                let message = message.to_vec();
                asking.spawn(async move {
                    let answer = service.answer(Over::Udp, guest, &question, message);
                    if let Some(answer) = answer.await {
                        let _lost = udp.try_send_to(&answer, from).is_err();
                    }
                    drop(room);
                });
            }
        }
    }
}

/// Takes connections.
pub(super) async fn connections(
    tcp: io::Result<std::net::TcpListener>,
    service: Arc<Service>,
) -> io::Result<()> {
    /// After an error that says that the process has no room.
    const PAUSE: Duration = Duration::from_millis(100);
    let tcp = TcpListener::from_std(tcp?)?;
    let mut serving = JoinSet::new();
    loop {
        while serving.try_join_next().is_some() {}
        let (stream, from) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "the resolver took no connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        serving.spawn(connection(stream, from, Arc::clone(&service)));
    }
}

async fn connection(mut stream: TcpStream, from: SocketAddr, service: Arc<Service>) {
    let Some(guest) = service.guests.at((Over::Tcp, from)) else {
        return;
    };
    let Some(_room) = service.connections.take(guest.session) else {
        service.lose("TCP connection beyond those of its session");
        return;
    };
    let (reader, writer) = stream.split();
    // What is written waits in the tasks that keep room for it.
    let (answers, to_write) = mpsc::channel(1);
    // It ends when its client ends it; an error says no more than that.
    let _over = tokio::try_join!(
        read_questions(reader, guest, &service, answers),
        write_answers(writer, to_write),
    );
}

/// Answers the questions of a connection, each when its answer is there (RFC 7766 §6.2.1.1). What
/// must wait stays where it is: nothing is taken for which there is no room.
async fn read_questions(
    mut reader: impl AsyncRead + Unpin,
    guest: Guest,
    service: &Arc<Service>,
    answers: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut asking = JoinSet::new();
    let mut buffer = BytesMut::new();
    loop {
        let waits = timeout(IDLE, wait_for_message(&mut reader, &mut buffer)).await;
        let Some(len) = waits.map_err(io::Error::other)?? else {
            break;
        };
        service.await_allowance(guest.session).await?;
        while asking.try_join_next().is_some() {}
        if asking.len() >= PIPELINED {
            asking.join_next().await;
        }
        let room = service.questions.wait(guest.session).await;
        buffer.advance(LENGTH_BYTES);
        let message = buffer.split_to(len).to_vec();
        match judge(&message) {
            Verdict::Drop => {}
            Verdict::Answer(answer) => {
                drop(room);
                answers.send(answer).await.map_err(io::Error::other)?;
            }
            Verdict::Ask(question) => {
                let (service, answers) = (Arc::clone(service), answers.clone());
                asking.spawn(async move {
                    let answer = service.answer(Over::Tcp, guest, &question, message);
                    if let Some(answer) = answer.await {
                        let _over = answers.send(answer).await.is_err();
                    }
                    drop(room);
                });
            }
        }
    }
    while asking.join_next().await.is_some() {}
    Ok(())
}

const LENGTH_BYTES: usize = 2;

/// Waits until the next message is there, and says how long it is; none at the end.
async fn wait_for_message(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<Option<usize>> {
    const MOST: usize = LENGTH_BYTES + QUESTION_BYTES;
    loop {
        let length = buffer.first_chunk::<LENGTH_BYTES>();
        if let Some(len) = length.map(|bytes| usize::from(u16::from_be_bytes(*bytes))) {
            if len > QUESTION_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if buffer.len() >= LENGTH_BYTES + len {
                return Ok(Some(len));
            }
        }
        buffer.reserve(MOST.saturating_sub(buffer.len()));
        if reader.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn write_answers(
    mut writer: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&len.to_be_bytes()[..], &answer].concat();
        let written = timeout(WRITE, writer.write_all(&framed)).await;
        written.map_err(io::Error::other)??;
    }
    Ok(())
}
