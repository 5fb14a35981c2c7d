//! Journals that were cut short, damaged or replaced, at every byte.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

const NAME: &str = "records";

fn directory() -> (tempfile::TempDir, StateDirectory) {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let state = StateDirectory::open(&parent.path().join("state")).expect("it can be made");
    (parent, state)
}

/// Records of several lengths, each different.
fn samples() -> Vec<Vec<u8>> {
    [1_u8, 7, 8, 40].map(|n| vec![n; usize::from(n)]).to_vec()
}

fn written(state: &StateDirectory) -> Vec<u8> {
    let (mut journal, _) = state.journal(NAME).unwrap();
    journal.append(&samples()).unwrap();
    journal.sync().unwrap();
    fs::read(journal.path).unwrap()
}

fn read(state: &StateDirectory) -> Vec<Vec<u8>> {
    state.journal(NAME).unwrap().1.records
}

#[test]
fn what_was_appended_is_found_again_in_order() {
    let (_parent, state) = directory();
    written(&state);
    let (mut journal, found) = state.journal(NAME).unwrap();
    assert_eq!(found.records, samples());
    assert_eq!((found.damaged, found.torn_bytes), (0, 0));
    assert_eq!(found.set_aside, None);

    journal.append(&[b"later".to_vec()]).unwrap();

    let mut all = samples();
    all.push(b"later".to_vec());
    assert_eq!(read(&state), all);
}

#[test]
fn a_file_cut_at_any_byte_has_all_records_before_and_takes_more() {
    let (parent, state) = directory();
    let whole = written(&state);
    let path = parent.path().join("state").join(NAME);
    let ends: Vec<usize> = scan(&whole).records.iter().map(|r| r.end).collect();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let before = ends.iter().filter(|end| **end <= cut).count();

        let (mut journal, found) = state.journal(NAME).unwrap();

        assert_eq!(found.records, samples()[..before], "cut at {cut}");
        journal.append(&[b"more".to_vec()]).unwrap();
        let mut expected = samples()[..before].to_vec();
        expected.push(b"more".to_vec());
        assert_eq!(read(&state), expected, "cut at {cut}, then one more");
    }
}

#[test]
fn a_tail_of_zeros_or_of_old_bytes_is_no_record() {
    let (parent, state) = directory();
    let whole = written(&state);
    let path = parent.path().join("state").join(NAME);
    for tail in [vec![0; 4096], vec![0xff; 100], whole[8..20].to_vec()] {
        let mut bytes = whole.clone();
        bytes.extend(tail.iter().skip(1));
        fs::write(&path, &bytes).unwrap();

        let found = state.journal(NAME).unwrap().1;

        assert_eq!(found.records, samples());
        assert_eq!(found.torn_bytes, u64::try_from(tail.len() - 1).unwrap());
        assert_eq!(fs::read(&path).unwrap(), whole, "it is cut off");
    }
}

#[test]
fn a_damaged_byte_loses_its_record_and_none_before_it() {
    let (parent, state) = directory();
    let whole = written(&state);
    let path = parent.path().join("state").join(NAME);
    let records = scan(&whole).records;
    for place in MAGIC.len()..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let hit = records.iter().position(|r| place < r.end).unwrap();

        let found = state.journal(NAME).unwrap().1;

        assert_eq!(found.records[..hit], samples()[..hit], "byte {place}");
        assert!(!found.records.contains(&samples()[hit]), "byte {place}");
        let in_payload = records[hit].contains(&place);
        if in_payload && hit + 1 < records.len() {
            assert_eq!(found.records.len(), 3, "those behind it are read");
            assert_eq!(found.damaged, 1);
        }
    }
}

#[test]
fn a_file_of_another_kind_or_version_is_set_aside() {
    let (parent, state) = directory();
    let path = parent.path().join("state").join(NAME);
    for content in [&b"tundlog\x02 of a later release"[..], b"{}", b"tundl"] {
        fs::write(&path, content).unwrap();

        let (mut journal, found) = state.journal(NAME).unwrap();

        let aside = found.set_aside.expect("it is kept");
        assert_eq!(fs::read(aside).unwrap(), content);
        journal.append(&samples()).unwrap();
        assert_eq!(read(&state), samples());
    }
}

#[test]
fn rewriting_replaces_all_and_leaves_no_other_file() {
    let (parent, state) = directory();
    written(&state);
    let (mut journal, _) = state.journal(NAME).unwrap();

    journal.rewrite(&[b"only".to_vec()]).unwrap();
    journal.append(&[b"next".to_vec()]).unwrap();

    assert_eq!(read(&state), [b"only".to_vec(), b"next".to_vec()]);
    let files = fs::read_dir(parent.path().join("state")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["lock", NAME]);
}

#[test]
fn what_a_crash_during_rewriting_leaves_counts_for_nothing() {
    let (parent, state) = directory();
    let whole = written(&state);
    let new = parent.path().join("state").join("records.new");
    for cut in [0, 4, 8, 15, whole.len()] {
        fs::write(&new, &whole[..cut]).unwrap();

        assert_eq!(read(&state), samples());
        assert!(!new.exists());
    }
}

#[test]
fn a_journal_is_bloated_beyond_twice_what_is_alive() {
    let (_parent, state) = directory();
    let (mut journal, _) = state.journal(NAME).unwrap();
    let count = usize::try_from(SLACK).unwrap() + 20;
    journal.append(&vec![vec![1]; count]).unwrap();

    assert!(!journal.is_bloated(10));
    assert!(journal.is_bloated(9));
}

/// Few records, each as long as it may be, are read whole at the next start as many short ones are.
#[test]
fn a_journal_of_few_long_records_is_bloated_too() {
    let (_parent, state) = directory();
    let (mut journal, _) = state.journal(NAME).unwrap();
    let long = vec![vec![1; RECORD_MAX / 2]];
    journal.append(&long).unwrap();
    assert!(!journal.is_bloated(1));
    journal.append(&long).unwrap();
    assert!(journal.is_bloated(1), "beyond 16 MiB");

    journal.rewrite(&long).unwrap();
    for _ in 0..2 {
        journal.append(&long).unwrap();
        assert!(!journal.is_bloated(1), "twice what counted, and 16 MiB");
    }
    journal.append(&[vec![1; RECORD_MAX / 2 + 100]]).unwrap();
    assert!(journal.is_bloated(1));

    // Of what is found nobody knows how much counts.
    drop(journal);
    assert!(state.journal(NAME).unwrap().0.is_bloated(1));
}

#[test]
fn records_without_bytes_or_too_long_are_refused() {
    let (_parent, state) = directory();
    let (mut journal, _) = state.journal(NAME).unwrap();
    for bad in [Vec::new(), vec![0; RECORD_MAX + 1]] {
        let error = journal.append(&[b"good".to_vec(), bad]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    journal.append(&[vec![5; RECORD_MAX]]).unwrap();

    assert_eq!(read(&state), [vec![5; RECORD_MAX]]);
}

#[test]
fn a_full_disk_is_an_error_and_what_was_there_stays() {
    let (_parent, state) = directory();
    let (mut journal, _) = state.journal(NAME).unwrap();
    journal.append(&samples()).unwrap();
    journal.file = OpenOptions::new().write(true).open("/dev/full").unwrap();

    journal.append(&[b"lost".to_vec()]).unwrap_err();

    assert_eq!(read(&state), samples());
    journal.rewrite(&[b"made good".to_vec()]).unwrap();
    journal.append(&[b"next".to_vec()]).unwrap();
    assert_eq!(read(&state), [b"made good".to_vec(), b"next".to_vec()]);
}

#[test]
fn only_the_owner_may_look_and_only_one_daemon_may_write() {
    let (parent, state) = directory();
    let path = parent.path().join("state");
    written(&state);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(NAME)), 0o600);
    assert_eq!(mode(&path.join("lock")), 0o600);

    let second = StateDirectory::open(&path).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
    drop(state);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let again = StateDirectory::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    assert_eq!(read(&again), samples());
}
