//! Programs as people use them, against real servers: each ends through tund as it does directly,
//! whatever happens to the network meanwhile.
//!
//! `scripts/test battery` installs what they need, runs all, and writes `docs/battery.md`. The few
//! that every run of `scripts/test` has need no more than is installed quickly.

mod check;
mod probes;
mod program;
mod rude;
mod servers;
mod shell;
mod stage;
mod stores;
mod streams;
mod table;
mod web;

#[test]
fn a_few_downloads_end_as_they_do_directly() {
    stage::run("few: HTTP", &[&servers::NGINX], &web::FEW);
}

#[test]
fn a_few_trees_of_files_arrive_as_they_do_directly() {
    let servers = [&servers::GIT, &servers::RSYNCD];
    stage::run("few: trees", &servers, &shell::FEW);
}

#[test]
fn a_half_closed_stream_and_many_questions_end_as_they_do_directly() {
    let servers = [&servers::DIGEST, &servers::DNSMASQ];
    let checks = [streams::HALF_CLOSE, streams::QUESTIONS];
    stage::run("few: sockets", &servers, &checks);
}
