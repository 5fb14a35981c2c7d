//! What can befall a network for a while, as one list to draw from.

use std::time::{Duration, Instant};

use super::{Direction, Lab, narrate, wait};

/// Something that happens to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The access link in use loses its carrier.
    Carrier,
    /// Silence, after which the old connection goes on.
    Cut,
    /// Silence, after which the old connection stays dead.
    Forget,
    /// Silence towards the client only.
    OneWayDown,
    /// Silence from the client only.
    OneWayUp,
    /// Something else answers for the server.
    Portal,
    /// A middlebox resets the connection.
    Rst,
    /// The client is without network, and then in another.
    Switch,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Carrier,
        Self::Cut,
        Self::Forget,
        Self::OneWayDown,
        Self::OneWayUp,
        Self::Portal,
        Self::Rst,
        Self::Switch,
    ];

    /// Whether no link can outlive it.
    pub fn is_hard(self) -> bool {
        match self {
            Self::Carrier | Self::Cut | Self::OneWayDown | Self::OneWayUp => false,
            Self::Forget | Self::Portal | Self::Rst | Self::Switch => true,
        }
    }

    /// Lets it happen for `length`; gives the moment at which the network was back.
    pub fn happen(self, lab: &mut Lab, length: Duration) -> Instant {
        narrate("event", &format!("{self:?} {length:?}"));
        let heal = |lab: &Lab| {
            wait::let_pass(length);
            let back = wait::now();
            lab.heal();
            back
        };
        match self {
            Self::Carrier => {
                let access = lab.access();
                lab.carrier(access, false);
                wait::let_pass(length);
                lab.carrier(access, true);
                wait::now()
            }
            Self::Cut => {
                lab.cut();
                heal(lab)
            }
            Self::Forget => {
                lab.cut();
                lab.forget();
                heal(lab)
            }
            Self::OneWayDown => {
                lab.cut_one_way(Direction::Down);
                heal(lab)
            }
            Self::OneWayUp => {
                lab.cut_one_way(Direction::Up);
                heal(lab)
            }
            Self::Portal => {
                let portal = lab.portal();
                wait::let_pass(length);
                let back = wait::now();
                lab.portal_off(portal);
                back
            }
            Self::Rst => {
                let back = wait::now();
                lab.rst();
                back
            }
            Self::Switch => lab.switch_after(length),
        }
    }
}
