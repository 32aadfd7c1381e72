//! The metastore daemon of Inkfast.
//!
//! [`MetastoreServer`] is one member of a [metastore](inkfast_metastore): it keeps the state in a
//! directory, agrees with the other members on every change, and answers requests over the wire.
//! What it promises to its clients is said there; here is how the promises are kept.
//!
//! *A request* arrives as a frame on a stream (`service`). Only the member that leads answers it;
//! another says who does, and the client goes there. A change becomes a command and is proposed
//! (`consensus`): the leader writes it to its log and sends it to the others, and when a majority
//! has it on disk, every member applies it, in the same order, and the leader answers. What is
//! proposed while a sync runs shares the next one. A read waits until a majority has confirmed that
//! the leader still leads, one round for all reads that came meanwhile, and is then a read
//! transaction of the leader's own state. A *stale* read is answered by whoever is asked.
//!
//! *On disk* (`directory`, `store`) are two redb files. `log.redb` has what is this member's own:
//! its id, its vote, and the log; it is synced before anything is answered that rests on it.
//! `state.redb` has the rows that commands change, and up to which entry. It is synced only now and
//! then, and before the log is cut off behind it: what a crash takes back is applied again.
//! Opening after a kill walks the log, which is kept short, and not the state.
//!
//! *Snapshots* (`snapshot`) are one read transaction of the state, sent in pieces while changes go
//! on. A member that is new, or was away for long, gets one and then the log after it. A backup
//! (`backup`) is the same, in a file.
//!
//! *Leases.* That a lease is, and how long it lasts, is state. When its holder was last heard of is
//! in the leader's memory only. When another member begins to lead, or this one has stood still,
//! every lease has its whole TTL again, and its holder time to be heard. A heartbeat costs no entry
//! of the log: the leader only makes sure that it still leads. When a lease has run out, the leader
//! proposes the command that ends it, like any other.
//!
//! *Watches.* What commands have changed is handed to the watches of every member, and remembered
//! in memory for a while. A watch is a stream on which its caller asks the leader for the next
//! changes again and again; when another member leads, it goes on there after the last revision
//! that it knows.
//!
//! *Members.* A member is its directory: an id that was made with it, which the others verify with
//! every connection. So a directory that was lost comes back as another member, and never votes a
//! second time in the name of the first. A new member follows first, and votes when it has caught
//! up; one change of the members is made at a time, by joint consensus.
//!
//! *An error of the disk* ends this member: what could not be synced is not tried again. It says so
//! through [`MetastoreServer::failed`]; the others go on.
//!
//! # What is not here
//!
//! No encryption at rest. No quota by client or role. No history: only the last value of a key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use inkfast_wire::{Endpoint, Identity, Net, Role, Server, check_reachable, serve};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use uuid::Uuid;

mod backup;
mod consensus;
mod database;
mod directory;
mod error;
mod joining;
mod member;
mod rows;
mod service;
#[cfg(test)]
mod simulation;
mod snapshot;
mod storage;
mod store;
#[cfg(test)]
mod test_commands;
#[cfg(test)]
mod test_disk;

pub use backup::{BackupSummary, RestoreSummary, backup_directory, restore};
use consensus::Consensus;
use consensus::network::WirePeers;
pub use error::Error;
use service::{Front, Me};
use storage::Storage;

/// How long a stop waits for the last commit.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a metastore keeps its state and where it listens.
#[derive(Clone)]
pub struct Config {
    /// The directory; it is made if it is missing.
    pub dir: PathBuf,
    /// The address to listen on, `host:port`; port 0 takes any that is free.
    pub listen: String,
    /// Where clients and other members reach it, if that is not where it listens. It has to be said
    /// of one that listens on every address (`0.0.0.0`).
    pub advertise: Option<String>,
    /// Members of the cluster that a new member joins. Without one, an empty directory becomes the
    /// first member of a new cluster. One that ever was a voter needs none, and does not join again
    /// after it was removed.
    pub join: Vec<String>,
    /// The certificate, of the role `metastore`.
    pub identity: Identity,
    /// Where sockets come from.
    pub net: Net,
}

/// A member of a metastore, which runs until it is stopped or dropped. Dropped, it breaks off: what
/// was answered is on disk, and the directory is free some moments later.
pub struct MetastoreServer {
    me: Me,
    endpoint: Endpoint,
    address: SocketAddr,
    storage: Storage,
    consensus: Consensus,
    /// Answering callers, ending leases, telling a new address.
    serving: JoinSet<()>,
}

impl MetastoreServer {
    /// Starts a member, and returns when it answers: a new one that joins, when it is a voter;
    /// another at once, though there may be no leader yet.
    ///
    /// Refuses a directory of something else, of a newer format, or in use, and an address in use
    /// or that nobody can reach. Fails if no member at the addresses to join answers within a
    /// minute, or if it has not learned the state within some ten minutes; started again, it goes
    /// on with what it has.
    pub fn start(config: Config) -> BoxFuture<'static, Result<Self, Error>> {
        // Boxed, or every crate that awaits it would compile the whole server once more.
        Self::start_config(config).boxed()
    }

    async fn start_config(config: Config) -> Result<Self, Error> {
        check_reachable(&config.listen, config.advertise.is_some())?;
        let beginning = joining::beginning(&config).await?;
        let dir = config.dir;
        let opened = spawn_blocking(move || Storage::open_directory(&dir, beginning)).await;
        let storage = opened.map_err(rows::state_error)??;
        let member = storage.member.clone();
        let server = Server {
            listen: config.listen,
            instance: member.id,
            cluster: member.cluster,
            reset_key: member.reset_key,
            roles: &[Role::Client, Role::Bookie, Role::Metastore, Role::Admin],
        };
        let endpoint = Endpoint::server(&config.net, &config.identity, server).await?;
        let address = endpoint.local_addr();
        let advertised = config.advertise.unwrap_or_else(|| address.to_string());
        let me = Me { member, address: advertised };
        let peers = Arc::new(WirePeers::new(endpoint.clone()));
        let (front, consensus) = Front::start(me.clone(), &storage, peers).await?;
        let mut serving = JoinSet::new();
        serving.spawn(front.clone().expire_leases());
        serving.spawn(joining::announce(me.clone(), endpoint.clone(), consensus.clone()));
        serving.spawn(serve(endpoint.clone(), front));
        tracing::info!(%address, cluster = %me.member.cluster, "the metastore serves");
        joining::join(&me, &endpoint, &storage, config.join).await?;
        Ok(Self { me, endpoint, address, storage, consensus, serving })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the id of its cluster.
    pub fn cluster(&self) -> Uuid {
        self.me.member.cluster
    }

    /// Returns the id of this member.
    pub fn id(&self) -> Uuid {
        self.me.member.id
    }

    /// Waits until the member cannot go on, for its disk has failed, and says how. It should end.
    pub fn failed(&self) -> BoxFuture<'_, Error> {
        self.consensus.failed().map(Error::from).boxed()
    }

    /// Stops: lets another member lead, tells the callers, and closes the files. The directory is
    /// free when it returns.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        self.stop_parts().boxed()
    }

    async fn stop_parts(mut self) {
        if timeout(STOP_TIMEOUT, self.consensus.stop()).await.is_err() {
            tracing::warn!("the consensus has not ended within {STOP_TIMEOUT:?}");
        }
        self.endpoint.close("the metastore is stopping").await;
        self.serving.shutdown().await;
        self.storage.close().await;
    }
}
