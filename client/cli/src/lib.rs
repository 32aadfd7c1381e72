//! The command `inkfast`, and the cluster in one process that it is tried with.
//!
//! # The command
//! [`commands`] says what can be asked for on the command line, and does it; there is one module
//! for each command, which reads top down from its arguments to what it prints. What a command
//! does is in the crates below: here are only words, files, standard input and output.
//!
//! * `demo` shows the main job, from the first line written to the comparison of what was read.
//! * `start` runs daemons: a metastore, a bookie, or a whole cluster in one process.
//! * `metastore` shows and changes the members of the metastore, backs it up and restores it.
//! * `certs` makes the certificates by which daemons and clients know each other.
//! * `ledger` writes, reads, recovers, shows, lists and deletes ledgers.
//! * `doctor` looks at the disk of a bookie that does not run.
//! * `bench` loads a cluster with appends or reads, and measures.
//!
//! Data goes to standard output and nothing else does; errors are one line on standard error that
//! says what to do next ([`Failure`]). The exit status is 0 when it was done, 1 when it failed and
//! 2 when it could be refused without asking a server.
//!
//! # The cluster in one process
//! [`Cluster`](cluster::Cluster) is metastores and bookies on loopback, with real sockets,
//! files and certificates. `demo`, `bench`, `start cluster` and the examples stand on it, and so
//! may tests. The examples are the shortest way to see the client library at work:
//! `append_and_read` and `take_over`.
//!
//! # Not here
//! No protocol, no storage, no retries: whatever the command can do a program can do with the
//! client library. No daemon in the background: whoever starts one keeps it running.

pub mod cluster;
pub mod commands;

mod bench;
mod config;
mod entries;
mod failure;
mod output;

pub use failure::Failure;
