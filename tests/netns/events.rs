//! A random walk of network events, each begun only while the session is attached.

use std::time::Duration;

use tund_tests::lab::{Event, Lab, Tund, wait};

use crate::support::{Dice, LATER};

/// How many events there are to be, and how long each may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    pub(crate) events: u64,
    pub(crate) longest: Duration,
}

impl Walk {
    /// Lets its events happen while `progress` goes from 0 to `end`, spread over it at random
    /// places; at least three of four are hard. Then checks the number of outages.
    #[track_caller]
    pub(crate) fn happen(
        self,
        lab: &mut Lab,
        tund: &Tund,
        end: u64,
        mut progress: impl FnMut() -> u64,
    ) {
        let mut dice = Dice::new(self.events);
        let before = tund.client.status().outages.count;
        let mut hard = 0;
        let longest = u64::try_from(self.longest.as_millis()).expect("a test ends this century");
        for number in 0..self.events {
            let part = end / (self.events + 1);
            let place = part * number + dice.below(part);
            wait::until_true(&format!("byte {place} of {end}"), LATER, || {
                progress() >= place
            });
            let event = match number % 4 {
                0 => Event::Forget,
                1 => Event::Rst,
                2 => Event::Switch,
                _ => Event::Cut,
            };
            let known = tund.client.wait_attached(LATER).outages.count;
            event.happen(lab, dice.millis(200, longest));
            if event.is_hard() {
                hard += 1;
                wait::until_true(&format!("{event:?} is noticed"), LATER, || {
                    tund.client.status().outages.count > known
                });
            }
            tund.client.wait_attached(LATER);
        }
        let counted = tund.client.status().outages.count - before;
        assert!(
            (hard..=self.events).contains(&counted),
            "{counted} outages after {} events, {hard} of them fatal to a link",
            self.events
        );
    }
}
