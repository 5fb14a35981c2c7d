//! Where received bytes land: one buffer that grows with the traffic and is given back when idle.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What an idle link reads with; holds a PONG, an ACK, a small request.
const SMALL_BYTES: usize = 4 << 10;
/// What a busy link reads with: several full records in one call. Measured: 256 and 512 KiB gain
/// nothing (they leave the processor's cache), and whoever keeps a part would pin more.
const LARGE_BYTES: usize = 128 << 10;
/// How steeply the one becomes the other.
const GROWTH: usize = 4;

/// Received bytes that are not handed on.
///
/// What is handed on shares the buffer's memory: whoever keeps a few bytes of it for long keeps
/// all of it, at most [`LARGE_BYTES`], and should copy them.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) bytes: BytesMut,
    /// How much the next read makes room for.
    wanted: usize,
    /// Bytes read since the socket was last found empty.
    since_empty: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            wanted: SMALL_BYTES,
            since_empty: 0,
        }
    }

    /// Reads once what the socket has; 0 at its end.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.room() < self.wanted / 2 {
            // All in all as much as is wanted: asking for that on top of what is held would make
            // the buffer twice as large.
            let more = self
                .wanted
                .saturating_sub(self.bytes.len())
                .max(SMALL_BYTES);
            self.bytes.reserve(more);
        }
        let room = self.room();
        let Poll::Ready(read) = pin!(stream.read_buf(&mut self.bytes)).poll(cx) else {
            self.settle();
            return Poll::Pending;
        };
        let count = read?;
        self.since_empty = self.since_empty.saturating_add(count);
        if count == room {
            self.wanted = (self.wanted * GROWTH).min(LARGE_BYTES);
        }
        Poll::Ready(Ok(count))
    }

    /// Reads and forgets, up to the end of the stream or `limit` bytes.
    pub(super) fn poll_discard(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
        limit: &mut usize,
    ) -> Poll<io::Result<()>> {
        while *limit > 0 {
            self.bytes.clear();
            let count = ready!(self.poll_fill(stream, cx))?;
            if count == 0 {
                break;
            }
            *limit = limit.saturating_sub(count);
        }
        Poll::Ready(Ok(()))
    }

    fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// The socket is empty: shrinks after little traffic, and keeps no memory for none.
    fn settle(&mut self) {
        if self.since_empty < self.wanted / 2 {
            self.wanted = (self.wanted / GROWTH).max(SMALL_BYTES);
        }
        self.since_empty = 0;
        if self.bytes.is_empty() && self.wanted == SMALL_BYTES {
            self.bytes = BytesMut::new();
        }
    }
}
