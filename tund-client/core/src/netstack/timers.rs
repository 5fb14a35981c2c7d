//! Deadlines of connections, in a heap from which outdated ones are cleaned out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tund_session::Instant;

use super::event::ConnectionId;
use super::table::Table;

/// The heap may hold so many outdated deadlines beyond one per connection.
const SLACK: usize = 64;

/// At most `2 × connections + SLACK` deadlines; `Connection::armed` names the one that counts.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, ConnectionId)>>,
}

impl Timers {
    /// Sees to it that the connection at `index` is due at `at`, or earlier.
    ///
    /// A deadline that moves back stays where it is: the connection is asked once too early, and
    /// says then when it is really due. So a busy connection costs one entry a second, not one
    /// per packet.
    pub(crate) fn arm(&mut self, table: &mut Table, index: u32, at: Instant) {
        let id = table.id(index);
        let Some(connection) = table.at(index) else {
            return;
        };
        if connection.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        connection.armed = Some(at);
        self.heap.push(Reverse((at, id)));
        if self.heap.len() > 2 * table.len() + SLACK {
            self.heap
                .retain(|Reverse((at, id))| is_current(table, *at, *id));
        }
    }

    /// The next deadline; it may be an outdated one.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Takes out a connection that is due at `now`.
    pub(crate) fn pop(&mut self, table: &mut Table, now: Instant) -> Option<u32> {
        loop {
            let Reverse((at, id)) = self.heap.peek().copied()?;
            if at > now {
                return None;
            }
            self.heap.pop();
            if is_current(table, at, id) {
                if let Some(connection) = table.get(id) {
                    connection.armed = None;
                }
                return Some(id.index);
            }
        }
    }
}

fn is_current(table: &mut Table, at: Instant, id: ConnectionId) -> bool {
    table
        .get(id)
        .is_some_and(|connection| connection.armed == Some(at))
}
