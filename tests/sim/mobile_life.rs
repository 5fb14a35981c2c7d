//! Twelve hours of mobile life: networks come and go, either side sleeps, and no byte is lost or
//! doubled. `TUND_LIVES=n` plays more of them, `TUND_SEED=n` one.

use std::time::Duration;
use tund_tests::harness::mobile::{Life, MET, NIGHT, Tally};

const LIVES: u64 = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays lives with this grace, and says what has happened in them.
fn live(grace: Duration, mut judge: impl FnMut(u64, &Life)) -> Tally {
    let lives = number("TUND_LIVES").unwrap_or(LIVES);
    let seeds = number("TUND_SEED").map_or(1..=lives, |seed| seed..=seed);
    let mut all = Tally::default();
    for seed in seeds.clone() {
        let mut life = Life::new(seed, grace);
        life.play();
        if let Some(fault) = &life.world.fault {
            panic!("TUND_SEED={seed}: {fault}");
        }
        judge(seed, &life);
        all.merge(&life.tally);
    }
    eprintln!("{all}of the lives {seeds:?}, 12 h each, grace {grace:?}");
    all
}

/// Everything has been met, unless one life alone is played.
fn demand(all: &Tally, more: &[(&str, u64)]) {
    if number("TUND_SEED").is_some() {
        return;
    }
    let least = (number("TUND_LIVES").unwrap_or(LIVES) / 3).max(1);
    for (what, least) in MET
        .iter()
        .map(|what| (*what, least))
        .chain(more.iter().copied())
    {
        let times = all.of(what);
        assert!(times >= least, "{times} of {least} at least: {what}");
    }
}

#[test]
fn half_a_day_with_a_grace_that_outlasts_every_sleep_loses_no_flow() {
    let all = live(Duration::from_secs(14 * 3600), |seed, life| {
        for (index, unit) in life.world.units.iter().enumerate() {
            let opened = unit.sockets.iter().flatten().any(|socket| socket.connected);
            assert!(
                unit.aborted.is_none() || !opened,
                "TUND_SEED={seed}: u{index} was not outlived: {unit}"
            );
        }
    });

    demand(
        &all,
        &[("longest sleep with flows open, s", NIGHT.as_secs())],
    );
}

#[test]
fn half_a_day_with_a_short_grace_ends_flows_honestly_and_goes_on() {
    let all = live(Duration::from_secs(600), |_, _| {});

    demand(&all, &[("flows that expired", 20), ("sessions", 20)]);
}
