//! What waits for delivery: which files there are, what they may take, and which is delivered when.

mod cut;
mod deliver;
pub mod file;
mod lane;

pub use cut::Record;
pub(crate) use cut::{Opaque, Run};
pub use file::Head;
pub(crate) use file::file_bytes;

use bytes::Bytes;
use deliver::Delivery;
use lane::Lane;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::{FlowId, Instant};

/// Files at once, whatever their size. Chosen: each is looked at when the daemon starts.
const FILES_MAX: usize = 10_000;
/// Files of one user at once: the same part as of the bytes.
const FILES_EACH: usize = FILES_MAX / 4;
/// The part of the spool's bytes that one user may have.
const SHARES: u64 = 4;
/// How long a file is kept that a person wants to be tried again though its time is over.
const TRIED_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Names a stored file; grows, and is never used twice while one is left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// Why a file is not tried any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dead {
    /// A part of it was damaged on the disk; what stands before that was delivered.
    Damaged,
    /// The server does not let us reach the destination.
    Denied,
    /// Its time was over.
    Overdue,
    /// The server cannot open it: it has another key by now, or so have we.
    Unsealable,
}

/// What is being done about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// It is being delivered.
    Delivering,
    /// It is kept for a person.
    Dead(Dead),
    /// It is being written.
    Storing,
    /// It waits for its turn.
    Waiting,
}

/// What the driver shall do with files, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolOrder {
    /// Seal and write it; answer by [`Client::handle_stored`](crate::Client::handle_stored). Times
    /// of the head are the driver's to fill in, from how long it is to be kept.
    Store {
        /// Its name.
        file: FileId,
        /// What it is.
        head: Head,
        /// What is in it.
        records: Vec<Record>,
        /// How long it is worth delivering.
        retain: Duration,
    },
    /// Read one of its records; answer by [`Client::handle_record`](crate::Client::handle_record).
    Read {
        /// Which.
        file: FileId,
        /// Which record, from 0.
        record: u32,
    },
    /// It was delivered, or a person has dropped it.
    Remove {
        /// Which.
        file: FileId,
    },
    /// It is kept for a person.
    Bury {
        /// Which.
        file: FileId,
        /// Why.
        why: Dead,
    },
    /// It is tried again.
    Revive {
        /// Which.
        file: FileId,
        /// As what it was buried.
        was: Dead,
    },
}

/// What became of the reading of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordRead {
    /// As it goes out on the wire.
    Whole(Bytes),
    /// It is damaged, and so is what follows.
    Damaged,
    /// The disk did not give it away this time.
    Failed,
}

/// A file that was found when the daemon started.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its name.
    pub file: FileId,
    /// What it is.
    pub head: Head,
    /// It was buried.
    pub dead: Option<Dead>,
    /// How long ago it was written, as far as that is known.
    pub age: Duration,
    /// How long it is still worth delivering.
    pub keep_for: Duration,
}

/// One file, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// Its name.
    pub file: FileId,
    /// What it is.
    pub head: Head,
    /// What is being done about it.
    pub state: FileState,
    /// How long ago it was stored.
    pub age: Duration,
    /// How long it is still worth delivering.
    pub keep_for: Duration,
    /// When its destination is tried again, if it failed before.
    pub retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct File {
    head: Head,
    state: FileState,
    /// When it came to be known here, and how old it was then.
    known: (Instant, Duration),
    expires_at: Instant,
}

/// All stored files.
#[derive(Debug)]
pub(crate) struct Spool {
    max_bytes: u64,
    files: BTreeMap<FileId, File>,
    next: FileId,
    used: u64,
    /// Bytes and files of each user.
    used_by: BTreeMap<u32, (u64, usize)>,
    /// Of each destination with files that wait.
    lanes: BTreeMap<SocketAddr, Lane>,
    /// Lanes that failed or found no room, by the time of their next attempt.
    paused: BTreeSet<(Instant, SocketAddr)>,
    /// Lanes with something to deliver at once, in the order of their turns.
    ready: VecDeque<SocketAddr>,
    deliveries: BTreeMap<FlowId, Delivery>,
    /// No file expires before that.
    next_expiry: Option<Instant>,
    orders: VecDeque<SpoolOrder>,
}

impl Spool {
    /// An empty spool of at most so many bytes.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            files: BTreeMap::new(),
            next: FileId(1),
            used: 0,
            used_by: BTreeMap::new(),
            lanes: BTreeMap::new(),
            paused: BTreeSet::new(),
            ready: VecDeque::new(),
            deliveries: BTreeMap::new(),
            next_expiry: None,
            orders: VecDeque::new(),
        }
    }

    /// What the directory holds, before anything else happens. It counts even beyond the bound.
    pub(crate) fn load(&mut self, found: &[Found], now: Instant) {
        for found in found {
            let state = found.dead.map_or(FileState::Waiting, FileState::Dead);
            self.next = self.next.max(FileId(found.file.0 + 1));
            let known = (now, found.age);
            self.insert(found.file, found.head, state, (known, now + found.keep_for));
            if state == FileState::Waiting {
                self.line_up(found.file);
            }
        }
    }

    pub(crate) fn poll_order(&mut self) -> Option<SpoolOrder> {
        self.orders.pop_front()
    }

    fn insert(
        &mut self,
        id: FileId,
        head: Head,
        state: FileState,
        (known, expires_at): ((Instant, Duration), Instant),
    ) {
        self.used += head.file_bytes;
        let (bytes, files) = self.used_by.entry(head.user).or_default();
        *bytes += head.file_bytes;
        *files += 1;
        self.files.insert(
            id,
            File {
                head,
                state,
                known,
                expires_at,
            },
        );
        self.note_expiry(expires_at);
    }

    fn note_expiry(&mut self, at: Instant) {
        self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
    }

    /// Forgets a file, and what it took.
    fn forget(&mut self, id: FileId) {
        self.leave_lane(id);
        let Some(file) = self.files.remove(&id) else {
            return;
        };
        self.used -= file.head.file_bytes;
        if let Some((bytes, files)) = self.used_by.get_mut(&file.head.user) {
            *bytes -= file.head.file_bytes;
            *files -= 1;
            if *files == 0 {
                self.used_by.remove(&file.head.user);
            }
        }
    }

    /// Whether this user may have a file of so many bytes more.
    fn has_room(&self, user: u32, bytes: u64) -> bool {
        let (used, files) = self.used_by.get(&user).copied().unwrap_or((0, 0));
        self.files.len() < FILES_MAX
            && files < FILES_EACH
            && self.used.saturating_add(bytes) <= self.max_bytes
            && used.saturating_add(bytes) <= self.max_bytes / SHARES
    }

    /// The name of the next file.
    pub(crate) const fn next_id(&self) -> FileId {
        self.next
    }

    /// Has a file written, if there is room; false if there is none.
    pub(crate) fn store(
        &mut self,
        head: Head,
        records: Vec<Record>,
        retain: Duration,
        now: Instant,
    ) -> bool {
        if !self.has_room(head.user, head.file_bytes) {
            return false;
        }
        let file = self.next;
        self.next = FileId(file.0 + 1);
        let known = (now, Duration::ZERO);
        self.insert(file, head, FileState::Storing, (known, now + retain));
        self.orders.push_back(SpoolOrder::Store {
            file,
            head,
            records,
            retain,
        });
        true
    }

    /// The driver has written it, or could not.
    pub(crate) fn stored(&mut self, id: FileId, is_written: bool, now: Instant) {
        let state = self.files.get(&id).map(|file| file.state);
        if state != Some(FileState::Storing) {
            return;
        }
        if is_written {
            self.line_up(id);
            self.wait_again(id, now);
        } else {
            self.forget(id);
        }
    }

    fn bury(&mut self, id: FileId, why: Dead) {
        self.leave_lane(id);
        if let Some(file) = self.files.get_mut(&id) {
            file.state = FileState::Dead(why);
            self.orders.push_back(SpoolOrder::Bury { file: id, why });
        }
    }

    /// What was delivered goes.
    fn remove(&mut self, id: FileId) {
        self.forget(id);
        self.orders.push_back(SpoolOrder::Remove { file: id });
    }

    /// The next deadline: an attempt, or the end of a file's time.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let attempt = self.paused.first().map(|(at, _)| *at);
        [attempt, self.next_expiry].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.wake_lanes(now);
        if self.next_expiry.is_none_or(|at| at > now) {
            return;
        }
        let waits = |file: &&File| file.state == FileState::Waiting;
        let overdue = self.files.iter().filter(|(_, file)| file.expires_at <= now);
        let overdue: Vec<_> = overdue
            .filter(|(_, file)| waits(file))
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            self.bury(id, Dead::Overdue);
        }
        let next = self.files.values().map(|file| file.expires_at);
        self.next_expiry = next.filter(|at| *at > now).min();
    }

    /// Up to `most` files with larger names than `after`.
    pub(crate) fn rows(&self, after: Option<FileId>, most: usize, now: Instant) -> Vec<FileRow> {
        let later = self.files.iter();
        let later = later.filter(|(id, _)| after.is_none_or(|after| **id > after));
        let rows = later.take(most).map(|(id, file)| FileRow {
            file: *id,
            head: file.head,
            state: file.state,
            age: file.known.1 + now.saturating_duration_since(file.known.0),
            keep_for: file.expires_at.saturating_duration_since(now),
            retry_at: self.rests_until(file.head.destination),
        });
        rows.collect()
    }

    /// Tries a file again at once, also one that was buried; false if there is none that waits.
    pub(crate) fn retry(&mut self, id: FileId, now: Instant) -> bool {
        let Some(file) = self.files.get_mut(&id) else {
            return false;
        };
        match file.state {
            FileState::Storing => return false,
            FileState::Delivering => {}
            FileState::Waiting => {
                let destination = file.head.destination;
                self.wake(destination);
            }
            FileState::Dead(was) => {
                file.state = FileState::Waiting;
                file.expires_at = file.expires_at.max(now + TRIED_AGAIN);
                let (at, destination) = (file.expires_at, file.head.destination);
                self.note_expiry(at);
                self.orders.push_back(SpoolOrder::Revive { file: id, was });
                self.line_up(id);
                self.wake(destination);
            }
        }
        true
    }

    /// Names of all files that a person may try again or drop.
    pub(crate) fn kept(&self) -> Vec<FileId> {
        let settled = self.files.iter();
        settled
            .filter(|(_, file)| file.state != FileState::Storing)
            .map(|(id, _)| *id)
            .collect()
    }

    /// How many files wait or are delivered, how many are kept for a person, and the bytes of all.
    pub(crate) fn totals(&self) -> (usize, usize, u64) {
        let is_dead = |file: &&File| matches!(file.state, FileState::Dead(_));
        let dead = self.files.values().filter(is_dead).count();
        (self.files.len() - dead, dead, self.used)
    }
}
