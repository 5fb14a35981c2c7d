//! An append-only file of small records that a crash at any byte leaves readable.

mod directory;
mod scan;
#[cfg(test)]
mod tests;

pub use directory::StateDirectory;

use scan::{HEADER, MAGIC, frame, scan};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The longest record: chosen; a longer length is taken for damage.
pub const RECORD_MAX: usize = 16 << 20;
/// Records beyond twice what is alive that a file may have before it is rewritten: chosen.
const SLACK: u64 = 1024;
/// Bytes beyond twice what it had when it was last rewritten that a file may have: chosen. It is read
/// whole at the next start.
const SLACK_BYTES: u64 = 16 << 20;

/// What a file held when it was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// Every record that is whole, in the order in which they were appended.
    pub records: Vec<Vec<u8>>,
    /// Records in the middle whose checksum is wrong.
    pub damaged: usize,
    /// Bytes at the end that are no whole record: a write that a crash cut short. Cut off.
    pub torn_bytes: u64,
    /// The file was not one of ours, or of another version; it lies there, and a new one was made.
    pub set_aside: Option<PathBuf>,
}

/// An append-only file of records, each with its length and a CRC-32.
///
/// [`Journal::append`] hands records to the kernel; they outlive the process. [`Journal::sync`] is
/// the point after which they outlive a crash of the machine, too. A crash between the two, or in
/// the middle of either, loses records from the end only. [`Journal::rewrite`] replaces all
/// records in one step: a crash leaves either the old ones or the new ones.
///
/// It blocks; a loop gives it to another thread. What is in it is read whole at
/// [`StateDirectory::journal`], so its owner bounds it by rewriting.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Where the next record goes: behind the last whole one.
    end: u64,
    records: u64,
    /// What it had when it was last rewritten: what counted then. Of a file that was found nobody
    /// knows how much counts.
    rewritten: u64,
}

impl Journal {
    fn open(path: PathBuf) -> io::Result<(Self, Found)> {
        let mut found = Found::default();
        remove_if_there(&beside(&path, "new"))?;
        match fs::read(&path) {
            Ok(bytes) if bytes.starts_with(&MAGIC) => {
                let file = OpenOptions::new().write(true).open(&path)?;
                let scanned = scan(&bytes);
                let end = u64::try_from(scanned.end).unwrap_or(u64::MAX);
                let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                found.torn_bytes = len - end;
                found.damaged = scanned.damaged;
                let records = scanned.records.iter().filter_map(|r| bytes.get(r.clone()));
                found.records = records.map(<[u8]>::to_vec).collect();
                if found.torn_bytes > 0 {
                    file.set_len(end)?;
                    file.sync_data()?;
                }
                let records = u64::try_from(scanned.records.len()).unwrap_or(u64::MAX);
                let journal = Self {
                    path,
                    file,
                    end,
                    records,
                    rewritten: HEADER,
                };
                return Ok((journal, found));
            }
            Ok(bytes) if bytes.is_empty() => {}
            Ok(_) => {
                let aside = beside(&path, "unreadable");
                fs::rename(&path, &aside)?;
                found.set_aside = Some(aside);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = create(&path, &[])?;
        let journal = Self {
            path,
            file,
            end: HEADER,
            records: 0,
            rewritten: HEADER,
        };
        Ok((journal, found))
    }

    /// Appends records; they are not safe from a crash of the machine before [`Self::sync`].
    ///
    /// # Errors
    ///
    /// Those of the write, and `InvalidInput` for a record without bytes or longer than
    /// [`RECORD_MAX`]. None of the records is there then.
    pub fn append(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        let bytes = frames(records)?;
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            // Whatever was written lies behind the end; without it, the next record covers it.
            drop(self.file.set_len(self.end));
            return Err(error);
        }
        self.end += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.records += u64::try_from(records.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Makes all that was appended safe from a crash of the machine.
    ///
    /// # Errors
    ///
    /// Those of the disk. What was appended since the last success may be lost then, and no
    /// further `sync` would tell: [`Self::rewrite`] makes it good.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Replaces all records by these, durably.
    ///
    /// # Errors
    ///
    /// Those of writing, and of [`Self::append`]; the old records are there still.
    pub fn rewrite(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        let bytes = frames(records)?;
        self.file = create(&self.path, &bytes)?;
        self.end = HEADER + u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.records = u64::try_from(records.len()).unwrap_or(u64::MAX);
        self.rewritten = self.end;
        Ok(())
    }

    /// Appends records durably, or with `is_rewrite` replaces all by these.
    ///
    /// # Errors
    ///
    /// Those of [`Self::append`] and [`Self::sync`], or of [`Self::rewrite`].
    pub fn write(&mut self, records: &[Vec<u8>], is_rewrite: bool) -> io::Result<()> {
        if is_rewrite {
            return self.rewrite(records);
        }
        self.append(records)?;
        self.sync()
    }

    /// So few of the records count, or the file has grown by so much, that it is worth rewriting:
    /// it never holds more than twice what counted at its last rewriting, and some slack.
    pub fn is_bloated(&self, alive: usize) -> bool {
        let alive = u64::try_from(alive).unwrap_or(u64::MAX);
        self.records > alive.saturating_mul(2).saturating_add(SLACK)
            || self.end > self.rewritten.saturating_mul(2).saturating_add(SLACK_BYTES)
    }
}

fn frames(records: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for record in records {
        if record.is_empty() || record.len() > RECORD_MAX {
            let what = format!("a record of {} bytes", record.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        frame(record, &mut bytes);
    }
    Ok(bytes)
}

/// A new file in the place of whatever is there, in one step.
fn create(path: &Path, frames: &[u8]) -> io::Result<File> {
    let new = beside(path, "new");
    remove_if_there(&new)?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all_at(&MAGIC, 0)?;
    file.write_all_at(frames, HEADER)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}
