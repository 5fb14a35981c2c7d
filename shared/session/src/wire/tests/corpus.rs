//! Replays the inputs that fuzzing began with, or found, on every run of the tests.

use super::hex;
use crate::wire::codec::decode;
use bytes::Bytes;

/// One input a line: what comes of it, then its bytes.
const CORPUS: &str = include_str!("../../../../../tests/fuzz/corpus/wire.txt");

#[test]
fn every_input_of_the_corpus_ends_as_it_is_written_there() {
    let mut count = 0;
    for line in CORPUS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (expected, digits) = line.split_once('|').expect("outcome | bytes");

        assert_eq!(outcome(&hex(digits)), expected.trim(), "{line}");
        count += 1;
    }

    assert!(count >= 100, "only {count} inputs");
}

#[test]
fn every_input_of_the_corpus_ends_the_same_in_single_bytes() {
    for line in CORPUS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (expected, digits) = line.split_once('|').expect("outcome | bytes");
        let bytes = hex(digits);
        let (mut frames, mut held, mut end) = (0, Vec::new(), None);

        for byte in bytes {
            held.push(byte);
            let mut input = Bytes::from(std::mem::take(&mut held));
            match decode(&mut input) {
                Ok(Some(_)) => frames += 1,
                Ok(None) => {}
                Err(error) => {
                    end = Some(error.what());
                    break;
                }
            }
            held = input.to_vec();
        }

        assert_eq!(words(frames, end, held.len()), expected.trim(), "{line}");
    }
}

fn outcome(bytes: &[u8]) -> String {
    let mut input = Bytes::copy_from_slice(bytes);
    let mut frames = 0;
    loop {
        match decode(&mut input) {
            Ok(Some(_)) => frames += 1,
            Ok(None) => return words(frames, None, input.len()),
            Err(error) => return words(frames, Some(error.what()), 0),
        }
    }
}

fn words(frames: usize, error: Option<&str>, rest: usize) -> String {
    match (error, rest) {
        (Some(what), _) => format!("{frames}, {what}"),
        (None, 0) => frames.to_string(),
        (None, rest) => format!("{frames}, {rest} bytes of another"),
    }
}
