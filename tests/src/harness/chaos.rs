//! Plays schedules, and makes those that fail shorter.

use super::coverage::Coverage;
use super::schedule::{Action, Schedule};
use super::world::World;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A schedule that fails.
#[derive(Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
    /// The actions that are needed to see it.
    pub actions: Vec<Action>,
    /// What happened in them.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "TUND_SEED={} fails: {}", self.seed, self.what)?;
        writeln!(f, "with {} actions:", self.actions.len())?;
        for action in &self.actions {
            writeln!(
                f,
                "  #{} {:?} {:#x}",
                action.index, action.kind, action.number
            )?;
        }
        writeln!(f, "in which this happened:")?;
        for line in &self.story {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

thread_local! {
    /// A schedule is being played on this thread: a panic is a finding, and nothing to print.
    static PLAYING: Cell<bool> = const { Cell::new(false) };
    /// The text of the last one.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics of the cores as text while a schedule is played.
pub fn keep_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if PLAYING.get() {
            PANIC.with(|kept| *kept.borrow_mut() = Some(info.to_string()));
        } else {
            usual(info);
        }
    }));
}

/// What a played schedule has left.
#[derive(Debug)]
pub struct Played {
    /// What was met.
    pub coverage: Coverage,
    /// What was wrong.
    pub fault: Option<String>,
    /// What happened, if asked for.
    pub story: Vec<String>,
}

/// Plays some of the actions of a schedule.
pub fn play(schedule: &Schedule, actions: &[Action], with_story: bool) -> Played {
    let mut world = World::new(schedule.seed, schedule.knobs);
    world.refusing = true;
    world.story = with_story.then(Vec::new);
    PLAYING.set(true);
    let played = catch_unwind(AssertUnwindSafe(|| {
        for action in actions {
            world.apply(*action);
            if world.fault.is_some() {
                return;
            }
        }
        world.settle();
    }));
    PLAYING.set(false);
    if played.is_err() {
        let text = PANIC.with(|kept| kept.borrow_mut().take());
        world.fault(text.unwrap_or_else(|| "panic".to_owned()));
    }
    Played {
        coverage: world.coverage,
        fault: world.fault,
        story: world.story.unwrap_or_default(),
    }
}

/// Makes the schedule of a seed.
pub type Family = fn(u64) -> Schedule;

/// Plays the schedule of a seed.
///
/// # Errors
///
/// What was wrong.
pub fn outcome(family: Family, seed: u64) -> Result<Coverage, String> {
    let schedule = family(seed);
    let played = play(&schedule, &schedule.actions, false);
    played.fault.map_or(Ok(played.coverage), Err)
}

/// If the schedule of a seed fails: with what, and what is needed to see it.
pub fn failure(family: Family, seed: u64) -> Option<Failure> {
    let schedule = family(seed);
    let fault = play(&schedule, &schedule.actions, false).fault;
    fault.map(|_| shorten(&schedule))
}

/// Leaves out what is not needed, in ever smaller pieces.
fn shorten(schedule: &Schedule) -> Failure {
    let fails = |actions: &[Action]| play(schedule, actions, false).fault.is_some();
    let mut actions = schedule.actions.clone();
    let mut piece = actions.len().div_ceil(2);
    let mut plays = 0;
    while piece > 0 && plays < 3_000 {
        let mut at = 0;
        let mut dropped = false;
        while at < actions.len() && plays < 3_000 {
            let mut fewer = actions.clone();
            fewer.drain(at..(at + piece).min(actions.len()));
            plays += 1;
            if fails(&fewer) {
                actions = fewer;
                dropped = true;
            } else {
                at += piece;
            }
        }
        if !dropped || piece > 1 {
            piece /= 2;
        }
    }
    let played = play(schedule, &actions, true);
    Failure {
        seed: schedule.seed,
        what: played
            .fault
            .unwrap_or_else(|| "not when played again".to_owned()),
        actions,
        story: played.story,
    }
}
