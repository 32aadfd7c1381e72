//! What can be asked for on the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use inkfast::{CreateOptions, Replication};

use crate::{Failure, bench, config};

mod certs;
mod demo;
mod doctor;
mod ledger;
mod metastore;
mod start;

/// Inkfast: a replicated ledger store
///
/// A ledger is an append-only sequence of entries with one writer, kept on several bookies. See it
/// at work with `inkfast demo`.
#[derive(Parser)]
#[command(name = "inkfast", version)]
pub struct Arguments {
    /// The settings: client.toml for `ledger`, `metastore` and `bench`, which INKFAST_CONFIG may name as well,
    /// or the daemon's own for `start metastore` and `start bookie`
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a file to a ledger, lets the writer die, recovers the ledger and compares
    Demo(demo::Demo),
    /// Starts daemons, which run until SIGTERM or Ctrl-C
    #[command(subcommand)]
    Start(start::Start),
    /// Makes the certificates of a cluster
    #[command(subcommand)]
    Certs(certs::Certs),
    /// Writes, reads, recovers, shows, lists and deletes ledgers
    #[command(subcommand)]
    Ledger(ledger::Ledger),
    /// Shows and changes the members of the metastore, backs it up and restores it
    #[command(subcommand)]
    Metastore(metastore::Metastore),
    /// Looks at the disk of a bookie that does not run
    #[command(subcommand)]
    Doctor(doctor::Doctor),
    /// Measures appends, reads or the metastore, on a cluster of its own where none is configured, or
    /// the machine
    #[command(subcommand)]
    Bench(bench::Bench),
}

impl Arguments {
    /// Says whether the command runs until it is told to stop.
    pub const fn is_daemon(&self) -> bool {
        matches!(self.command, Command::Start(_))
    }

    /// Says whether the command is one server.
    pub const fn is_server(&self) -> bool {
        matches!(self.command, Command::Start(start::Start::Metastore(_) | start::Start::Bookie(_)))
    }

    /// Does what was asked for.
    pub async fn run(self) -> Result<(), Failure> {
        let config = self.config.as_deref();
        match self.command {
            Command::Demo(demo) => {
                refuse(config.is_some(), "demo")?;
                Box::pin(demo.run()).await
            }
            Command::Start(start) => Box::pin(start.run(config)).await,
            Command::Certs(certs) => {
                refuse(config.is_some(), "certs")?;
                certs.run()
            }
            Command::Ledger(ledger) => {
                ledger.check()?;
                let client = config::connect(config).await?;
                Box::pin(ledger.run(&client)).await
            }
            Command::Metastore(metastore) => Box::pin(metastore.run(config)).await,
            Command::Doctor(doctor) => {
                refuse(config.is_some(), "doctor")?;
                Box::pin(doctor.run()).await
            }
            Command::Bench(bench) => Box::pin(bench.run(config)).await,
        }
    }
}

/// Refuses settings where they would have no effect.
fn refuse(config: bool, command: &str) -> Result<(), Failure> {
    if config {
        return Err(Failure::Usage(format!("`{command}` has no settings: leave --config out")));
    }
    Ok(())
}

/// How the entries of a new ledger are spread.
#[derive(Clone, clap::Args)]
pub(crate) struct Spread {
    /// Over how many bookies the ledger is spread
    #[arg(long, value_name = "E", default_value_t = Replication::DEFAULT.ensemble())]
    ensemble: usize,
    /// How many of them each entry is sent to
    #[arg(long, value_name = "QW", default_value_t = Replication::DEFAULT.write_quorum())]
    write_quorum: usize,
    /// How many of these must have an entry on disk before it is confirmed
    #[arg(long, value_name = "QA", default_value_t = Replication::DEFAULT.ack_quorum())]
    ack_quorum: usize,
    /// Fails if not every entry can go to bookies of two racks, which is only preferred otherwise
    #[arg(long)]
    strict_racks: bool,
}

impl Spread {
    /// Checks how the numbers relate.
    pub(crate) fn replication(&self) -> Result<Replication, Failure> {
        Replication::new(self.ensemble, self.write_quorum, self.ack_quorum).map_err(Failure::Usage)
    }

    /// Returns the options of a new ledger.
    pub(crate) fn options(&self) -> Result<CreateOptions, Failure> {
        Ok(CreateOptions {
            replication: self.replication()?,
            strict_racks: self.strict_racks,
            ..CreateOptions::default()
        })
    }
}
