//! The spool's directory: files that are there whole or not at all, and what they are named.
//!
//! A file is written under a name that does not count, synced, and given its own name then. What
//! is kept for a person has the reason in its name, so that a full disk cannot prevent it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::unistd::geteuid;
use tund_client_core::FileId;
use tund_client_core::spool::file::{
    HEAD_BYTES, RECORD_HEAD_BYTES, behind_record_head, wire_record,
};
use tund_client_core::spool::{Dead, Head};
use tund_daemon::journal::StateDirectory;

/// What a file is called behind the dot while it waits.
const WAITING: &str = "spool";
/// What it is called while it is being written.
const UNFINISHED: &str = "tmp";
/// Reasons for which a file is kept for a person, as names.
const REASONS: [(Dead, &str); 4] = [
    (Dead::Damaged, "damaged"),
    (Dead::Denied, "denied"),
    (Dead::Overdue, "overdue"),
    (Dead::Unsealable, "unsealable"),
];

/// What the directory held.
#[derive(Debug)]
pub(super) struct Listing {
    /// Stored files, by their names.
    pub(super) files: Vec<(FileId, Head, Option<Dead>)>,
    /// Files that cannot be read, and why.
    pub(super) unreadable: Vec<(PathBuf, String)>,
    /// Files that were being written when the daemon ended: nobody was told that they are stored.
    pub(super) unfinished: usize,
}

/// The directory, and the file that is being read.
#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    reading: Option<(FileId, u32, File)>,
}

impl Disk {
    /// Takes the directory over; makes it if there is none. It is this daemon's as long as what
    /// comes back with it lives.
    ///
    /// # Errors
    ///
    /// When it cannot be made or read, or is not ours alone.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Listing, StateDirectory)> {
        if let Ok(found) = fs::metadata(directory)
            && found.uid() != geteuid().as_raw()
        {
            let whose = format!("it belongs to user {}, who could read it", found.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, whose));
        }
        let lock = StateDirectory::open(directory)?;
        let disk = Self::at(directory);
        let listing = disk.list()?;
        Ok((disk, listing, lock))
    }

    /// A directory that was taken over before.
    pub(super) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            reading: None,
        }
    }

    fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing {
            files: Vec::new(),
            unreadable: Vec::new(),
            unfinished: 0,
        };
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let Some((file, state)) = read_name(&path) else {
                continue;
            };
            let dead = match state {
                State::Unfinished => {
                    fs::remove_file(&path)?;
                    listing.unfinished += 1;
                    continue;
                }
                State::Waiting => None,
                State::Dead(why) => Some(why),
            };
            match read_head(&path) {
                Ok(head) => listing.files.push((file, head, dead)),
                Err(error) => listing.unreadable.push((path, error.to_string())),
            }
        }
        listing.files.sort_unstable_by_key(|(file, ..)| *file);
        Ok(listing)
    }

    fn path(&self, file: FileId, extension: &str) -> PathBuf {
        self.directory.join(format!("{:016}.{extension}", file.0))
    }

    /// Writes a file, for good.
    pub(super) fn store(
        &self,
        file: FileId,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let unfinished = self.path(file, UNFINISHED);
        let result = self.write(&unfinished, write).and_then(|()| {
            fs::rename(&unfinished, self.path(file, WAITING))?;
            self.sync()
        });
        if result.is_err() {
            // Half a file is of no use, and of a whole one nobody may say that it is stored.
            for extension in [UNFINISHED, WAITING] {
                drop(fs::remove_file(self.path(file, extension)));
            }
        }
        result
    }

    fn write(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut buffered = io::BufWriter::new(new);
        write(&mut buffered)?;
        buffered.into_inner()?.sync_all()
    }

    /// Names that were given or taken are so after a crash too.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    /// A record of a file that waits, as it goes out on the wire; none if it is damaged.
    pub(super) fn record(&mut self, file: FileId, record: u32) -> io::Result<Option<Bytes>> {
        let mut opened = match self.reading.take() {
            Some((of, next, opened)) if of == file && next == record => opened,
            Some(_) | None => {
                let mut opened = File::open(self.path(file, WAITING))?;
                opened.seek(SeekFrom::Start(wide(HEAD_BYTES)))?;
                for _ in 0..record {
                    let Some((_, behind)) = read_record_head(&mut opened)? else {
                        return Ok(None);
                    };
                    opened.seek_relative(i64::try_from(behind).unwrap_or(i64::MAX))?;
                }
                opened
            }
        };
        let Some((head, behind)) = read_record_head(&mut opened)? else {
            return Ok(None);
        };
        let mut whole = head.to_vec();
        whole.resize(RECORD_HEAD_BYTES + behind, 0);
        let rest = whole.get_mut(RECORD_HEAD_BYTES..).unwrap_or_default();
        if !fill(&mut opened, rest)? {
            return Ok(None);
        }
        let Some(wire) = wire_record(&whole).map(<[u8]>::len) else {
            return Ok(None);
        };
        whole.truncate(wire);
        self.reading = Some((file, record + 1, opened));
        Ok(Some(whole.into()))
    }

    /// Removes a file, whatever it is called.
    pub(super) fn remove(&mut self, file: FileId) -> io::Result<()> {
        self.forget(file);
        for extension in std::iter::once(WAITING).chain(REASONS.map(|(_, name)| name)) {
            match fs::remove_file(self.path(file, extension)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.sync()
    }

    /// Keeps a file for a person.
    pub(super) fn bury(&mut self, file: FileId, why: Dead) -> io::Result<()> {
        self.forget(file);
        fs::rename(self.path(file, WAITING), self.path(file, reason(why)))?;
        self.sync()
    }

    /// Has a file wait again.
    pub(super) fn revive(&self, file: FileId, was: Dead) -> io::Result<()> {
        fs::rename(self.path(file, reason(was)), self.path(file, WAITING))?;
        self.sync()
    }

    fn forget(&mut self, file: FileId) {
        self.reading.take_if(|(of, ..)| *of == file);
    }
}

/// What a name says.
enum State {
    Dead(Dead),
    Unfinished,
    Waiting,
}

fn read_name(path: &Path) -> Option<(FileId, State)> {
    let (number, extension) = path.file_name()?.to_str()?.split_once('.')?;
    let file = FileId(number.parse().ok().filter(|_| number.len() == 16)?);
    let state = match extension {
        UNFINISHED => State::Unfinished,
        WAITING => State::Waiting,
        other => State::Dead(REASONS.iter().find(|(_, name)| *name == other)?.0),
    };
    Some((file, state))
}

/// The name of a reason.
pub(super) fn reason(why: Dead) -> &'static str {
    let named = REASONS.iter().find(|(reason, _)| *reason == why);
    named.map_or("damaged", |(_, name)| name)
}

fn read_head(path: &Path) -> io::Result<Head> {
    let mut bytes = [0; HEAD_BYTES];
    let mut opened = File::open(path)?;
    if !fill(&mut opened, &mut bytes)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Head::decode(&bytes).ok_or_else(|| io::Error::other("its head is damaged"))
}

/// The head of the next record, and how many bytes follow it.
fn read_record_head(opened: &mut File) -> io::Result<Option<([u8; RECORD_HEAD_BYTES], usize)>> {
    let mut head = [0; RECORD_HEAD_BYTES];
    if !fill(opened, &mut head)? {
        return Ok(None);
    }
    Ok(behind_record_head(&head).map(|behind| (head, behind)))
}

/// Reads so many bytes; false if the file ends before.
fn fill(opened: &mut File, bytes: &mut [u8]) -> io::Result<bool> {
    match opened.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use tund_client_core::spool::Record;
    use tund_client_core::spool::file::{SEAL_BYTES, encode_record, file_bytes};
    use tund_session::wire::frame::Framing;
    use tund_session::{FlowId, Offset, SessionId};

    fn records() -> Vec<Record> {
        let texts: [&'static [u8]; 3] = [b"one\n", b"two and more\n", b"three\n"];
        let mut start = Offset(100);
        let record = |(index, text): (usize, &&'static [u8])| {
            let end = start.plus(wide(text.len()));
            let record = Record {
                start,
                end,
                fin: index == 2,
                bytes: Bytes::from_static(text),
            };
            start = end;
            record
        };
        texts.iter().enumerate().map(record).collect()
    }

    fn head() -> Head {
        let records = records();
        Head {
            session: SessionId([5; 16]),
            flow: FlowId(6),
            user: 1000,
            framing: Framing::Line,
            destination: "10.0.0.9:514".parse().unwrap(),
            stored_at: 1_700_000_000,
            keep_until: 1_700_259_200,
            start: records[0].start,
            end: records[2].end,
            records: 3,
            file_bytes: file_bytes(&records),
        }
    }

    /// Sealed bytes that only have the right length.
    fn write(out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&head().encode())?;
        for record in records() {
            let sealed = vec![7; record.bytes.len() + SEAL_BYTES];
            out.write_all(&encode_record(&record, &sealed))?;
        }
        Ok(())
    }

    /// As the next daemon finds it.
    fn opened(directory: &Path) -> (Disk, Listing) {
        let (disk, listing, _lock) = Disk::open(&directory.join("spool")).unwrap();
        (disk, listing)
    }

    fn names(directory: &Path) -> Vec<String> {
        let all = fs::read_dir(directory.join("spool")).unwrap();
        let mut names: Vec<_> = all
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_stored_is_found_again_and_read_in_any_order() {
        let place = tempfile::tempdir().unwrap();
        let (disk, listing) = opened(place.path());
        assert!(listing.files.is_empty());
        disk.store(FileId(7), write).unwrap();

        let (mut disk, listing) = opened(place.path());

        assert_eq!(listing.files, [(FileId(7), head(), None)]);
        for record in [0, 1, 2, 1, 0, 2] {
            let bytes = disk.record(FileId(7), record).unwrap().unwrap();
            let expected = &records()[usize::try_from(record).unwrap()];
            assert_eq!(bytes[..8], expected.start.0.to_be_bytes());
            assert_eq!(
                bytes.len(),
                RECORD_HEAD_BYTES + expected.bytes.len() + SEAL_BYTES
            );
        }
        assert_eq!(disk.record(FileId(7), 3).unwrap(), None);
    }

    #[test]
    fn only_its_owner_may_look_at_it_and_one_daemon_has_it() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("spool");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();

        let (disk, _, _lock) = Disk::open(&directory).unwrap();
        let second = Disk::open(&directory).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
        disk.store(FileId(1), write).unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&disk.path(FileId(1), WAITING)), 0o600);
    }

    #[test]
    fn a_file_that_was_cut_off_anywhere_has_its_records_up_to_there() {
        let place = tempfile::tempdir().unwrap();
        let (disk, _) = opened(place.path());
        disk.store(FileId(1), write).unwrap();
        let path = disk.path(FileId(1), WAITING);
        let whole = fs::read(&path).unwrap();
        let mut ends = vec![HEAD_BYTES];
        for record in records() {
            let extra = RECORD_HEAD_BYTES + SEAL_BYTES + 4;
            ends.push(ends.last().unwrap() + record.bytes.len() + extra);
        }
        assert_eq!(ends[3], whole.len());

        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (mut disk, listing) = opened(place.path());
            if length < HEAD_BYTES {
                assert_eq!(listing.unreadable.len(), 1, "{length}");
                continue;
            }
            let kept = ends.iter().filter(|end| **end <= length).count() - 1;
            let read = (0..3).map(|record| disk.record(FileId(1), record).unwrap());
            let is_there: Vec<_> = read.map(|bytes| bytes.is_some()).collect();
            let expected: Vec<_> = (0..3).map(|record| record < kept).collect();
            assert_eq!(is_there, expected, "{length}");
        }
    }

    #[test]
    fn a_file_whose_writing_fails_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (disk, _) = opened(place.path());

        let failed = disk.store(FileId(1), |out| {
            out.write_all(b"some")?;
            Err(io::ErrorKind::StorageFull.into())
        });

        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(names(place.path()), Vec::<String>::new());
    }

    #[test]
    fn what_was_not_written_to_its_end_goes_at_the_next_start() {
        let place = tempfile::tempdir().unwrap();
        let (disk, _) = opened(place.path());
        disk.store(FileId(1), write).unwrap();
        // As a daemon leaves it that is killed before it gives the name.
        let whole = fs::read(disk.path(FileId(1), WAITING)).unwrap();
        for (number, length) in [(2, 0), (3, HEAD_BYTES + 5), (4, whole.len())] {
            fs::write(disk.path(FileId(number), UNFINISHED), &whole[..length]).unwrap();
        }
        fs::write(place.path().join("spool/notes.txt"), "not ours").unwrap();

        let (_, listing) = opened(place.path());

        assert_eq!(listing.unfinished, 3);
        assert_eq!(listing.files.len(), 1);
        let left = names(place.path());
        assert_eq!(left, ["0000000000000001.spool", "notes.txt"]);
    }

    #[test]
    fn what_is_kept_for_a_person_says_why_in_its_name_and_can_come_back() {
        let place = tempfile::tempdir().unwrap();
        let (mut disk, _) = opened(place.path());
        for (why, name) in REASONS {
            disk.store(FileId(1), write).unwrap();

            disk.bury(FileId(1), why).unwrap();

            assert_eq!(names(place.path()), [format!("0000000000000001.{name}")]);
            let (_, listing) = opened(place.path());
            assert_eq!(listing.files, [(FileId(1), head(), Some(why))]);
            disk.revive(FileId(1), why).unwrap();
            let (_, listing) = opened(place.path());
            assert_eq!(listing.files, [(FileId(1), head(), None)]);
            disk.bury(FileId(1), why).unwrap();
            disk.remove(FileId(1)).unwrap();
            assert_eq!(names(place.path()), Vec::<String>::new());
        }
        disk.remove(FileId(1)).unwrap();
    }
}
