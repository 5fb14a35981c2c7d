//! The whole client between an application's kernel and a real registry, in virtual time.

mod account;
mod behind;
mod budget;
mod connect;
mod datagrams;
mod delivering;
mod disk;
mod ending;
mod handing_on;
mod network;
mod outage;
mod policies;
mod properties;
mod refused;
mod server;
mod storing;
mod world;
