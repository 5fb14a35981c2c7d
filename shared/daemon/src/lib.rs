//! What both daemons need around the pure session core: keys, links, control socket, configuration,
//! state on disk.

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod identity;
pub mod journal;
pub mod lifecycle;
pub mod link;
pub mod ready;
pub mod resolv_conf;
pub mod seal;
pub mod telemetry;
