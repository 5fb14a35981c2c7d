//! A transport connection between the daemons: lossless and in order while it lives, in pieces,
//! and it can be stalled, cut and closed each way by itself.

use super::socket::{narrow, wide};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use tund_session::wire::codec;
use tund_session::wire::frame::Frame;
use tund_session::{Instant, LinkId, Progress, Secret, SessionId};

/// How the transport connection looks from afar after one end has closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// What is under way arrives, then its end.
    Orderly,
    /// What is under way is lost; a reset arrives.
    Reset,
    /// What is under way may arrive; its end never does.
    Silent,
}

/// A frame with its place among those of its direction, from 0.
pub type Numbered = (u64, Frame);

/// Frames that never arrive, by the side that sent them.
pub type Lost = [Vec<Numbered>; 2];

/// One direction.
#[derive(Debug, Default)]
pub struct Lane {
    queue: BytesMut,
    /// Bytes handed to the kernel, ever.
    sent: u64,
    /// Bytes that the other end has read, ever.
    pub delivered: u64,
    /// Of these, so many are known at the sender.
    acked: u64,
    /// Each frame under way, with the place behind its last byte.
    frames: VecDeque<(u64, Numbered)>,
    /// Frames handed over, ever.
    count: u64,
    /// Where the first frame of `frames` begins.
    whole: u64,
    /// Nothing put here arrives any more.
    pub lost: bool,
    /// Nothing arrives for the time being.
    pub stalled: bool,
    /// The sender has closed it; its end arrives behind what is under way.
    pub ending: bool,
}

/// What a delivery brought.
#[derive(Debug)]
pub struct Delivered {
    /// The bytes, in one piece.
    pub bytes: Bytes,
    /// The frames that are whole with them.
    pub frames: Vec<Numbered>,
}

impl Lane {
    /// Bytes under way.
    pub fn under_way(&self) -> usize {
        self.queue.len()
    }

    /// Something could arrive.
    pub fn is_deliverable(&self) -> bool {
        !self.stalled && (!self.queue.is_empty() || self.ending)
    }

    /// The receiver has the beginning of a frame and not its end.
    pub fn is_mid_frame(&self) -> bool {
        self.delivered > self.whole
    }

    fn put(&mut self, bytes: Bytes) -> Vec<Numbered> {
        let mut rest = bytes.clone();
        let mut at = self.sent;
        self.sent += wide(bytes.len());
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = codec::decode(&mut rest) {
            at = self.sent - wide(rest.len());
            frames.push((self.count, frame));
            self.count += 1;
            if !self.lost {
                self.frames
                    .extend(frames.last().map(|last| (at, last.clone())));
            }
        }
        debug_assert_eq!(at, self.sent, "an outbox holds whole frames");
        if !self.lost {
            self.queue.extend_from_slice(&bytes);
        }
        frames
    }

    fn take(&mut self, count: usize) -> Delivered {
        let bytes = self.queue.split_to(count.min(self.queue.len())).freeze();
        self.delivered += wide(bytes.len());
        let mut frames = Vec::new();
        while let Some((end, _)) = self.frames.front()
            && *end <= self.delivered
        {
            self.whole = *end;
            frames.extend(self.frames.pop_front().map(|(_, frame)| frame));
        }
        Delivered { bytes, frames }
    }

    /// Loses what is under way and all that follows.
    fn lose(&mut self) -> Vec<Numbered> {
        self.lost = true;
        self.queue.clear();
        self.frames.drain(..).map(|(_, frame)| frame).collect()
    }
}

/// Both directions, and who holds its ends.
#[derive(Debug)]
pub struct Pipe {
    /// The drivers' handle, the same at both ends.
    pub id: LinkId,
    /// From either end.
    pub lanes: [Lane; 2],
    /// The end is open.
    pub open: [bool; 2],
    /// Which client session dialled.
    pub dialled_by: u64,
    /// When.
    pub born: Instant,
    /// It begins with HELLO, not with RESUME.
    pub is_hello: bool,
    /// The server session that took it.
    pub session: Option<SessionId>,
}

impl Pipe {
    /// A connection that was just made.
    pub fn new(id: LinkId, dialled_by: u64, born: Instant) -> Self {
        Self {
            id,
            lanes: [Lane::default(), Lane::default()],
            open: [true, true],
            dialled_by,
            born,
            is_hello: false,
            session: None,
        }
    }

    /// What the TLS exporter would yield at both ends.
    pub fn secret(&self) -> Secret {
        let mut bytes = [0x5e; 32];
        bytes[..8].copy_from_slice(&self.id.0.to_le_bytes());
        Secret::new(bytes)
    }

    /// Hands bytes of `side` to the network; the frames in them.
    pub fn put(&mut self, side: usize, bytes: Bytes) -> Vec<Numbered> {
        self.lanes[side].put(bytes)
    }

    /// Bytes that `side` has handed over and not seen acknowledged: what its kernel holds.
    pub fn unacknowledged(&self, side: usize) -> usize {
        narrow(self.lanes[side].sent - self.lanes[side].acked)
    }

    /// Takes bytes off the network for the end opposite of `side`.
    pub fn take(&mut self, side: usize, count: usize) -> Delivered {
        let delivered = self.lanes[side].take(count);
        self.acknowledge();
        delivered
    }

    /// Lets acknowledgements travel where the way back is free.
    pub fn acknowledge(&mut self) {
        for side in [0, 1] {
            let back = &self.lanes[1 - side];
            if !back.stalled && !back.lost {
                self.lanes[side].acked = self.lanes[side].delivered;
            }
        }
    }

    /// What `TCP_INFO` says at `side`.
    pub fn progress(&self, side: usize) -> Progress {
        Progress {
            bytes_acked: self.lanes[side].acked,
            bytes_received: self.lanes[1 - side].delivered,
            ..Progress::default()
        }
    }

    /// Cuts what goes out from `side`; the frames that are lost.
    pub fn cut(&mut self, side: usize) -> Vec<Numbered> {
        self.lanes[side].lose()
    }

    /// The driver of `side` closes its end; the frames that are lost.
    pub fn close(&mut self, side: usize, farewell: Farewell) -> Lost {
        let mut lost = [Vec::new(), Vec::new()];
        if !self.open[side] {
            return lost;
        }
        self.open[side] = false;
        lost[1 - side] = self.lanes[1 - side].lose();
        if self.lanes[side].lost {
            return lost;
        }
        match farewell {
            Farewell::Orderly => self.lanes[side].ending = true,
            Farewell::Reset => {
                lost[side] = self.lanes[side].lose();
                self.lanes[side].lost = false;
                self.lanes[side].ending = true;
            }
            Farewell::Silent => {}
        }
        lost
    }

    /// Nothing can come of it any more.
    pub fn is_over(&self) -> bool {
        !self.open[0] && !self.open[1]
    }
}
