//! What is left of a connection when its grace is over: kept until it is on the disk, then reset.

use super::{Client, ClientEvent};
use crate::account::{End, EndedBy, FlowAccount, HowEnded};
use crate::flow_table::ClientFlow;
use crate::netstack::ConnectionId;
use crate::policy::Store;
use crate::spool::{FileId, Head, Opaque, Run, file_bytes};
use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tund_session::{FlowId, Instant, Offset, Remainder, SessionId};

/// Why bytes that a policy wants stored were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// The disk did not take them.
    Failed,
    /// The spool is full, or the user's share of it.
    Full,
    /// They are no run of messages, as the policy's framing has it.
    Opaque,
}

/// Connections A whose bytes are being stored; each has been a flow, so they are as bounded.
#[derive(Debug, Default)]
pub(super) struct Storing {
    left: BTreeMap<ConnectionId, Left>,
    jobs: FxHashMap<FileId, ConnectionId>,
    /// Names for flows of sessions that never had one.
    nameless: u64,
}

#[derive(Debug)]
struct Left {
    destination: SocketAddr,
    user: u32,
    store: Store,
    session: SessionId,
    flow: FlowId,
    run: Run,
    fin: bool,
    /// Bytes that are being written, and bytes that were.
    under_way: u64,
    stored: u64,
    /// Told when it is known what was lost.
    account: FlowAccount,
}

/// A flow that has ended, of which something is to be stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    /// Its session, if that has had an id.
    pub(super) session: Option<SessionId>,
    pub(super) flow: FlowId,
    pub(super) end: End,
    /// Bytes that the session had for its connection.
    pub(super) dropped: u64,
}

impl Storing {
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.left.len().max(self.jobs.len())
    }

    /// The application has sent FIN behind all that it sent.
    pub(super) fn finish(&mut self, connection: ConnectionId) {
        if let Some(left) = self.left.get_mut(&connection) {
            left.fin = true;
        }
    }
}

impl Client {
    /// The name of a flow of this session for later; a session without a name lends none.
    fn name(&mut self, session: Option<SessionId>, flow: FlowId) -> (SessionId, FlowId) {
        if let Some(session) = session {
            return (session, flow);
        }
        self.storing.nameless += 1;
        let instance = self.config.session.instance;
        (SessionId(instance.0), FlowId(self.storing.nameless))
    }

    /// A flow is over, and what the origin has not acknowledged of it is to be stored.
    pub(super) fn keep(
        &mut self,
        known: &ClientFlow,
        gone: Gone,
        remainder: Remainder,
        now: Instant,
    ) {
        let mut lost = self.in_rings(known);
        let mut counted = *known;
        counted.count_rings(lost);
        if gone.end.0 != EndedBy::Application {
            lost.down += gone.dropped;
        }
        let mut account = FlowAccount::new(gone.flow, &counted, gone.end, lost, now);
        let Some(store) = known.store.filter(|_| !self.is_undeliverable) else {
            account.lost.up += u64::try_from(remainder.len()).unwrap_or(u64::MAX);
            self.expired.1 += account.lost.up;
            self.netstack.reset(known.connection);
            self.account(account);
            return;
        };
        // What is in the ring is counted as it is taken, with what the application adds to it.
        account.up_bytes = known.up_bytes;
        let (session, flow) = self.name(gone.session, gone.flow);
        let mut run = Run::new(store.framing, remainder.start);
        remainder
            .bytes
            .into_iter()
            .for_each(|piece| run.push(piece));
        let left = Left {
            destination: known.destination,
            user: known.whose(),
            store,
            session,
            flow,
            run,
            fin: remainder.fin,
            under_way: 0,
            stored: 0,
            account,
        };
        // What the application may send already is still taken; it may send no more.
        self.netstack.set_intake(known.connection, 0);
        self.storing.left.insert(known.connection, left);
        self.store_more(known.connection, now);
    }

    /// Has stored what has come meanwhile; when nothing is left, the connection is reset.
    fn store_more(&mut self, connection: ConnectionId, now: Instant) {
        let Some(left) = self.storing.left.get_mut(&connection) else {
            return;
        };
        left.fin |= self.netstack.has_finished(connection);
        let mut piece = BytesMut::new();
        self.netstack.recv(connection, usize::MAX, |bytes| {
            piece.extend_from_slice(bytes)
        });
        left.account.up_bytes += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        left.run.push(piece.freeze());
        let before = left.run.len();
        let records = match left.run.cut(left.fin) {
            Ok(records) => records,
            Err(Opaque) => {
                left.under_way = before - left.run.len();
                return self.end_storing(connection, Some(NotStored::Opaque));
            }
        };
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return self.end_storing(connection, None);
        };
        let head = Head {
            session: left.session,
            flow: left.flow,
            user: left.user,
            framing: left.store.framing,
            destination: left.destination,
            stored_at: 0,
            keep_until: 0,
            start: first.start,
            end: last.end,
            records: u32::try_from(records.len()).unwrap_or(u32::MAX),
            file_bytes: file_bytes(&records),
        };
        left.under_way = head.end.since(head.start);
        let file = self.spool.next_id();
        if self.spool.store(head, records, left.store.retain, now) {
            self.storing.jobs.insert(file, connection);
        } else {
            self.end_storing(connection, Some(NotStored::Full));
        }
    }

    /// The driver has written a file to the disk, for good, or could not.
    pub fn handle_stored(&mut self, file: FileId, is_written: bool, now: Instant) {
        self.spool.stored(file, is_written, now);
        let Some(connection) = self.storing.jobs.remove(&file) else {
            return;
        };
        if !is_written {
            self.end_storing(connection, Some(NotStored::Failed));
            return;
        }
        if let Some(left) = self.storing.left.get_mut(&connection) {
            left.stored += std::mem::take(&mut left.under_way);
        }
        self.store_more(connection, now);
    }

    /// The daemon can wait no longer for the disk: what is not on it is lost.
    pub fn give_up_storing(&mut self) {
        let left: Vec<_> = self.storing.left.keys().copied().collect();
        for connection in left {
            self.end_storing(connection, Some(NotStored::Failed));
        }
    }

    fn end_storing(&mut self, connection: ConnectionId, why: Option<NotStored>) {
        let Some(left) = self.storing.left.remove(&connection) else {
            return;
        };
        self.netstack.reset(connection);
        let lost_bytes = left.under_way + left.run.len();
        let mut account = left.account;
        account.lost.up = lost_bytes;
        account.stored_bytes = left.stored;
        self.account(account);
        self.events.push_back(ClientEvent::Stored {
            destination: left.destination,
            stored_bytes: left.stored,
            lost_bytes,
            why,
        });
    }

    /// A connection that was accepted ahead of its flow has waited for too long.
    pub(super) fn keep_unasked(&mut self, known: &ClientFlow, now: Instant) {
        let remainder = Remainder {
            start: Offset(0),
            bytes: Vec::<Bytes>::new(),
            fin: false,
        };
        let gone = Gone {
            session: None,
            flow: FlowId(0),
            end: (EndedBy::Client, HowEnded::Expired),
            dropped: 0,
        };
        self.keep(known, gone, remainder, now);
    }
}
