//! Loads etcd as `inkfast bench metastore` loads a metastore, prints what was measured in the same
//! form, and puts the figures of both into one table. `scripts/compare-etcd` uses it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

mod etcd;
mod load;
mod proto;
mod table;

/// What can go wrong, in words: whoever reads it runs a script.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Loads etcd and compares it
#[derive(Parser)]
enum Command {
    /// Loads etcd and prints the figures as JSON
    Run(load::Load),
    /// Prints free ports of the loopback
    Ports {
        /// How many
        count: usize,
    },
    /// Prints the medians of a directory's figures: those of `inkfast-N.json` and `etcd-N.json`
    /// for N clients
    Table {
        /// The directory
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Run(load) => load::run(load),
        Command::Ports { count } => ports(count),
        Command::Table { dir } => table::print(&dir),
    };
    done.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn ports(count: usize) -> Result<(), Error> {
    // All are held until all are known, so that none comes twice.
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0"));
    for listener in listeners.collect::<Result<Vec<_>, _>>()? {
        println!("{}", listener.local_addr()?.port());
    }
    Ok(())
}
