//! The bookie as a whole: from its directory to its registration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, FutureExt};
use inkfast::catalog::{Catalog, Cookie};
use inkfast_metastore::{DEFAULT_TIMEOUT, Metastore, RemoteMetastore};
use inkfast_protocol::BookieId;
use inkfast_wire::{Endpoint, Identity, Net, Role, Server, check_reachable, serve};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::Error;
use crate::disk::{Disk, OsDisk};
use crate::executor::Executor;
use crate::identity::{self, BookieIdentity};
use crate::registration::Registrar;
use crate::service::BookieService;
use crate::store::Store;

/// Who may open streams to a bookie.
const CALLERS: &[Role] = &[Role::Client, Role::Bookie, Role::Admin];
/// How long a stopping bookie waits for each of its parts.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What a bookie needs to know to run.
#[derive(Clone)]
pub struct Config {
    /// The data directory; it is made if it is missing. An empty one becomes a new bookie.
    pub dir: PathBuf,
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
    store: Part,
    service: Part,
    registrar: Part,
    stop_registrar: oneshot::Sender<()>,
}

impl Bookie {
    /// Starts a bookie, and returns when it serves: its log is replayed, and it is registered.
    ///
    /// Fails if the directory is of something else, of another cluster or bookie, or in use; if
    /// it cannot listen; or if no metastore answers within 10 s.
    pub fn start(config: Config) -> BoxFuture<'static, Result<Self, Error>> {
        // Boxed, or every crate that awaits it would compile the whole bookie once more.
        Self::start_config(config).boxed()
    }

    async fn start_config(config: Config) -> Result<Self, Error> {
        check_reachable(&config.listen, !config.advertise.is_empty())?;
        let disk: Arc<dyn Disk> = Arc::new(OsDisk::open(&config.dir).map_err(|error| {
            Error::Directory { dir: config.dir.clone(), why: error.to_string() }
        })?);
        let metastore = Endpoint::client(&config.net, &config.identity, Uuid::new_v4(), None)?;
        let remote = RemoteMetastore::new(&metastore, config.metastore.clone(), DEFAULT_TIMEOUT);
        let metastore_store: Arc<dyn Metastore> = Arc::new(remote);
        let identity = identify(&config, Arc::clone(&disk), &metastore_store).await?;
        let (store, replayed, store_task) =
            Store::open(disk, identity.log, Executor::Threads).await?;
        if let Some(cut) = replayed.cut {
            tracing::info!(?cut, "cut what was not acknowledged when the bookie last stopped");
        }
        for damage in &replayed.damages {
            tracing::error!(%damage, "the log is damaged: writers are refused, and what is not found is unknown");
        }
        let server = Server {
            listen: config.listen.clone(),
            instance: identity.id.0,
            cluster: identity.cluster,
            reset_key: identity.reset_key,
            roles: CALLERS,
        };
        let endpoint = Endpoint::server(&config.net, &config.identity, server).await?;
        let address = endpoint.local_addr();
        let read_only = store.read_only();
        let service = tokio::spawn(serve(endpoint.clone(), BookieService::new(store)));
        let registrar = Registrar {
            store: metastore_store,
            bookie: identity.id,
            addresses: match config.advertise.is_empty() {
                true => vec![address.to_string()],
                false => config.advertise.clone(),
            },
            rack: config.rack.clone(),
            dir: config.dir.clone(),
            read_only,
        };
        let (registered, is_registered) = oneshot::channel();
        let (stop_registrar, stop) = oneshot::channel();
        let registrar = tokio::spawn(registrar.run(registered, stop));
        let started = Self {
            id: identity.id,
            address,
            endpoint,
            metastore,
            store: Part { name: "store", task: store_task },
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
        let ended = tokio::select! {
            _ = &mut self.store.task => &self.store,
            _ = &mut self.service.task => &self.service,
            _ = &mut self.registrar.task => &self.registrar,
        };
        Error::Ended(ended.name)
    }

    /// Stops: takes its registration back, tells its clients, and writes what was let in.
    pub async fn stop(self) {
        // A part that has ended already is stopped.
        let _ = self.stop_registrar.send(());
        self.registrar.finish().await;
        self.endpoint.close("the bookie stops").await;
        self.service.finish().await;
        self.store.finish().await;
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

/// Finds out whose directory it is, or formats it, and makes sure that it may serve here.
async fn identify(
    config: &Config,
    disk: Arc<dyn Disk>,
    store: &Arc<dyn Metastore>,
) -> Result<BookieIdentity, Error> {
    let cluster = store.cluster().await.map_err(inkfast::Error::from)?;
    let name = config.identity.name().name.clone();
    let dir = config.dir.clone();
    let (loading, in_dir) = (Arc::clone(&disk), dir.clone());
    let loaded = Executor::Threads.run(move || identity::load(&*loading, &in_dir)).await?;
    let identity = match loaded {
        Some(identity) => identity,
        None => {
            let mut reset_key = [0; 64];
            for part in reset_key.chunks_mut(16) {
                part.copy_from_slice(Uuid::new_v4().as_bytes());
            }
            let id = BookieId(Uuid::new_v4());
            let new =
                BookieIdentity { id, cluster, name: name.clone(), log: Uuid::new_v4(), reset_key };
            let (made, dir) = (new.clone(), dir.clone());
            Executor::Threads.run(move || identity::format(&*disk, &dir, &made)).await?;
            tracing::info!(bookie = %new.id, "formatted a new bookie");
            new
        }
    };
    let refused = |why: String| Error::Directory { dir: dir.clone(), why };
    if identity.cluster != cluster {
        return Err(refused(format!(
            "it belongs to cluster {}, and the metastore is that of cluster {cluster}; give the \
             directory or the metastore that belong together",
            identity.cluster
        )));
    }
    if identity.name != name {
        return Err(refused(format!(
            "it belongs to the bookie named '{}', and this process's certificate says '{name}'",
            identity.name
        )));
    }
    let catalog = Catalog::new(Arc::clone(store));
    if catalog.cookie(identity.id).await?.is_none() {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let formatted_at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        catalog.introduce(identity.id, &Cookie { name, formatted_at_ms }).await?;
    }
    Ok(identity)
}
