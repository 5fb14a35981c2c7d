//! What a driver keeps about one session: its local sockets, its links, when it was heard.

use super::socket::{Socket, wide};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tund_session::wire::frame::FlowCode;
use tund_session::{Delivery, FlowId, Instant, LinkId, Offset, Role, Session};

/// One flow's local socket as its driver sees it. Work is done on an edge only, as by a driver
/// that sleeps in between: an event that is missing leaves the flow standing.
#[derive(Debug, Default)]
pub struct Local {
    /// Which flow of the world.
    pub unit: usize,
    /// The origin has answered.
    pub accepted: bool,
    /// FlowWritable, or the socket is readable.
    pub take_due: bool,
    /// FlowReadable, or the socket is writable or has drained.
    pub give_due: bool,
    /// The socket's FIN or reset was passed on.
    fin_told: bool,
    fin_given: bool,
    reset_told: bool,
    /// The session has reset the socket.
    pub over: bool,
    /// There was something to be taken and no room for it.
    pub blocked: bool,
    /// Bytes that the session knows to have left the ring; credit counts from here.
    pub drained: u64,
    /// Bytes that the session knows to have been taken by the socket.
    pub released: u64,
    /// When the driver last saw the socket take something.
    pub progress_at: Instant,
    /// Its messages are kept for delivery.
    pub stored: bool,
    /// Of those, what the reader's TCP has acknowledged, as far as the session was told; FIN
    /// counts.
    pub acknowledged: u64,
    /// Client: what its reader has not taken is not released, and FIN is not before that.
    pub handed: bool,
    fin_shown: bool,
}

/// All about one session at one end.
#[derive(Debug)]
pub struct Books {
    /// Which client session it belongs to.
    pub uid: u64,
    /// Flows not forgotten.
    pub locals: BTreeMap<FlowId, Local>,
    /// Mappings not forgotten, and which of the world they are.
    pub mappings: BTreeMap<FlowId, usize>,
    /// Transport connections open here.
    pub links: BTreeSet<LinkId>,
    /// When the last frame came.
    pub heard_at: Instant,
    /// When the session last told of a flow that has expired.
    pub expired_at: Option<Instant>,
    /// The owner has ended it.
    pub closing: bool,
}

impl Books {
    /// Those of a new session.
    pub fn new(uid: u64, now: Instant) -> Self {
        Self {
            uid,
            locals: BTreeMap::new(),
            mappings: BTreeMap::new(),
            links: BTreeSet::new(),
            heard_at: now,
            expired_at: None,
            closing: false,
        }
    }
}

impl Local {
    /// A flow of the world that has just been opened.
    pub fn new(unit: usize, stored: bool) -> Self {
        Self {
            unit,
            stored,
            ..Self::default()
        }
    }

    /// The same of one whose application's bytes are held, should it be lost.
    pub fn handed(self, handed: bool) -> Self {
        Self { handed, ..self }
    }

    /// FIN was passed on to the socket.
    pub fn fin_given(&self) -> bool {
        self.fin_given
    }

    /// The socket's FIN or reset was passed on.
    pub fn end_told(&self) -> (bool, bool) {
        (self.fin_told, self.reset_told)
    }

    /// The local connection has ended both ways, as far as this daemon is concerned.
    pub fn is_complete(&self) -> bool {
        self.over || self.reset_told || (self.fin_told && self.fin_given)
    }

    /// The origin has answered.
    pub fn accept(&mut self) {
        self.accepted = true;
        self.take_due = true;
        self.give_due = true;
    }

    /// Takes from the socket what the session wants; at most `chunk` bytes. True if anything
    /// happened.
    pub fn take(
        &mut self,
        (id, session): (FlowId, &mut Session),
        socket: &mut Socket,
        chunk: u64,
        now: Instant,
    ) -> bool {
        let due = std::mem::take(&mut self.take_due) | std::mem::take(&mut socket.readable_edge);
        if !due || self.reset_told || self.over {
            return false;
        }
        if !self.accepted {
            if socket.app_rst {
                self.over = true;
                session.abort(id, FlowCode::Cancelled, now);
            }
            return socket.app_rst;
        }
        let intake = session.intake(id);
        let count = socket.inbound().min(intake).min(chunk);
        if count > 0 {
            session.write(id, socket.take(count), now);
        }
        let mut acted = count > 0;
        self.take_due = socket.inbound() > 0 && session.intake(id) > 0;
        if socket.app_rst && socket.inbound() > 0 {
            session.fail(id);
        }
        self.blocked = socket.inbound() > 0 && session.intake(id) == 0;
        if socket.inbound() == 0 {
            if socket.app_rst {
                self.reset_told = true;
                // A driver asks its kernel once more.
                self.acknowledge((id, session), socket, now);
                session.reset(id, FlowCode::PeerReset, now);
                acted = true;
            } else if socket.app_fin && !self.fin_told {
                self.fin_told = true;
                session.finish(id, now);
                acted = true;
            }
        }
        acted
    }

    /// Gives the socket what has arrived; at most `chunk` bytes. True if anything happened.
    ///
    /// # Errors
    ///
    /// Bytes that are not those that were written at the other end.
    pub fn give(
        &mut self,
        (id, session): (FlowId, &mut Session),
        socket: &mut Socket,
        chunk: usize,
        now: Instant,
    ) -> Result<bool, String> {
        let due = std::mem::take(&mut self.give_due) | std::mem::take(&mut socket.writable_edge);
        if !due || self.over {
            return Ok(false);
        }
        let mut acted = self.drain((id, session), socket, now);
        acted |= self.acknowledge((id, session), socket, now);
        self.check_messages(id, session, socket)?;
        let mut left = chunk;
        while left > 0 {
            let Some(piece) = session.readable(id).next() else {
                break;
            };
            let piece: Bytes = piece.slice(..piece.len().min(left));
            let count = socket.put(&piece)?;
            if count == 0 {
                break;
            }
            let count_len = piece.len().min(super::socket::narrow(count));
            left -= count_len;
            session.release(id, count_len, now);
            self.released += wide(count_len);
            self.progress_at = now;
            acted = true;
        }
        if session.readable(id).next().is_some() {
            self.give_due = socket.room() > 0;
        }
        acted |= self.drain((id, session), socket, now);
        acted |= self.end((id, session), socket, now)?;
        // A driver asks its kernel again and again.
        self.give_due |= !self.handed && session.awaits_release(id);
        Ok(acted)
    }

    /// The reader's TCP has all that was written in earlier turns, as long as there is a reader.
    fn acknowledge(
        &mut self,
        (id, session): (FlowId, &mut Session),
        socket: &Socket,
        now: Instant,
    ) -> bool {
        let acknowledged = session.taken(id).0.min(socket.there());
        if self.handed || !session.awaits_release(id) || acknowledged <= self.acknowledged {
            return false;
        }
        self.acknowledged = acknowledged;
        session.settle_to(id, Offset(acknowledged), now);
        true
    }

    /// Only whole messages may be handed on, unless the writer ends in the middle of one.
    fn check_messages(&self, id: FlowId, session: &Session, socket: &Socket) -> Result<(), String> {
        let last = session.readable(id).last().and_then(|piece| piece.last());
        let is_cut =
            self.stored && session.role() == Role::Server && last.is_some_and(|b| *b != b'\n');
        if is_cut && !session.has_all(id) && !socket.reads_opaque() {
            return Err("a part of a message is handed on".to_owned());
        }
        Ok(())
    }

    /// Tells the session what has left the ring.
    fn drain(
        &mut self,
        (id, session): (FlowId, &mut Session),
        socket: &Socket,
        now: Instant,
    ) -> bool {
        let gone = self.released - socket.unread().min(self.released);
        if gone <= self.drained {
            return false;
        }
        if session.role() == Role::Client {
            session.drained(id, gone - self.drained, now);
        }
        session.drain_progress(id, now);
        self.drained = gone;
        self.progress_at = now;
        true
    }

    /// Carries out what comes behind the bytes.
    fn end(
        &mut self,
        (id, session): (FlowId, &mut Session),
        socket: &mut Socket,
        now: Instant,
    ) -> Result<bool, String> {
        let mut acted = false;
        loop {
            match session.delivery(id) {
                Delivery::Fin if session.readable(id).next().is_none() => {
                    if self.fin_given {
                        return Err("FIN a second time".to_owned());
                    }
                    socket.shut_down();
                    acted |= !self.fin_shown;
                    self.fin_shown = true;
                    if self.handed && socket.unread() > 0 {
                        return Ok(acted);
                    }
                    self.fin_given = true;
                    session.end_delivered(id, now);
                    acted = true;
                }
                Delivery::Reset if socket.unread() == 0 => {
                    socket.reset();
                    socket.discard_inbound();
                    self.over = true;
                    session.end_delivered(id, now);
                    return Ok(true);
                }
                Delivery::Fin | Delivery::Reset | Delivery::Open | Delivery::Ended => {
                    return Ok(acted);
                }
            }
        }
    }
}
