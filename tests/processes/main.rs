//! The command as its users meet it: every test here starts the built `inkfast`, kills and
//! restarts its processes, and looks only at what they print, how they end and which bytes come
//! back, from them or through the client library.
//!
//! `process` starts and ends processes, `cluster` puts a cluster of them together, `load` keeps it
//! busy; `metastores` does both for a metastore of several, and `proxy` cuts their links; `storage`
//! looks at what bookies have on their disks. A test's name says what it claims. Ports are chosen by
//! the system, everything stays on loopback and in a temporary directory, and a wait ends with the
//! event it waits for or fails at a deadline. When a test fails, the logs of its daemons are shown
//! with it. With `INKFAST_LONG` set, outages last as long as real ones, leaders die a hundred times,
//! and stalls that are too long count; `INKFAST_SEED` repeats a schedule of chance.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod bench;
mod changes;
mod cluster;
mod daemons;
mod dirs;
mod doctor;
mod kills;
mod load;
mod metastores;
mod outages;
mod process;
mod proxy;
mod racks;
mod random;
mod restarts;
mod storage;
mod strangers;
mod tailing;
mod writing;
