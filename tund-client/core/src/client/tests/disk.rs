//! The spool of the client's tests: what its driver would have on the disk.

use super::world::World;
use crate::spool::{Dead, FileId, Head, Record, RecordRead, SpoolOrder};
use std::collections::BTreeMap;

/// The spool's directory.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<FileId, (Head, Vec<Record>)>,
    pub(super) dead: BTreeMap<FileId, Dead>,
    /// It takes nothing.
    pub(super) is_full: bool,
    /// It has not finished writing.
    pub(super) is_slow: bool,
    pub(super) under_way: Vec<FileId>,
    /// Records from this one on are damaged.
    pub(super) damaged_from: Option<u32>,
    /// It gives nothing away.
    pub(super) is_unreadable: bool,
}

impl Disk {
    /// A record as it goes out, but not sealed.
    fn wire(&self, file: FileId, record: u32) -> Option<bytes::Bytes> {
        if self.damaged_from.is_some_and(|from| record >= from) {
            return None;
        }
        let record = &self.files.get(&file)?.1[usize::try_from(record).unwrap()];
        let length = u32::try_from(record.bytes.len()).unwrap();
        let wire = [
            &record.start.0.to_be_bytes()[..],
            &record.end.0.to_be_bytes(),
            &[u8::from(record.fin)],
            &length.to_be_bytes(),
            &record.bytes,
        ];
        Some(wire.concat().into())
    }

    /// All that is stored, file by file.
    pub(super) fn texts(&self) -> Vec<String> {
        let text = |records: &Vec<Record>| {
            let bytes: Vec<u8> = records.iter().flat_map(|r| r.bytes.to_vec()).collect();
            String::from_utf8(bytes).unwrap()
        };
        self.files
            .values()
            .map(|(_, records)| text(records))
            .collect()
    }
}

impl World {
    pub(super) fn on_order(&mut self, order: SpoolOrder) {
        let now = self.now;
        match order {
            SpoolOrder::Store {
                file,
                head,
                records,
                ..
            } => {
                if !self.disk.is_full {
                    self.disk.files.insert(file, (head, records));
                }
                if self.disk.is_slow {
                    self.disk.under_way.push(file);
                } else {
                    self.client.handle_stored(file, !self.disk.is_full, now);
                }
            }
            SpoolOrder::Read { file, record } => {
                let read = match self.disk.wire(file, record) {
                    _ if self.disk.is_unreadable => RecordRead::Failed,
                    Some(wire) => RecordRead::Whole(wire),
                    None => RecordRead::Damaged,
                };
                self.client.handle_record(file, record, read, now);
            }
            SpoolOrder::Remove { file } => {
                self.disk.files.remove(&file).expect("it was stored");
                self.disk.dead.remove(&file);
            }
            SpoolOrder::Bury { file, why } => {
                assert!(self.disk.files.contains_key(&file), "{file} was not stored");
                self.disk.dead.insert(file, why);
            }
            SpoolOrder::Revive { file, was } => {
                assert_eq!(self.disk.dead.remove(&file), Some(was));
            }
        }
    }

    /// The disk has finished what it was writing.
    pub(super) fn finish_writing(&mut self) {
        self.disk.is_slow = false;
        for file in std::mem::take(&mut self.disk.under_way) {
            self.client.handle_stored(file, true, self.now);
        }
        self.run();
    }
}
