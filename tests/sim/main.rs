//! Stories of both daemons' cores in virtual time, one per file.

mod datagrams;
mod fairness;
mod grace;
mod hand_off;
mod idle_flows;
mod last_word;
mod make_before_break;
mod mobile_life;
mod outage;
mod polling;
mod portal;
mod regressions;
mod stalled_reader;
mod standby;
mod store;
