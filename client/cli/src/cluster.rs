//! A cluster in one process: one metastore and some bookies on loopback.
//!
//! Its directory holds all of it: the certificates, `client.toml` for those who use it,
//! `cluster.toml` with its addresses, and a directory for each daemon.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures::future::{FutureExt, select_all, try_join_all};
use inkfast::Client;
use inkfast_bookie::Bookie;
use inkfast_metastore_server::MetastoreServer;
use inkfast_wire::{Authority, Identity, IdentityError, Net, Role};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// How many bookies a cluster has unless one says otherwise.
pub const BOOKIES_DEFAULT: usize = 3;
/// The most bookies in one process.
pub const BOOKIES_MAX: usize = 64;

/// The cluster's name in its certificates.
const NAME: &str = "inkfast";
const ADDRESSES_FILE: &str = "cluster.toml";
const CLIENT_FILE: &str = "client.toml";
/// Any free port; the one that was taken is kept from then on.
const LISTEN_ANYWHERE: &str = "127.0.0.1:0";

/// A running cluster. It runs until [`stop`](Self::stop): one that is dropped may go on, without
/// its temporary directory, until the runtime ends.
pub struct Cluster {
    metastore: MetastoreServer,
    bookies: Vec<Slot>,
    dir: PathBuf,
    /// The directory, if it is to vanish with the cluster. The last field: it outlives the daemons.
    _temporary: Option<TempDir>,
}

/// A bookie, or where there is one to start.
struct Slot {
    config: inkfast_bookie::Config,
    bookie: Option<Bookie>,
}

/// Where the daemons listen, from their first start on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Addresses {
    metastore: SocketAddr,
    bookies: Vec<SocketAddr>,
}

/// What a client has to know; every other key has a default.
#[derive(Serialize)]
struct ClientFile<'a> {
    metastore: [SocketAddr; 1],
    certs: &'a Path,
}

impl Cluster {
    /// Starts the cluster of a directory, or makes it there, and returns when all of it serves.
    ///
    /// A cluster that was there before has the addresses and the data that it had. It also has
    /// its bookies, and gets more if more are wanted; fewer are refused. Where nothing is said
    /// about their number, a new cluster has [`BOOKIES_DEFAULT`].
    pub async fn start(dir: &Path, bookies: Option<usize>) -> Result<Self, Error> {
        Self::start_in(dir, bookies, None).await
    }

    /// Starts a cluster in a temporary directory, which vanishes with it.
    pub async fn temporary(bookies: usize) -> Result<Self, Error> {
        let temporary = TempDir::with_prefix("inkfast-")
            .map_err(|error| Error::file(&std::env::temp_dir(), &error))?;
        let dir = temporary.path().to_owned();
        Self::start_in(&dir, Some(bookies), Some(temporary)).await
    }

    /// Connects a client. Each call makes another one, with connections of its own.
    pub async fn client(&self) -> Result<Client, Error> {
        Ok(Client::connect(self.client_config()?).await?)
    }

    /// Returns what a client of the cluster has to know.
    pub fn client_config(&self) -> Result<inkfast::Config, Error> {
        let identity = Identity::load(&self.dir, Role::Client, None)?;
        Ok(inkfast::Config::new(vec![self.metastore_address().to_string()], identity))
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the file with a client's settings.
    pub fn client_file(&self) -> PathBuf {
        self.dir.join(CLIENT_FILE)
    }

    /// Returns the address of the metastore.
    pub fn metastore_address(&self) -> SocketAddr {
        self.metastore.address()
    }

    /// Returns the bookies that run.
    pub fn bookies(&self) -> impl Iterator<Item = &Bookie> {
        self.bookies.iter().filter_map(|slot| slot.bookie.as_ref())
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
        let metastore = async { Error::Metastore(self.metastore.failed().await) }.boxed();
        let bookies = self.bookies.iter_mut().filter_map(|slot| slot.bookie.as_mut());
        let bookies = bookies.map(|bookie| bookie.failed().map(Error::Bookie).boxed());
        select_all(bookies.chain([metastore])).await.0
    }

    /// Stops all daemons, the metastore last.
    pub async fn stop(self) {
        for bookie in self.bookies.into_iter().filter_map(|slot| slot.bookie) {
            bookie.stop().await;
        }
        self.metastore.stop().await;
    }

    async fn start_in(
        dir: &Path,
        bookies: Option<usize>,
        temporary: Option<TempDir>,
    ) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|error| Error::file(dir, &error))?;
        // What is written down must hold wherever it is used from.
        let dir = dir.canonicalize().map_err(|error| Error::file(dir, &error))?;
        let known = Addresses::read(&dir)?;
        let listen = listen(known.as_ref(), bookies, &dir)?;
        let authority = Authority::open_or_create(&dir, NAME)?;
        Role::ALL.into_iter().try_for_each(|role| authority.issue(role, None))?;

        let metastore = inkfast_metastore_server::Config {
            dir: dir.join("metastore"),
            listen: known
                .map_or_else(|| LISTEN_ANYWHERE.into(), |known| known.metastore.to_string()),
            advertise: None,
            join: Vec::new(),
            identity: Identity::load(&dir, Role::Metastore, None)?,
            net: Net::Os,
        };
        let metastore = MetastoreServer::start(metastore).await?;
        let identity = Identity::load(&dir, Role::Bookie, None)?;
        let starting = listen.into_iter().enumerate().map(async |(index, listen)| {
            let mut config = inkfast_bookie::Config {
                dir: dir.join(format!("bookie-{}", index + 1)),
                listen,
                advertise: Vec::new(),
                metastore: vec![metastore.address().to_string()],
                identity: identity.clone(),
                rack: None,
                net: Net::Os,
            };
            let bookie = Bookie::start(config.clone()).await?;
            config.listen = bookie.address().to_string();
            Ok::<_, Error>(Slot { config, bookie: Some(bookie) })
        });
        let bookies = try_join_all(starting).await?;

        let cluster = Self { metastore, bookies, dir, _temporary: temporary };
        cluster.write_files()?;
        Ok(cluster)
    }

    fn write_files(&self) -> Result<(), Error> {
        let metastore = self.metastore_address();
        let bookies = self.bookies().map(Bookie::address).collect();
        write(&self.dir.join(ADDRESSES_FILE), &Addresses { metastore, bookies })?;
        write(&self.client_file(), &ClientFile { metastore: [metastore], certs: &self.dir })
    }
}

/// Decides where the bookies are to listen.
fn listen(
    known: Option<&Addresses>,
    wanted: Option<usize>,
    dir: &Path,
) -> Result<Vec<String>, Error> {
    let known = known.map_or(&[][..], |known| &known.bookies);
    let usual = if known.is_empty() { BOOKIES_DEFAULT } else { known.len() };
    let wanted = wanted.unwrap_or(usual);
    if !(1..=BOOKIES_MAX).contains(&wanted) {
        return Err(Error::Bookies(wanted));
    }
    if wanted < known.len() {
        return Err(Error::FewerBookies { dir: dir.into(), has: known.len(), wanted });
    }
    let known = known.iter().map(SocketAddr::to_string);
    Ok(known.chain(std::iter::repeat(LISTEN_ANYWHERE.to_owned())).take(wanted).collect())
}

impl Addresses {
    /// Reads the addresses of a cluster; none if it was never started.
    fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(ADDRESSES_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| Error::file(&path, &error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file(&path, &error)),
        }
    }
}

/// Writes a file whole or not at all.
fn write(path: &Path, content: &impl Serialize) -> Result<(), Error> {
    let text = toml::to_string(content).map_err(|error| Error::file(path, &error))?;
    let new = path.with_extension("toml.new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| Error::file(path, &error))
}

/// Why a cluster did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster has so many bookies.
    #[error("a cluster in one process has 1 to {BOOKIES_MAX} bookies, not {0}")]
    Bookies(usize),
    /// The directory has more bookies than are wanted, and ledgers may be on them.
    #[error(
        "the cluster in {} has {has} bookies, so it cannot have {wanted}: start it with {has} or \
         more, or choose another directory",
        dir.display()
    )]
    FewerBookies {
        /// The directory.
        dir: PathBuf,
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
    /// The metastore did not start or did not go on.
    #[error("the metastore: {0}")]
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

    fn addresses(bookies: &[u16]) -> Addresses {
        let at = |port: &u16| SocketAddr::from(([127, 0, 0, 1], *port));
        Addresses { metastore: at(&9), bookies: bookies.iter().map(at).collect() }
    }

    #[test]
    fn bookies_keep_their_ports_and_more_are_added_but_none_is_dropped() {
        let listen = |known: Option<&Addresses>, wanted| listen(known, wanted, Path::new("d"));
        assert_eq!(listen(None, None).unwrap(), [LISTEN_ANYWHERE; 3]);
        let known = addresses(&[7, 8]);
        assert_eq!(listen(Some(&known), None).unwrap(), ["127.0.0.1:7", "127.0.0.1:8"]);
        assert_eq!(listen(Some(&known), Some(3)).unwrap()[1..], ["127.0.0.1:8", LISTEN_ANYWHERE]);
        assert!(matches!(listen(Some(&known), Some(1)), Err(Error::FewerBookies { has: 2, .. })));
        assert!(matches!(listen(None, Some(0)), Err(Error::Bookies(0))));
    }

    #[test]
    fn addresses_are_read_as_they_were_written() {
        let dir = TempDir::new().unwrap();
        assert_eq!(Addresses::read(dir.path()).unwrap(), None);
        write(&dir.path().join(ADDRESSES_FILE), &addresses(&[1, 2])).unwrap();
        assert_eq!(Addresses::read(dir.path()).unwrap(), Some(addresses(&[1, 2])));
        fs::write(dir.path().join(ADDRESSES_FILE), "metastore = 1").unwrap();
        assert!(matches!(Addresses::read(dir.path()), Err(Error::File { .. })));
    }
}
