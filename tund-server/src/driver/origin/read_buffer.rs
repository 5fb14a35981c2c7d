//! Where all origins of a loop are read into: one buffer, without a copy where it matters.

use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::unconstrained;

/// Most bytes that one read takes. Chosen: enough that the system call is cheap beside the copy
/// out of the kernel, and far below what the allocator maps anew each time (`keep_some_heap`).
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// From here on a read keeps the buffer it landed in; what is shorter is copied out of it. What a
/// flow holds thus occupies at most a third more than its length: thousands of stalled flows stay
/// near what the session counts. A copy of less than this costs microseconds.
const KEEP_BYTES: usize = READ_BYTES / 4 * 3;

/// A buffer for reads, shared by all sockets of one loop, so that an idle one has none.
#[derive(Debug)]
pub(crate) struct ReadBuffer {
    /// Empty between two reads, with room for [`READ_BYTES`].
    chunk: BytesMut,
}

impl ReadBuffer {
    /// A buffer for one loop.
    pub(crate) fn new() -> Self {
        Self {
            chunk: BytesMut::with_capacity(READ_BYTES),
        }
    }

    /// Reads once, at most `max` bytes. No bytes mean the end of the stream.
    ///
    /// With `max` 0 nothing is read and nobody is woken.
    pub(crate) fn poll_read(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<io::Result<Bytes>> {
        if max == 0 {
            return Poll::Pending;
        }
        let mut room = (&mut self.chunk).limit(max.min(READ_BYTES));
        // Unconstrained: a loop that polls thousands of sockets in one turn is no task that
        // starves others, and with tokio's budget used up it would be woken for nothing.
        let read = ready!(pin!(unconstrained(from.read_buf(&mut room))).poll(cx));
        Poll::Ready(read.map(|_| self.take()))
    }

    fn take(&mut self) -> Bytes {
        if self.chunk.len() < KEEP_BYTES {
            let bytes = Bytes::copy_from_slice(&self.chunk);
            self.chunk.clear();
            return bytes;
        }
        std::mem::replace(&mut self.chunk, BytesMut::with_capacity(READ_BYTES)).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn read(buffer: &mut ReadBuffer, mut from: &[u8], max: usize) -> Poll<Bytes> {
        let mut cx = Context::from_waker(Waker::noop());
        buffer
            .poll_read(&mut from, &mut cx, max)
            .map(|read| read.unwrap())
    }

    #[test]
    fn a_read_takes_no_more_than_it_may() {
        let mut buffer = ReadBuffer::new();
        let data = vec![7; 3 * READ_BYTES];

        for (max, taken) in [
            (1, 1),
            (5_000, 5_000),
            (40_000, 40_000),
            (200_000, READ_BYTES),
        ] {
            assert_eq!(
                read(&mut buffer, &data, max).map(|bytes| bytes.len()),
                Poll::Ready(taken)
            );
        }
        assert_eq!(read(&mut buffer, &data, 0), Poll::Pending);
        assert_eq!(read(&mut buffer, &[], 10), Poll::Ready(Bytes::new()));
    }

    #[test]
    fn short_reads_leave_the_buffer_in_its_place_and_long_ones_take_it_along() {
        let mut buffer = ReadBuffer::new();
        let data: Vec<u8> = (0..READ_BYTES)
            .map(|index| (index % 251).to_le_bytes()[0])
            .collect();
        let place = buffer.chunk.as_ptr();

        let short = read(&mut buffer, &data, KEEP_BYTES - 1).map(|bytes| bytes.to_vec());
        assert_eq!(short, Poll::Ready(data[..KEEP_BYTES - 1].to_vec()));
        assert_eq!(buffer.chunk.as_ptr(), place);

        let Poll::Ready(long) = read(&mut buffer, &data, KEEP_BYTES) else {
            panic!("is ready")
        };
        assert_eq!(long.as_ptr(), place, "not copied");
        assert_eq!(long, data[..KEEP_BYTES]);
        assert_ne!(buffer.chunk.as_ptr(), place);
        assert_eq!(
            (buffer.chunk.len(), buffer.chunk.capacity()),
            (0, READ_BYTES)
        );
    }
}
