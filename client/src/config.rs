//! Where the cluster is, who we are, and how long we wait.

use std::time::Duration;

use inkfast_wire::{Identity, Net};

/// What a client needs to know to reach a cluster.
#[derive(Clone)]
pub struct Config {
    /// The addresses of the metastore's members, each `host:port`.
    pub metastore: Vec<String>,
    /// Our certificate; its cluster is the one that we talk to.
    pub identity: Identity,
    /// Where sockets come from.
    pub net: Net,
    /// How long we wait for what.
    pub deadlines: Deadlines,
}

impl Config {
    /// Makes a configuration with the operating system's sockets and the usual deadlines.
    pub fn new(metastore: Vec<String>, identity: Identity) -> Self {
        Self { metastore, identity, net: Net::Os, deadlines: Deadlines::default() }
    }
}

/// How long a client waits before it counts something as failed.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// An add or a fence that is not answered: the bookie counts as hung. 3 s.
    pub add: Duration,
    /// A read that is not answered: another copy is read. 1 s.
    pub read: Duration,
    /// A request to the metastore, retries on all its members included. 10 s.
    pub metastore: Duration,
    /// Appends of which none is confirmed, for want of bookies: they fail. 30 s.
    pub quorum: Duration,
    /// The close of a ledger by its writer, with all its questions to the metastore. 60 s.
    pub close: Duration,
    /// A recovery, which may then be called again. 60 s.
    pub recovery: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            add: Duration::from_secs(3),
            read: Duration::from_secs(1),
            metastore: Duration::from_secs(10),
            quorum: Duration::from_secs(30),
            close: Duration::from_secs(60),
            recovery: Duration::from_secs(60),
        }
    }
}
