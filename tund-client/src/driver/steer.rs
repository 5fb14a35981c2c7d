//! Traffic that the daemon leads into its device (`[routes] mode = "auto"`).

use super::Daemon;
use crate::config::{Config, Routes};
use crate::sys::address::InterfaceAddress;
use crate::sys::error::SystemError;
use crate::sys::steer::{self, Plan, Planner, Route, Steering, Way};
use crate::sys::tun::TunName;
use ipnet::IpNet;
use tund_client_core::routing::{self, Lookout, Routing};
use tund_daemon::config::Prefix;
use tund_daemon::telemetry::Tally;
use tund_session::Instant;

/// What is steered, and when it is looked at again.
pub(super) struct Steered {
    steering: Steering,
    lookout: Lookout,
    kill_switch: bool,
    /// It could not be put right, and the log says so.
    is_failure_told: bool,
    tally: Tally,
}

impl Steered {
    /// Begins to steer if the configuration wants it; else what an earlier daemon has left goes.
    pub(super) fn begin(config: &Config, tun: &TunName) -> Result<Option<Self>, SystemError> {
        let Some(routes) = &config.routes else {
            if steer::remove(tun)? {
                tracing::info!("removed the routes of an earlier daemon");
            }
            return Ok(None);
        };
        let addresses = config.tun_addresses.iter().copied();
        let addresses: Vec<InterfaceAddress> = addresses.map(InterfaceAddress::from).collect();
        let steering = Steering::begin(tun, config.fwmark, &addresses, planner(routing(routes)))?;
        Ok(Some(Self {
            steering,
            lookout: Lookout::default(),
            kill_switch: routes.kill_switch,
            is_failure_told: false,
            tally: Tally::new(),
        }))
    }

    pub(super) fn news(&mut self, now: Instant) {
        self.lookout.news(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let times = [self.lookout.poll_timeout(), self.tally.poll_timeout()];
        times.into_iter().flatten().min()
    }

    /// Puts rule and routes right if it is time to look.
    pub(super) fn tend(&mut self, now: Instant) {
        if self.lookout.is_due(now) {
            self.look(now);
        }
        if let Some(summary) = self.tally.poll_summary(now) {
            tracing::info!("put right: {summary}");
        }
    }

    fn look(&mut self, now: Instant) {
        match self.steering.mend() {
            Ok(0) => self.is_failure_told = false,
            Ok(changes) => {
                self.is_failure_told = false;
                let changes = u64::try_from(changes).unwrap_or(u64::MAX);
                self.tally.add_many("rules, routes and filters", changes);
            }
            Err(error) => {
                // The kernel may have nothing more to tell, and it is not as it should be.
                self.lookout.news(now);
                if !std::mem::replace(&mut self.is_failure_told, true) {
                    tracing::warn!(%error, "rules and routes are not what they should be");
                }
            }
        }
    }
}

impl Daemon {
    /// Undoes what was steered.
    pub(super) fn stop_steering(&mut self) {
        if let Some(steered) = self.steered.take()
            && let Err(error) = steered.steering.end(steered.kill_switch)
        {
            tracing::error!(%error, "rules or routes stay behind");
        }
    }
}

/// The core's plans, as the kernel's side takes them.
fn planner(routing: Routing) -> Planner {
    Box::new(move |on_link, is_serving| Plan {
        routes: routing
            .routes(on_link, is_serving)
            .into_iter()
            .map(|route| Route {
                prefix: route.prefix,
                way: match route.way {
                    routing::Way::Tun => Way::Tun,
                    routing::Way::Past => Way::Past,
                    routing::Way::Refused => Way::Refused,
                },
            })
            .collect(),
        into: routing.inside(),
        past: routing.past(),
        lan: routing.lan(on_link),
    })
}

fn routing(routes: &Routes) -> Routing {
    let nets = |prefixes: &[Prefix]| {
        let net = |prefix: &Prefix| IpNet::new(prefix.address(), prefix.prefix_len()).ok();
        prefixes.iter().filter_map(net).collect()
    };
    Routing {
        include: nets(&routes.include),
        exclude: nets(&routes.exclude),
        lan_direct: routes.is_lan_direct,
    }
}
