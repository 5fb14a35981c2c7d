//! Traffic that the daemon leads into its device (`[routes] mode = "auto"`).

use super::Daemon;
use super::names::{self, HostNames};
use crate::config::{Config, Routes};
use crate::sys::address::InterfaceAddress;
use crate::sys::error::SystemError;
use crate::sys::steer::{self, Plan, Planner, Route, Steering, Way};
use crate::sys::tun::TunName;
use ipnet::IpNet;
use std::net::IpAddr;
use std::task::Context;
use tund_client_core::routing::{self, Lookout, Routing};
use tund_daemon::config::Prefix;
use tund_daemon::telemetry::Tally;
use tund_session::Instant;

/// What is steered, and when it is looked at again.
pub(super) struct Steered {
    steering: Steering,
    /// Where the stub stands for the host's name servers.
    names: Option<HostNames>,
    lookout: Lookout,
    kill_switch: bool,
    /// It could not be put right, and the log says so.
    is_failure_told: bool,
    tally: Tally,
}

impl Steered {
    /// Begins to steer if the configuration wants it; else what an earlier daemon has left goes.
    pub(super) fn begin(config: &Config, tun: &TunName) -> Result<Option<Self>, SystemError> {
        let stub = config.stub.filter(|_| config.routes.is_some());
        if stub.is_none() {
            match names::remove(tun) {
                Ok(false) => {}
                Ok(true) => tracing::info!("this host asks its own name servers again"),
                Err(error) => {
                    tracing::warn!(%error, "this host still asks an earlier daemon's stub for names");
                }
            }
        }
        let Some(routes) = &config.routes else {
            if steer::remove(tun)? {
                tracing::info!("removed the routes of an earlier daemon");
            }
            return Ok(None);
        };
        let addresses = config.tun_addresses.iter().copied();
        let addresses: Vec<InterfaceAddress> = addresses.map(InterfaceAddress::from).collect();
        let planner = planner(routing(routes, stub));
        let steering = Steering::begin(tun, config.fwmark, &addresses, planner)?;
        let begun = stub.map(|stub| HostNames::begin(stub, tun)).transpose();
        let names = match begun {
            Ok(names) => names,
            Err(error) => {
                if let Err(left) = steering.end(false) {
                    tracing::error!(error = %left, "rules or routes stay behind");
                }
                return Err(error);
            }
        };
        Ok(Some(Self {
            steering,
            names,
            lookout: Lookout::default(),
            kill_switch: routes.kill_switch,
            is_failure_told: false,
            tally: Tally::new(),
        }))
    }

    pub(super) fn news(&mut self, now: Instant) {
        self.lookout.news(now);
    }

    /// Hears of changes of whom this host asks for names.
    pub(super) fn hear(&mut self, cx: &mut Context<'_>, now: Instant) {
        if let Some(names) = &mut self.names
            && names.poll_news(cx).is_ready()
        {
            // There may be more: this task is to be woken again.
            cx.waker().wake_by_ref();
            self.lookout.news(now);
        }
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
        self.look_at_names(now);
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

    fn look_at_names(&mut self, now: Instant) {
        match self.names.as_mut().map(HostNames::mend) {
            None => {}
            Some(Ok(looked)) => {
                if looked.is_mended {
                    self.tally.add("name servers");
                }
                if looked.looks_again {
                    self.lookout.news(now);
                }
            }
            // The next news are another chance.
            Some(Err(error)) => tracing::warn!(%error, "names are asked for past the stub"),
        }
    }
}

impl Daemon {
    /// Undoes what was steered.
    pub(super) fn stop_steering(&mut self) {
        let Some(steered) = self.steered.take() else {
            return;
        };
        if let Some(Err(error)) = steered.names.map(HostNames::end) {
            tracing::error!(%error, "this host still asks the stub for names");
        }
        if let Err(error) = steered.steering.end(steered.kill_switch) {
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
        stub: routing.stub,
    })
}

fn routing(routes: &Routes, stub: Option<IpAddr>) -> Routing {
    let nets = |prefixes: &[Prefix]| {
        let net = |prefix: &Prefix| IpNet::new(prefix.address(), prefix.prefix_len()).ok();
        prefixes.iter().filter_map(net).collect()
    };
    Routing {
        include: nets(&routes.include),
        exclude: nets(&routes.exclude),
        lan_direct: routes.is_lan_direct,
        stub,
    }
}
