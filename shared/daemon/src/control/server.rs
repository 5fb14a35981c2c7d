//! The daemon's end of the control socket, polled by the daemon's own loop.

use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::peer::Rights;
use super::socket::{self, SocketFile};
use super::{
    ANSWER_BYTES_MAX, Access, BindError, CONNECTIONS_MAX, Caller, Command, ErrorReport,
    READERS_MAX, REQUEST_BYTES_MAX, STEP_TIMEOUT,
};

/// Callers taken in one go, served or turned away; the rest comes with the next turn of the loop.
pub(super) const ACCEPTS: usize = CONNECTIONS_MAX;
/// How long nothing is accepted after the system refused to, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens for commands and hands them over one by one; the file goes away with it.
///
/// Reading and writing of connections happens in tasks of their own, whose number is bounded, so
/// a caller who is slow, silent or gone costs the loop nothing.
#[derive(Debug)]
pub struct ControlServer<C> {
    listener: UnixListener,
    pub(super) rights: Rights,
    connections: JoinSet<Access>,
    /// Of `connections`, those of callers who read totals only; at most [`READERS_MAX`].
    readers: usize,
    /// Holds at most [`CONNECTIONS_MAX`]: each connection has one request.
    requests: mpsc::Receiver<Request<C>>,
    sender: mpsc::Sender<Request<C>>,
    pause: Option<Pin<Box<Sleep>>>,
    /// [`STEP_TIMEOUT`], shorter in tests.
    pub(super) step_timeout: Duration,
    _file: SocketFile,
    _command: PhantomData<C>,
}

impl<C: Command> ControlServer<C> {
    /// Makes the socket; must be called within a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    ///
    /// Another daemon answers there, something else has the name, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let rights = Rights::look_up();
        let (listener, file) = socket::listen(path, rights.socket_group())?;
        let listener = UnixListener::from_std(listener).map_err(|error| BindError::System {
            path: path.to_path_buf(),
            action: "register",
            error,
        })?;
        let (sender, requests) = mpsc::channel(CONNECTIONS_MAX);
        Ok(Self {
            listener,
            rights,
            connections: JoinSet::new(),
            readers: 0,
            requests,
            sender,
            pause: None,
            step_timeout: STEP_TIMEOUT,
            _file: file,
            _command: PhantomData,
        })
    }

    /// Looks the groups up again, on SIGHUP.
    pub fn reload(&mut self) {
        self.rights = Rights::look_up();
    }

    /// The next request that its caller may make. Cancel-safe.
    pub fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Request<C>> {
        self.poll_connections(cx);
        match self.requests.poll_recv(cx) {
            Poll::Ready(Some(request)) => Poll::Ready(request),
            // None cannot be: `sender` keeps the queue open.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Lets the answers that were given reach their callers, at the end of the daemon.
    pub async fn finish(mut self) {
        // Requests that nobody will answer are dropped, which tells their callers.
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            drop(request);
        }
        let all = async { while self.connections.join_next().await.is_some() {} };
        if timeout(Duration::from_millis(500), all).await.is_err() {
            tracing::debug!("callers of the control socket did not read their answers");
        }
    }

    /// Reaps what has ended and accepts what fits, but not for ever: whoever is turned away may
    /// come back faster than that takes.
    fn poll_connections(&mut self, cx: &mut Context<'_>) {
        for _ in 0..ACCEPTS {
            while let Poll::Ready(Some(ended)) = self.connections.poll_join_next(cx) {
                match ended {
                    Ok(Access::Totals) => self.readers -= 1,
                    Ok(Access::Everything) => {}
                    Err(error) => tracing::error!(%error, "a control connection panicked"),
                }
            }
            if self.connections.len() >= CONNECTIONS_MAX || self.poll_pause(cx).is_pending() {
                return;
            }
            match self.listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, _))) => self.accept(stream),
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "the control socket takes no connection for a second");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
                Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    fn accept(&mut self, stream: UnixStream) {
        let caller = match Caller::of(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "a caller of the control socket cannot be identified");
                return;
            }
        };
        let Some(access) = self.rights.access(&caller) else {
            tracing::info!(
                uid = caller.uid,
                "a caller without rights at the control socket"
            );
            let message = "this needs root, or membership in the group tund (totals) or in tund \
                           and tund-admin (everything)";
            turn_away(&stream, "permission_denied", message);
            return;
        };
        if access == Access::Totals {
            if self.readers >= READERS_MAX {
                turn_away(
                    &stream,
                    "busy",
                    "too many ask at once; try again in a moment",
                );
                return;
            }
            self.readers += 1;
        }
        let sender = self.sender.clone();
        let step_timeout = self.step_timeout;
        self.connections.spawn(async move {
            let served = serve(stream, caller, access, sender, step_timeout);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a control connection ended early");
            }
            access
        });
    }
}

/// One request and the way back to its caller.
///
/// A request that is dropped unanswered tells the caller so.
#[derive(Debug)]
pub struct Request<C> {
    /// What is asked.
    pub command: C,
    /// Who asks.
    pub caller: Caller,
    answer: oneshot::Sender<String>,
}

impl<C> Request<C> {
    /// Answers with a value; use `&()` where there is nothing to tell.
    pub fn answer(self, value: &impl Serialize) {
        let text = match serde_json::to_string(&Answer::Ok(value)) {
            Ok(text) if text.len() < ANSWER_BYTES_MAX => text,
            Ok(text) => {
                let message = format!(
                    "the answer has {} bytes, more than {ANSWER_BYTES_MAX}; this is a mistake in \
                     the daemon, please report it",
                    text.len()
                );
                error_text("answer_too_long", message)
            }
            Err(error) => error_text("internal", format!("the answer cannot be written: {error}")),
        };
        self.send(text);
    }

    /// Answers that it cannot be done.
    pub fn refuse(self, code: &str, message: impl Into<String>) {
        self.send(error_text(code, message));
    }

    fn send(self, text: String) {
        if self.answer.send(text).is_err() {
            tracing::debug!("the caller went away before the answer");
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer<'a, T> {
    Ok(&'a T),
    Error(ErrorReport),
}

fn error_text(code: &str, message: impl Into<String>) -> String {
    let report = ErrorReport {
        code: code.to_owned(),
        message: message.into(),
    };
    let answer: Answer<'_, ()> = Answer::Error(report);
    serde_json::to_string(&answer).unwrap_or_else(|_| {
        r#"{"error":{"code":"internal","message":"the error cannot be written"}}"#.to_owned()
    })
}

/// Tells a caller that is not served why. One short line always fits a new connection's buffer.
fn turn_away(stream: &UnixStream, code: &str, message: &str) {
    let line = error_text(code, message) + "\n";
    if let Err(error) = stream.try_write(line.as_bytes()) {
        tracing::debug!(%error, "a caller went away before it was turned away");
    }
}

/// Serves one connection from its request to its answer.
async fn serve<C: Command>(
    stream: UnixStream,
    caller: Caller,
    access: Access,
    requests: mpsc::Sender<Request<C>>,
    step_timeout: Duration,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let answer = match timeout(step_timeout, read_line(&mut stream)).await {
        Err(_) => error_text("timeout", "no request came within 5 s; send one JSON line"),
        Ok(line) => match parse::<C>(&line?, access) {
            Err(refusal) => refusal,
            Ok(command) => {
                let (answer, answered) = oneshot::channel();
                let request = Request {
                    command,
                    caller,
                    answer,
                };
                obtain(request, requests, answered, step_timeout).await
            }
        },
    };
    let write = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        stream.shutdown().await
    };
    timeout(step_timeout, write).await?
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(REQUEST_BYTES_MAX).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    stream.take(limit).read_until(b'\n', &mut line).await?;
    Ok(line)
}

pub(super) fn parse<C: Command>(line: &[u8], access: Access) -> Result<C, String> {
    if line.len() >= REQUEST_BYTES_MAX {
        let message = format!("the request has more than {REQUEST_BYTES_MAX} bytes");
        return Err(error_text("request_too_long", message));
    }
    let command: C = serde_json::from_slice(line).map_err(|error| {
        let message = format!(
            "the request is not understood: {error}; are the command and the daemon of the same \
             version?"
        );
        error_text("bad_request", message)
    })?;
    if command.access() > access {
        let message = "this needs root or membership in the group tund-admin; members of tund \
                       read totals only";
        return Err(error_text("permission_denied", message));
    }
    Ok(command)
}

async fn obtain<C>(
    request: Request<C>,
    requests: mpsc::Sender<Request<C>>,
    answered: oneshot::Receiver<String>,
    step_timeout: Duration,
) -> String {
    let ask = async {
        requests.send(request).await.ok()?;
        answered.await.ok()
    };
    match timeout(step_timeout, ask).await {
        Ok(Some(answer)) => answer,
        Ok(None) => error_text("stopping", "the daemon is stopping and gives no answer"),
        Err(_) => error_text("busy", "the daemon gave no answer within 5 s; see its log"),
    }
}
