//! Real programs in network namespaces: the lab itself, and the daemons in it.
//!
//! Needs root. `cargo nextest run -P netns` runs what is short; `cargo nextest run -P netns-long
//! --run-ignored only` the rest. The daemons are found as `tund_tests::lab` says.

mod account;
mod admission;
mod battery;
mod buffering;
mod capture;
mod configuration;
mod crowd;
mod datagrams;
mod deliveries;
mod endings;
mod events;
mod farewells;
mod handing_on;
mod idle;
mod injection;
mod kills;
mod lab_direct;
mod lab_emulator;
mod lab_removal;
mod ledger;
mod lines;
mod matrix;
mod multitudes;
mod names;
mod neighbours;
mod outages;
mod paths;
mod ping;
mod proxy;
mod reach;
mod relocation;
mod resolvers;
mod restarts;
mod rogues;
mod routes;
mod sniffer;
mod storing;
mod support;
mod thieves;
mod transfers;
mod undelivered;
