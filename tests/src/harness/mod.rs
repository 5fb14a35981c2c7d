//! Both daemons' cores in virtual time: a world of applications, origins and links, the things
//! that may happen in it, and what must hold then.

mod action;
pub mod books;
pub mod chaos;
mod collector;
pub mod coverage;
mod daemons;
mod desk;
mod events;
mod heal;
mod lobby;
mod mappings;
pub mod mobile;
mod network;
mod passing;
pub mod pipe;
pub mod records;
mod remainder;
pub mod rng;
pub mod schedule;
mod shelf;
pub mod socket;
pub mod story;
mod talkers;
mod throws;
pub mod witness;
pub mod world;
