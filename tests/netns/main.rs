//! Real programs in network namespaces: the lab itself, and the daemons in it.
//!
//! Needs root. `cargo nextest run -P netns` runs what is short; `cargo nextest run -P netns-long
//! --run-ignored only` the rest. The daemons are found as `tund_tests::lab` says.

mod admission;
mod buffering;
mod configuration;
mod crowd;
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
mod lines;
mod matrix;
mod neighbours;
mod outages;
mod paths;
mod proxy;
mod reach;
mod restarts;
mod rogues;
mod sniffer;
mod storing;
mod support;
mod transfers;
mod undelivered;
