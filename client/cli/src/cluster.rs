//! A cluster in one process: some metastores and some bookies on loopback.
//!
//! Its directory holds all of it: the certificates, `client.toml` for those who use it,
//! `cluster.toml` with its addresses, and a directory for each daemon.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures::future::{BoxFuture, FutureExt, join_all, pending, select_all, try_join_all};
use inkfast::Client;
use inkfast_bookie::{Bookie, MinFree};
use inkfast_metastore_server::MetastoreServer;
use inkfast_wire::{Authority, Identity, IdentityError, Net, Role};
use tempfile::TempDir;

mod files;

use files::{Addresses, CLIENT_FILE, LISTEN_ANYWHERE};

/// How many bookies a cluster has unless one says otherwise.
pub const BOOKIES_DEFAULT: usize = 3;
/// The most bookies in one process.
pub const BOOKIES_MAX: usize = 64;
/// How many metastores a cluster has unless one says otherwise.
pub const METASTORES_DEFAULT: usize = 1;

/// Something can be tried out on a disk that is rather full, too.
const MIN_FREE: MinFree = MinFree::Bytes(256 << 20);
/// The cluster's name in its certificates.
const NAME: &str = "inkfast";

/// A running cluster. It runs until [`stop`](Self::stop): one that is dropped may go on, without
/// its temporary directory, until the runtime ends.
pub struct Cluster {
    metastores: Vec<MetastoreSlot>,
    bookies: Vec<BookieSlot>,
    dir: PathBuf,
    /// The directory, if it is to vanish with the cluster. The last field: it outlives the daemons.
    _temporary: Option<TempDir>,
}

/// A metastore, or where there is one to start.
struct MetastoreSlot {
    config: inkfast_metastore_server::Config,
    address: SocketAddr,
    metastore: Option<MetastoreServer>,
}

/// A bookie, or where there is one to start.
struct BookieSlot {
    config: inkfast_bookie::Config,
    bookie: Option<Bookie>,
}

impl Cluster {
    /// Starts the cluster of a directory, or makes it there, and returns when all of it serves.
    ///
    /// A cluster that was there before has the addresses and the data that it had. It also has
    /// its bookies and its metastores, and gets more if more are wanted; fewer are refused. Where
    /// nothing is said about their number, a new cluster has [`BOOKIES_DEFAULT`] and
    /// [`METASTORES_DEFAULT`].
    pub fn start(
        dir: &Path,
        bookies: Option<usize>,
        metastores: Option<usize>,
    ) -> BoxFuture<'_, Result<Self, Error>> {
        Self::start_in(dir, bookies, metastores, None).boxed()
    }

    /// Starts a cluster in a temporary directory, which vanishes with it.
    pub async fn temporary(bookies: usize, metastores: usize) -> Result<Self, Error> {
        let temporary = TempDir::with_prefix("inkfast-")
            .map_err(|error| Error::file(&std::env::temp_dir(), &error))?;
        let dir = temporary.path().to_owned();
        Self::start_in(&dir, Some(bookies), Some(metastores), Some(temporary)).await
    }

    /// Connects a client. Each call makes another one, with connections of its own.
    pub async fn client(&self) -> Result<Client, Error> {
        Ok(Client::connect(self.client_config()?).await?)
    }

    /// Returns what a client of the cluster has to know.
    pub fn client_config(&self) -> Result<inkfast::Config, Error> {
        let identity = Identity::load(&self.dir, Role::Client, None)?;
        let metastores = self.metastore_addresses().map(|address| address.to_string());
        Ok(inkfast::Config::new(metastores.collect(), identity))
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the file with a client's settings.
    pub fn client_file(&self) -> PathBuf {
        self.dir.join(CLIENT_FILE)
    }

    /// Returns the addresses of the metastores, whether they run or not.
    pub fn metastore_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.metastores.iter().map(|slot| slot.address)
    }

    /// Returns the bookies that run.
    pub fn bookies(&self) -> impl Iterator<Item = &Bookie> {
        self.bookies.iter().filter_map(|slot| slot.bookie.as_ref())
    }

    /// Stops a metastore, counted from 0, if it runs. Its directory and its address stay its own.
    pub async fn stop_metastore(&mut self, number: usize) {
        if let Some(metastore) = self.metastores[number].metastore.take() {
            metastore.stop().await;
        }
    }

    /// Starts a metastore that was stopped.
    pub async fn start_metastore(&mut self, number: usize) -> Result<(), Error> {
        let slot = &mut self.metastores[number];
        if slot.metastore.is_none() {
            slot.metastore = Some(MetastoreServer::start(slot.config.clone()).await?);
        }
        Ok(())
    }

    /// Stops a bookie, counted from 0, if it runs. Its directory and its address stay its own.
    pub async fn stop_bookie(&mut self, number: usize) {
        if let Some(bookie) = self.bookies[number].bookie.take() {
            bookie.stop().await;
        }
    }

    /// Starts a bookie that was stopped.
    pub async fn start_bookie(&mut self, number: usize) -> Result<(), Error> {
        let slot = &mut self.bookies[number];
        if slot.bookie.is_none() {
            slot.bookie = Some(Bookie::start(slot.config.clone()).await?);
        }
        Ok(())
    }

    /// Waits until a daemon cannot go on, and says why.
    pub async fn failed(&mut self) -> Error {
        let metastores = self.metastores.iter().filter_map(|slot| slot.metastore.as_ref());
        let metastores = metastores
            .map(|metastore| async { Error::Metastore(metastore.failed().await) }.boxed());
        let bookies = self.bookies.iter_mut().filter_map(|slot| slot.bookie.as_mut());
        let bookies = bookies.map(|bookie| bookie.failed().map(Error::Bookie).boxed());
        // Where none runs, none fails.
        select_all(bookies.chain(metastores).chain([pending().boxed()])).await.0
    }

    /// Stops all daemons, the metastores last.
    pub async fn stop(self) {
        for bookie in self.bookies.into_iter().filter_map(|slot| slot.bookie) {
            bookie.stop().await;
        }
        // Side by side: what is left of them could not finish anything.
        let metastores = self.metastores.into_iter().filter_map(|slot| slot.metastore);
        join_all(metastores.map(MetastoreServer::stop)).await;
    }

    async fn start_in(
        dir: &Path,
        bookies: Option<usize>,
        metastores: Option<usize>,
        temporary: Option<TempDir>,
    ) -> Result<Self, Error> {
        let known = Addresses::read(dir)?.unwrap_or_default();
        let metastores = listen_metastores(dir, &known.metastores, metastores)?;
        let bookies = listen_bookies(dir, &known.bookies, bookies)?;
        fs::create_dir_all(dir).map_err(|error| Error::file(dir, &error))?;
        // What is written down must hold wherever it is used from.
        let dir = dir.canonicalize().map_err(|error| Error::file(dir, &error))?;
        let authority = Authority::open_or_create(&dir, NAME)?;
        Role::ALL.into_iter().try_for_each(|role| authority.issue(role, None))?;

        let metastores = start_metastores(&dir, metastores).await?;
        let addresses = metastores.iter().map(|slot| slot.address.to_string()).collect();
        let bookies = start_bookies(&dir, bookies, addresses).await?;
        let cluster = Self { metastores, bookies, dir, _temporary: temporary };
        cluster.write_files()?;
        Ok(cluster)
    }

    fn write_files(&self) -> Result<(), Error> {
        let addresses = Addresses {
            metastores: self.metastore_addresses().collect(),
            bookies: self.bookies().map(Bookie::address).collect(),
        };
        addresses.write(&self.dir)
    }
}

/// Starts the metastores one after the other: the first founds the cluster, the others join it.
async fn start_metastores(dir: &Path, listen: Vec<String>) -> Result<Vec<MetastoreSlot>, Error> {
    let identity = Identity::load(dir, Role::Metastore, None)?;
    let mut slots = Vec::<MetastoreSlot>::new();
    for (index, listen) in listen.into_iter().enumerate() {
        let mut config = inkfast_metastore_server::Config {
            dir: dir.join(match index {
                // It has no number, as in clusters from when there was only one.
                0 => "metastore".to_owned(),
                _ => format!("metastore-{}", index + 1),
            }),
            listen,
            advertise: None,
            join: slots.iter().map(|slot| slot.address.to_string()).collect(),
            identity: identity.clone(),
            net: Net::Os,
        };
        let metastore = MetastoreServer::start(config.clone()).await?;
        let address = metastore.address();
        config.listen = address.to_string();
        slots.push(MetastoreSlot { config, address, metastore: Some(metastore) });
    }
    Ok(slots)
}

async fn start_bookies(
    dir: &Path,
    listen: Vec<String>,
    metastore: Vec<String>,
) -> Result<Vec<BookieSlot>, Error> {
    let identity = Identity::load(dir, Role::Bookie, None)?;
    let starting = listen.into_iter().enumerate().map(async |(index, listen)| {
        let mut config = inkfast_bookie::Config {
            dirs: vec![dir.join(format!("bookie-{}", index + 1))],
            min_free: Some(MIN_FREE),
            memory_bytes: None,
            scrub_rate: None,
            listen,
            advertise: Vec::new(),
            metastore: metastore.clone(),
            identity: identity.clone(),
            rack: None,
            net: Net::Os,
        };
        let bookie = Bookie::start(config.clone()).await?;
        config.listen = bookie.address().to_string();
        Ok(BookieSlot { config, bookie: Some(bookie) })
    });
    try_join_all(starting).await
}

/// Decides how many metastores there are to be, and where they are to listen.
fn listen_metastores(
    dir: &Path,
    known: &[SocketAddr],
    wanted: Option<usize>,
) -> Result<Vec<String>, Error> {
    let usual = if known.is_empty() { METASTORES_DEFAULT } else { known.len() };
    let wanted = wanted.unwrap_or(usual);
    if !matches!(wanted, 1 | 3 | 5) {
        return Err(Error::Metastores(wanted));
    }
    listen(dir, "metastores", known, wanted)
}

/// Decides the same for bookies.
fn listen_bookies(
    dir: &Path,
    known: &[SocketAddr],
    wanted: Option<usize>,
) -> Result<Vec<String>, Error> {
    let usual = if known.is_empty() { BOOKIES_DEFAULT } else { known.len() };
    let wanted = wanted.unwrap_or(usual);
    if !(1..=BOOKIES_MAX).contains(&wanted) {
        return Err(Error::Bookies(wanted));
    }
    listen(dir, "bookies", known, wanted)
}

/// Keeps the addresses that are known, and adds as many as are missing.
fn listen(
    dir: &Path,
    what: &'static str,
    known: &[SocketAddr],
    wanted: usize,
) -> Result<Vec<String>, Error> {
    if wanted < known.len() {
        return Err(Error::Fewer { dir: dir.into(), what, has: known.len(), wanted });
    }
    let known = known.iter().map(SocketAddr::to_string);
    Ok(known.chain(std::iter::repeat(LISTEN_ANYWHERE.to_owned())).take(wanted).collect())
}

/// Why a cluster did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster has so many bookies.
    #[error("a cluster in one process has 1 to {BOOKIES_MAX} bookies, not {0}")]
    Bookies(usize),
    /// No cluster has so many metastores.
    #[error("a cluster in one process has 1, 3 or 5 metastores, not {0}")]
    Metastores(usize),
    /// The directory has more daemons than are wanted, and they may have what is needed.
    #[error(
        "the cluster in {} has {has} {what}, so it cannot have {wanted}: start it with {has} or \
         more, or choose another directory",
        dir.display()
    )]
    Fewer {
        /// The directory.
        dir: PathBuf,
        /// Bookies or metastores.
        what: &'static str,
        /// How many it has.
        has: usize,
        /// How many were wanted.
        wanted: usize,
    },
    /// A file or directory of the cluster cannot be used.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A metastore did not start or did not go on.
    #[error("a metastore: {0}")]
    Metastore(#[from] inkfast_metastore_server::Error),
    /// A bookie did not start or did not go on.
    #[error("a bookie: {0}")]
    Bookie(#[from] inkfast_bookie::Error),
    /// A client could not connect.
    #[error(transparent)]
    Client(#[from] inkfast::Error),
}

impl Error {
    fn file(path: &Path, why: &impl ToString) -> Self {
        Self::File { path: path.into(), why: why.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect()
    }

    #[test]
    fn daemons_keep_their_ports_and_more_are_added_but_none_is_dropped() {
        let bookies = |known, wanted| listen_bookies(Path::new("d"), known, wanted);
        assert_eq!(bookies(&[], None).unwrap(), [LISTEN_ANYWHERE; 3]);
        let known = at(&[7, 8]);
        assert_eq!(bookies(&known, None).unwrap(), ["127.0.0.1:7", "127.0.0.1:8"]);
        assert_eq!(bookies(&known, Some(3)).unwrap()[1..], ["127.0.0.1:8", LISTEN_ANYWHERE]);
        assert!(matches!(bookies(&known, Some(1)), Err(Error::Fewer { has: 2, .. })));
        assert!(matches!(bookies(&[], Some(0)), Err(Error::Bookies(0))));

        let metastores = |known, wanted| listen_metastores(Path::new("d"), known, wanted);
        assert_eq!(metastores(&[], None).unwrap(), [LISTEN_ANYWHERE]);
        let known = at(&[7, 8, 9]);
        assert_eq!(metastores(&known, None).unwrap()[2], "127.0.0.1:9");
        assert!(matches!(metastores(&[], Some(2)), Err(Error::Metastores(2))));
        let fewer = metastores(&known, Some(1));
        assert!(matches!(fewer, Err(Error::Fewer { what: "metastores", .. })));
    }
}
