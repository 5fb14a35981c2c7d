//! One check: a program as people use it, four ways, and whether it ended each time as it does directly.

use std::fmt;
use std::time::Duration;

use tund_tests::lab::wait;

use super::program::Program;
use super::stage::Stage;
use crate::support::LATER;

/// How long B is cut.
const CUT: Duration = Duration::from_secs(3);
/// How long a program may take, an outage and a busy machine included.
const LIMIT: Duration = Duration::from_secs(60);
/// What the kernel itself may have to say on the TUN device while a program runs past it.
const STRAY_BYTES: u64 = 500;
/// A SYN; no program sends less.
const LEAST_BYTES: u64 = 60;

/// A program, what it needs to be judged, and when it is in its middle.
///
/// Scripts are of sh, each in a directory of its own, with the variables of [`Stage::variables`].
#[derive(Debug)]
pub(super) struct Check {
    /// What it is; a row of `docs/battery.md`.
    pub(super) title: &'static str,
    /// What a person types. Its outputs are in the files `out` and `err`.
    pub(super) run: &'static str,
    /// The exit code that is right.
    pub(super) ends: i32,
    /// Looks at what has been made, and fails if anything of it is wrong; what it prints has to be
    /// the same in all ways.
    pub(super) shows: &'static str,
    /// When the network goes.
    pub(super) middle: Middle,
}

/// How to see that a program has begun and goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Middle {
    /// So many bytes of it have passed the TUN device.
    Bytes(u64),
    /// This stands in what it has written.
    Says(&'static str),
}

/// How a program gets to the origin, and what happens meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Past tund.
    Direct,
    /// Through tund.
    Tund,
    /// Through tund, with B cut for 3 s and its 5-tuple forgotten in the program's middle.
    Cut,
    /// Through tund, with a switch of access link in the program's middle.
    Switched,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Direct, Self::Tund, Self::Cut, Self::Switched];

    /// How many seconds a program lasts that lasts as long as it is told: past what happens to it.
    pub(super) fn seconds(self) -> u32 {
        match self {
            Self::Direct | Self::Tund => 1,
            Self::Cut => 6,
            Self::Switched => 3,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Tund => "tund",
            Self::Cut => "cut",
            Self::Switched => "switched",
        })
    }
}

/// How a program ended one way.
#[derive(Debug)]
pub(super) struct Ended {
    /// What had to be the same.
    shown: String,
    pub(super) took: Duration,
    pub(super) outages: u64,
}

impl Check {
    /// Runs it all four ways; each ends as directly, or differs in what is said.
    pub(super) fn four_ways(&self, stage: &mut Stage) -> [(Way, Result<Ended, String>); 4] {
        let mut directly = None;
        Way::ALL.map(|way| {
            stage.narrate(&format!("{}: {way}", self.title));
            let ended = self.run(stage, way).and_then(|ended| {
                let expected = directly.get_or_insert_with(|| ended.shown.clone());
                match *expected == ended.shown {
                    true => Ok(ended),
                    false => Err(format!("shows {:?}, not {expected:?}", ended.shown)),
                }
            });
            if let Err(wrong) = &ended {
                stage.narrate(&format!("{}: {way}: WRONG: {wrong}", self.title));
            }
            (way, ended)
        })
    }

    fn run(&self, stage: &mut Stage, way: Way) -> Result<Ended, String> {
        let outages = stage.outages();
        let carried = stage.carried();
        let mut program = stage.start(self.run, way);
        let ended = self
            .happen(stage, &mut program, way, carried)
            .and_then(|()| program.end(LIMIT));
        // Whatever became of the program, the next one finds the network as it was.
        stage.lab.heal();
        let settled = stage.settle(outages, way);
        stage.lab.forgive();
        let (code, took) = ended.map_err(|wrong| format!("{wrong}\n{}", program.written()))?;
        let outages = settled?;
        if code != Some(self.ends) {
            let written = program.written();
            return Err(format!("ended with {code:?}, not {}\n{written}", self.ends));
        }
        let passed = stage.carried() - carried;
        let is_on_its_way = match way {
            Way::Direct => passed < STRAY_BYTES,
            Way::Tund | Way::Cut | Way::Switched => passed >= LEAST_BYTES,
        };
        if !is_on_its_way {
            return Err(format!("{passed} bytes passed the TUN device"));
        }
        let shown = program
            .look(&stage.lab.client, self.shows)
            .map_err(|wrong| {
                let written = program.written();
                format!("{wrong}\n{written}")
            })?;
        Ok(Ended {
            shown,
            took,
            outages,
        })
    }

    /// What is to happen while it runs.
    fn happen(
        &self,
        stage: &mut Stage,
        program: &mut Program,
        way: Way,
        carried: u64,
    ) -> Result<(), String> {
        if matches!(way, Way::Direct | Way::Tund) {
            return Ok(());
        }
        let is_there = |program: &mut Program| match self.middle {
            Middle::Bytes(bytes) => stage.carried() - carried >= bytes,
            Middle::Says(text) => program.written().contains(text),
        };
        let start = wait::now();
        while !is_there(program) {
            if !program.is_running() {
                return Err("ended before its middle".to_owned());
            }
            if wait::now() - start > LATER {
                return Err("did not come to its middle".to_owned());
            }
            wait::let_pass(Duration::from_millis(5));
        }
        if way == Way::Switched {
            stage.lab.switch();
            return Ok(());
        }
        stage.lab.cut();
        stage.lab.forget();
        wait::let_pass(CUT);
        let lasted = program.is_running();
        stage.lab.heal();
        match lasted {
            true => Ok(()),
            false => Err("ended while nothing could pass".to_owned()),
        }
    }
}
