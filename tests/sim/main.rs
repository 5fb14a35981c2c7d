//! Stories of both daemons' cores in virtual time, one per file.

mod regressions;
