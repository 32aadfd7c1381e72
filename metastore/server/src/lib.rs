//! The metastore daemon of Inkfast.
//!
//! [`MetastoreServer`] keeps the state of a [metastore](inkfast_metastore) in a directory and
//! answers its requests over the wire. What it promises to its clients is said there; here is how
//! the promises are kept by one process with one disk.
//!
//! *A request* arrives as a frame on a stream (`service`). A read is a read transaction of redb,
//! which sees everything committed before it. A change becomes a command and waits in a queue
//! (`commits`) for the one task that writes: it takes all that waits, applies it in one write
//! transaction of redb, syncs, and only then answers. What queues meanwhile is the next batch, so
//! many clients share a sync and a single one does not wait for others.
//!
//! *On disk* (`store`, `directory`) is one redb file with two tables. `state` holds the rows that
//! commands change, revision and remembered answers among them, so a restart goes on exactly where
//! the last commit ended. `meta` holds what is this file's own: the format's version, the
//! cluster's id, this member's id and the key of QUIC's resets, made when the file was. Opening
//! after a kill does not walk the file.
//!
//! *Leases.* That a lease is, and how long it lasts, is state. When its holder was last heard of is
//! known in memory only. After a restart every lease has its whole TTL, and the holder time to
//! be heard. When one has run out, the daemon queues the command that ends it, like any other.
//!
//! *Watches.* What a commit changed is handed to the watches once it is on disk, before anybody is
//! answered, and remembered in memory for a while. A watch is a stream on which its caller asks for
//! the next changes again and again, so what nobody takes stays where it is, for all watches once.
//! Nothing from before a start is remembered: a watch that has seen all until then goes on, another
//! is told that it cannot.
//!
//! *An error of the disk* ends all writing: what could not be synced is not tried again. The daemon
//! refuses changes from then on and says so through [`MetastoreServer::failed`]; what was answered
//! is on disk, and a restart finds it.
//!
//! # What is not here
//!
//! No replication: one process, one copy. No backup. No quota by client or role.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use inkfast_metastore::leases::Leases;
use inkfast_metastore::rows::StateError;
use inkfast_metastore::state;
use inkfast_metastore::watches::Watches;
use inkfast_wire::{Endpoint, Identity, Net, Role, Server, serve};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

mod backup;
mod commits;
mod consensus;
mod database;
mod directory;
mod error;
mod member;
mod rows;
mod service;
mod snapshot;
mod storage;
mod store;
#[cfg(test)]
mod test_commands;
#[cfg(test)]
mod test_disk;

pub use backup::{BackupSummary, RestoreSummary, backup_directory, restore};
use commits::Commits;
pub use database::FORMAT;
pub use directory::Files;
pub use error::Error;
pub use member::Member;
use service::Front;
pub use storage::{Beginning, Storage};
pub use store::Executor;
use store::Store;

/// How long a stop waits for the last commit.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a metastore keeps its state and where it listens.
#[derive(Clone)]
pub struct Config {
    /// The directory; it is made if it is missing.
    pub dir: PathBuf,
    /// The address to listen on, `host:port`; port 0 takes any that is free.
    pub listen: String,
    /// The certificate, of the role `metastore`.
    pub identity: Identity,
    /// Where sockets come from.
    pub net: Net,
}

/// A metastore that runs until it is stopped or dropped. Dropped, it breaks off: what was answered
/// is on disk, and the directory is free some moments later.
pub struct MetastoreServer {
    endpoint: Endpoint,
    address: SocketAddr,
    storage: Storage,
    /// Answering callers, and ending leases.
    serving: JoinSet<()>,
    committing: JoinHandle<()>,
    failure: watch::Receiver<Option<StateError>>,
}

impl MetastoreServer {
    /// Starts a metastore, and returns when it is able to answer.
    ///
    /// An empty directory becomes the first member of a new cluster. Refuses a directory of
    /// something else, of a newer format, or in use, and an address in use.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let dir = config.dir;
        let storage =
            tokio::task::spawn_blocking(move || Storage::open_directory(&dir, Beginning::Found))
                .await
                .map_err(rows::state_error)??;
        Self::start_on(storage, &config.listen, &config.identity, &config.net).await
    }

    /// Starts a metastore on a store that is open already.
    pub async fn start_on(
        storage: Storage,
        listen: &str,
        identity: &Identity,
        net: &Net,
    ) -> Result<Self, Error> {
        let Storage { member, store, .. } = storage.clone();
        let server = Server {
            listen: listen.into(),
            instance: member.id,
            cluster: member.cluster,
            reset_key: member.reset_key,
            roles: &[Role::Client, Role::Bookie, Role::Metastore, Role::Admin],
        };
        let endpoint = Endpoint::server(net, identity, server).await?;
        let address = endpoint.local_addr();
        let leases = Arc::new(Mutex::new(all_leases(&store).await?));
        let (failed, failure) = watch::channel(None);
        let watches = Watches::new(store.read(state::revision).await?);
        let (commits, committing) =
            Commits::start(store.clone(), leases.clone(), watches.clone(), failed);
        let front = Front::new(store.clone(), commits, leases, watches);
        let mut serving = JoinSet::new();
        serving.spawn(front.clone().expire_leases());
        serving.spawn(serve(endpoint.clone(), front));
        tracing::info!(%address, cluster = %member.cluster, "the metastore serves");
        Ok(Self { endpoint, address, storage, serving, committing, failure })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the id of its cluster.
    pub fn cluster(&self) -> Uuid {
        self.storage.member.cluster
    }

    /// Waits until the disk fails, and says how. The daemon cannot write then and should end.
    pub async fn failed(&self) -> Error {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.map(|failed| failed.clone()) {
            Ok(Some(error)) => error.into(),
            _ => StateError("the task that commits has ended".into()).into(),
        }
    }

    /// Stops: tells the callers, commits what was queued, and closes the file. The directory is
    /// free when it returns.
    pub async fn stop(mut self) {
        self.endpoint.close("the metastore is stopping").await;
        self.serving.shutdown().await;
        if timeout(STOP_TIMEOUT, self.committing).await.is_err() {
            tracing::warn!("the last commit has not ended within {STOP_TIMEOUT:?}");
        }
        self.storage.close().await;
    }
}

/// Gives every lease of the state its whole TTL from now.
async fn all_leases(store: &Store) -> Result<Leases, StateError> {
    let now = Instant::now();
    let follow_all = move |rows: &rows::ReadRows| {
        let mut leases = Leases::default();
        for lease in state::leases(rows)? {
            leases.follow(rows, lease, now)?;
        }
        Ok(leases)
    };
    store.read(follow_all).await
}
