//! The bookie as a whole: from its directories to its registration.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, FutureExt, select_all};
use inkfast::catalog::{Catalog, Cookie};
use inkfast_metastore::{DEFAULT_TIMEOUT, Metastore, RemoteMetastore};
use inkfast_protocol::BookieId;
use inkfast_wire::{Endpoint, Identity, Net, Role, Server, check_reachable, serve};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::Error;
use crate::collection;
use crate::directories::{self, Claimed};
use crate::executor::Executor;
use crate::identity::BookieIdentity;
use crate::memory::{DEFAULT_BYTES, LEAST_BYTES};
use crate::registration::Registrar;
use crate::service::BookieService;
use crate::space::MinFree;
use crate::store::{compaction, scrub};
use crate::stores::{Opened, Stores};

/// Who may open streams to a bookie.
const CALLERS: &[Role] = &[Role::Client, Role::Bookie, Role::Admin];
/// How fast each directory is verified if nothing is said.
const SCRUB_BYTES_PER_SECOND: u64 = 8 << 20;
/// How long a stopping bookie waits for each of its parts.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What a bookie needs to know to run.
#[derive(Clone)]
pub struct Config {
    /// The data directories, in any order; they are made if they are missing. Empty ones become a
    /// new bookie, or are added to that of the others.
    pub dirs: Vec<PathBuf>,
    /// Writers are refused when a directory has less room; if nothing is said, less than 5 % of its
    /// file system and less than 16 GiB.
    pub min_free: Option<MinFree>,
    /// How many bytes of memory it may take for entries that wait, for what was written last, and
    /// for its indexes; if nothing is said, 256 MiB, and never less than 32 MiB. Connections and
    /// recent entries take more.
    pub memory_bytes: Option<u64>,
    /// How fast the log of each directory is verified in the background, in bytes a second; 8 MiB if
    /// nothing is said, and with 0 it is not.
    pub scrub_rate: Option<u64>,
    /// Where to listen, `host:port`; port 0 lets the system choose.
    pub listen: String,
    /// The addresses under which clients reach the bookie; if there are none, where it listens.
    pub advertise: Vec<String>,
    /// The addresses of the metastore's members.
    pub metastore: Vec<String>,
    /// Its certificate.
    pub identity: Identity,
    /// The rack that it stands in, for placement.
    pub rack: Option<String>,
    /// Where sockets come from.
    pub net: Net,
}

/// A running bookie. Dropping it breaks it off, as a kill would; what it has acknowledged is on
/// disk.
pub struct Bookie {
    id: BookieId,
    address: SocketAddr,
    endpoint: Endpoint,
    metastore: Endpoint,
    stores: Vec<Part>,
    /// What keeps the stores in order.
    upkeep: Vec<Part>,
    service: Part,
    registrar: Part,
    stop_registrar: oneshot::Sender<()>,
}

impl Bookie {
    /// Starts a bookie, and returns when it serves: its logs are replayed, and it is registered.
    ///
    /// A directory that cannot be used is left out, if there is another; no new ledgers are placed
    /// here then. Fails if none can be used; if one is of something else, of another cluster or
    /// bookie, or in use; if it cannot listen; or if no metastore answers within 10 s.
    pub fn start(config: Config) -> BoxFuture<'static, Result<Self, Error>> {
        // Boxed, or every crate that awaits it would compile the whole bookie once more.
        Self::start_config(config).boxed()
    }

    async fn start_config(config: Config) -> Result<Self, Error> {
        check_reachable(&config.listen, !config.advertise.is_empty())?;
        let metastore = Endpoint::client(&config.net, &config.identity, Uuid::new_v4(), None)?;
        let remote = RemoteMetastore::new(&metastore, config.metastore.clone(), DEFAULT_TIMEOUT);
        let metastore_store: Arc<dyn Metastore> = Arc::new(remote);
        let Claimed { bookie: identity, sound, broken } =
            identify(&config, &metastore_store).await?;
        let memory = config.memory_bytes.unwrap_or(DEFAULT_BYTES).max(LEAST_BYTES);
        let Opened { stores, tasks, watching } =
            Stores::open(sound, broken, (config.min_free, memory), Executor::Threads).await?;
        let server = Server {
            listen: config.listen.clone(),
            instance: identity.id.0,
            cluster: identity.cluster,
            reset_key: identity.reset_key,
            roles: CALLERS,
        };
        let endpoint = Endpoint::server(&config.net, &config.identity, server).await?;
        let address = endpoint.local_addr();
        let (space, read_only) = (stores.space(), stores.read_only());
        let catalog = Catalog::new(Arc::clone(&metastore_store));
        let upkeep = keep_up(&stores, catalog, identity.id, config.scrub_rate);
        let service = tokio::spawn(serve(endpoint.clone(), BookieService::new(stores)));
        let registrar = Registrar {
            store: metastore_store,
            bookie: identity.id,
            addresses: match config.advertise.is_empty() {
                true => vec![address.to_string()],
                false => config.advertise.clone(),
            },
            rack: config.rack.clone(),
            space,
            read_only,
        };
        let (registered, is_registered) = oneshot::channel();
        let (stop_registrar, stop) = oneshot::channel();
        let registrar = tokio::spawn(registrar.run(registered, stop));
        let stores = tasks.into_iter().map(|task| Part { name: "store", task });
        let watching = Part { name: "watch over its room", task: watching };
        let started = Self {
            id: identity.id,
            address,
            endpoint,
            metastore,
            stores: stores.chain([watching]).collect(),
            upkeep,
            service: Part { name: "service", task: service },
            registrar: Part { name: "registration", task: registrar },
            stop_registrar,
        };
        if !matches!(tokio::time::timeout(DEFAULT_TIMEOUT, is_registered).await, Ok(Ok(()))) {
            started.stop().await;
            return Err(Error::NotRegistered(DEFAULT_TIMEOUT));
        }
        Ok(started)
    }

    /// Returns the address that it listens on.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its id.
    pub const fn id(&self) -> BookieId {
        self.id
    }

    /// Waits until the bookie cannot go on, which only a bug makes it do. A disk that fails does
    /// not: what is on it is still served.
    pub async fn failed(&mut self) -> Error {
        let parts = self.stores.iter_mut().chain(&mut self.upkeep);
        let parts = parts.chain([&mut self.service, &mut self.registrar]);
        let ends = parts.map(|part| {
            Box::pin(async {
                let _ = (&mut part.task).await;
                part.name
            })
        });
        Error::Ended(select_all(ends).await.0)
    }

    /// Stops: takes its registration back, tells its clients, and writes what was let in.
    pub async fn stop(self) {
        // A part that has ended already is stopped.
        let _ = self.stop_registrar.send(());
        self.registrar.finish().await;
        self.endpoint.close("the bookie stops").await;
        self.service.finish().await;
        // They have handles to the stores, which end with the last.
        drop(self.upkeep);
        for part in self.stores {
            part.finish().await;
        }
        self.metastore.close("the bookie stops").await;
    }
}

/// One of the bookie's tasks. It is broken off when it is dropped.
struct Part {
    name: &'static str,
    task: JoinHandle<()>,
}

impl Part {
    /// Waits until the task has ended, for as long as a stopping bookie may.
    async fn finish(mut self) {
        if tokio::time::timeout(STOP_DEADLINE, &mut self.task).await.is_err() {
            tracing::warn!(part = self.name, "did not stop in time");
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts what keeps the stores in order.
fn keep_up(
    stores: &Stores,
    catalog: Catalog,
    bookie: BookieId,
    scrub_rate: Option<u64>,
) -> Vec<Part> {
    let collecting = tokio::spawn(collection::run(catalog, bookie, stores.clone()));
    let mut parts = vec![Part { name: "garbage collection", task: collecting }];
    for store in stores.all() {
        let compacting = tokio::spawn(compaction::run(store.clone()));
        parts.push(Part { name: "compaction", task: compacting });
        if let Some(rate) = NonZeroU64::new(scrub_rate.unwrap_or(SCRUB_BYTES_PER_SECOND)) {
            let scrubbing = tokio::spawn(scrub::run(store.clone(), rate));
            parts.push(Part { name: "scrub", task: scrubbing });
        }
    }
    parts
}

/// Finds out whose directories they are, or formats them, and makes sure that the bookie may serve
/// here.
async fn identify(config: &Config, store: &Arc<dyn Metastore>) -> Result<Claimed, Error> {
    // First, since it is certain at once if they are in use.
    let dirs = config.dirs.clone();
    let given = Executor::Threads.run(move || directories::open(&dirs)).await?;
    let cluster = store.cluster().await.map_err(inkfast::Error::from)?;
    let name = config.identity.name().name.clone();
    let own = name.clone();
    let claim = move || directories::claim(given, cluster, &own);
    let claimed = Executor::Threads.run(claim).await?;
    let BookieIdentity { id, .. } = claimed.bookie;
    let catalog = Catalog::new(Arc::clone(store));
    if catalog.cookie(id).await?.is_none() {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let formatted_at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        catalog.introduce(id, &Cookie { name, formatted_at_ms }).await?;
    }
    Ok(claimed)
}
