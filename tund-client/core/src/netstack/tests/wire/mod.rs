//! Where the application's kernel would be sits a script: every segment to and from the netstack is
//! written down (`*.txt`; their language is described in `script.rs`).

mod player;
mod script;

use super::world::KINDS;
use player::Player;
use std::fmt::Write;

/// Plays each script of a file with both IP versions, with and without offloads; at least `count`.
fn play(text: &str, count: usize) {
    let scripts = script::parse(text);
    assert!(scripts.len() >= count, "{} scripts", scripts.len());
    let mut faults = String::new();
    for script in &scripts {
        for kind in KINDS {
            if let Err(fault) = Player::new(kind).play(script) {
                writeln!(faults, "{}, {kind:?}: {fault}", script.title).unwrap();
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn connections_are_opened_and_refused_as_by_a_host() {
    play(include_str!("opening.txt"), 20);
}

#[test]
fn bytes_from_the_application_are_taken_in_any_order() {
    play(include_str!("up.txt"), 15);
}

#[test]
fn bytes_to_the_application_are_sent_as_its_window_allows() {
    play(include_str!("down.txt"), 12);
}

#[test]
fn every_end_is_what_it_was_meant_to_be() {
    play(include_str!("ending.txt"), 20);
}
