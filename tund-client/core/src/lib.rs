//! The client daemon without I/O: packets and frames in, packets and frames out.

mod account;
pub mod client;
mod dialer;
mod flow_table;
mod mappings;
pub mod names;
pub mod netstack;
pub mod packet;
pub mod policy;
pub mod routing;
pub mod spool;
mod takes;

pub use account::{EndedBy, FlowAccount, HowEnded, LostBytes};
pub use client::{
    Client, ClientConfig, ClientEvent, Network, NotStored, Outages, Path, Refused, State,
};
pub use dialer::PathId;
pub use flow_table::{ClientFlow, FlowTable};
pub use mappings::{ClientMapping, Filtering, MappingConfig, Mappings};
pub use policy::{DuringOutage, HandOff, Policies, Policy, Rules, Store};
pub use spool::{FileId, SpoolOrder};
