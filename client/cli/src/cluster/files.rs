//! The files of a cluster's directory that say where its daemons are.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;

/// The settings of a client.
pub(super) const CLIENT_FILE: &str = "client.toml";
/// Any free port; the one that was taken is kept from then on.
pub(super) const LISTEN_ANYWHERE: &str = "127.0.0.1:0";

const ADDRESSES_FILE: &str = "cluster.toml";

/// Where the daemons listen, from their first start on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) metastores: Vec<SocketAddr>,
    pub(super) bookies: Vec<SocketAddr>,
}

/// The same in its file: clusters had one metastore at first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressesFile {
    metastore: SocketAddr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_metastores: Vec<SocketAddr>,
    bookies: Vec<SocketAddr>,
}

/// What a client has to know; every other key has a default.
#[derive(Serialize)]
struct ClientFile<'a> {
    metastore: &'a [SocketAddr],
    certs: &'a Path,
}

impl Addresses {
    /// Reads the addresses of a cluster; none if it was never started.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(ADDRESSES_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file(&path, &error)),
        };
        let AddressesFile { metastore, more_metastores, bookies } =
            toml::from_str(&text).map_err(|error| Error::file(&path, &error))?;
        let metastores = [metastore].into_iter().chain(more_metastores).collect();
        Ok(Some(Self { metastores, bookies }))
    }

    /// Writes them down, and what a client has to know.
    pub(super) fn write(&self, dir: &Path) -> Result<(), Error> {
        let Some((metastore, more_metastores)) = self.metastores.split_first() else {
            return Err(Error::Metastores(0));
        };
        let file = AddressesFile {
            metastore: *metastore,
            more_metastores: more_metastores.to_vec(),
            bookies: self.bookies.clone(),
        };
        write(&dir.join(ADDRESSES_FILE), &file)?;
        write(&dir.join(CLIENT_FILE), &ClientFile { metastore: &self.metastores, certs: dir })
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn addresses_are_read_as_they_were_written() {
        let dir = TempDir::new().unwrap();
        assert_eq!(Addresses::read(dir.path()).unwrap(), None);
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for metastores in [vec![at(9)], vec![at(9), at(8), at(7)]] {
            let addresses = Addresses { metastores, bookies: vec![at(1), at(2)] };
            addresses.write(dir.path()).unwrap();
            assert_eq!(Addresses::read(dir.path()).unwrap(), Some(addresses));
        }
        fs::write(dir.path().join(ADDRESSES_FILE), "metastore = 1").unwrap();
        assert!(matches!(Addresses::read(dir.path()), Err(Error::File { .. })));
    }

    #[test]
    fn a_cluster_of_one_metastore_is_known_from_before() {
        let dir = TempDir::new().unwrap();
        let text = "metastore = \"127.0.0.1:9\"\nbookies = [\"127.0.0.1:1\"]\n";
        fs::write(dir.path().join(ADDRESSES_FILE), text).unwrap();
        let known = Addresses::read(dir.path()).unwrap().unwrap();
        assert_eq!((known.metastores.len(), known.bookies.len()), (1, 1));
        known.write(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(ADDRESSES_FILE)).unwrap(), text);
    }
}
