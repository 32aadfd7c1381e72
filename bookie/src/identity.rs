//! Who a bookie is: made once, when its directory is formatted, and kept there.
//!
//! The file `bookie` begins with a magic, a CRC32C of what follows the CRC, and holds a protobuf
//! message. An empty directory is always a new bookie with a new id: a bookie that has lost its
//! disk must never answer for what it had.

use std::io;
use std::path::Path;

use inkfast_protocol::BookieId;
use prost::Message;
use uuid::Uuid;

use crate::disk::Disk;
use crate::{Error, log};

const FILE: &str = "bookie";
const NEW_FILE: &str = "bookie.new";
const MAGIC: &[u8; 8] = b"INKFBOOK";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
/// The key of QUIC's stateless resets, see [`inkfast_wire::Server`].
const RESET_KEY_BYTES: usize = 64;

/// Who a bookie is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BookieIdentity {
    pub(crate) id: BookieId,
    /// The cluster that it belongs to.
    pub(crate) cluster: Uuid,
    /// The certificate name that it was formatted under.
    pub(crate) name: String,
    /// The log in its directory.
    pub(crate) log: Uuid,
    pub(crate) reset_key: [u8; RESET_KEY_BYTES],
}

#[derive(Message)]
struct Stored {
    /// The oldest version whose programs may use the directory.
    #[prost(uint32, tag = "1")]
    usable_from: u32,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    cluster: Vec<u8>,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(bytes = "vec", tag = "5")]
    log: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    reset_key: Vec<u8>,
}

/// Reads who the bookie of a directory is; none if the directory was never formatted. Blocks.
pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<BookieIdentity>, Error> {
    let file = match disk.open(FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(dir, error)),
    };
    let bytes = file.len_bytes().map_err(|error| cannot(dir, error))?;
    let mut contents = vec![0; usize::try_from(bytes.min(1 << 16)).unwrap_or(0)];
    file.read_at(0, &mut contents).map_err(|error| cannot(dir, error))?;
    decode(&contents).map(Some).map_err(|why| Error::Directory {
        dir: dir.to_owned(),
        why: format!("its file '{FILE}' {why}"),
    })
}

/// Formats an empty directory: makes its log, and then the file that says whose it is. Blocks.
///
/// A directory that holds anything but what an interrupted formatting leaves is refused.
pub(crate) fn format(disk: &dyn Disk, dir: &Path, identity: &BookieIdentity) -> Result<(), Error> {
    let is_left_over = |name: &String| {
        ["log-", "spare-"].iter().any(|prefix| name.starts_with(prefix)) || name == NEW_FILE
    };
    let names = disk.list().map_err(|error| cannot(dir, error))?;
    if let Some(name) = names.iter().find(|name| !is_left_over(name)) {
        return Err(Error::Directory {
            dir: dir.to_owned(),
            why: format!("it holds '{name}' and is not a bookie's; give an empty directory"),
        });
    }
    log::create(disk, identity.log)?;
    if names.iter().any(|name| name == NEW_FILE) {
        disk.remove(NEW_FILE).map_err(|error| cannot(dir, error))?;
    }
    let write = || {
        let file = disk.create(NEW_FILE)?;
        file.write_at(0, &encode(identity))?;
        file.sync_data()?;
        disk.rename(NEW_FILE, FILE)?;
        disk.sync_names()
    };
    write().map_err(|error| cannot(dir, error))
}

fn encode(identity: &BookieIdentity) -> Vec<u8> {
    let stored = Stored {
        usable_from: FORMAT_VERSION,
        id: identity.id.0.as_bytes().to_vec(),
        cluster: identity.cluster.as_bytes().to_vec(),
        name: identity.name.clone(),
        log: identity.log.as_bytes().to_vec(),
        reset_key: identity.reset_key.to_vec(),
    };
    let message = stored.encode_to_vec();
    let mut contents = MAGIC.to_vec();
    contents.extend_from_slice(&crc32c::crc32c(&message).to_le_bytes());
    contents.extend_from_slice(&message);
    contents
}

fn decode(contents: &[u8]) -> Result<BookieIdentity, String> {
    let Some((header, message)) = contents.split_at_checked(HEADER_BYTES) else {
        return Err("is too short".to_owned());
    };
    if &header[..MAGIC.len()] != MAGIC {
        return Err("is not of a bookie".to_owned());
    }
    if crc32c::crc32c(message).to_le_bytes() != header[MAGIC.len()..] {
        return Err("is damaged; restore it from a backup".to_owned());
    }
    let stored = Stored::decode(message).map_err(|error| format!("is damaged: {error}"))?;
    if stored.usable_from > FORMAT_VERSION {
        return Err(format!(
            "is of format version {}, and this program knows {FORMAT_VERSION}; upgrade it",
            stored.usable_from
        ));
    }
    let uuid =
        |bytes: &[u8]| Uuid::from_slice(bytes).map_err(|error| format!("is damaged: {error}"));
    Ok(BookieIdentity {
        id: BookieId(uuid(&stored.id)?),
        cluster: uuid(&stored.cluster)?,
        name: stored.name,
        log: uuid(&stored.log)?,
        reset_key: stored.reset_key.try_into().map_err(|_| "has a bad reset key".to_owned())?,
    })
}

fn cannot(dir: &Path, source: io::Error) -> Error {
    Error::Directory { dir: dir.to_owned(), why: format!("it cannot be used: {source}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    fn identity() -> BookieIdentity {
        BookieIdentity {
            id: BookieId(Uuid::from_u128(1)),
            cluster: Uuid::from_u128(2),
            name: "b1".to_owned(),
            log: Uuid::from_u128(3),
            reset_key: [7; RESET_KEY_BYTES],
        }
    }

    #[test]
    fn a_formatted_directory_says_whose_it_is() {
        let disk = MemoryDisk::new();
        assert_eq!(load(&disk, Path::new("d")).unwrap(), None);
        format(&disk, Path::new("d"), &identity()).unwrap();
        assert_eq!(load(&disk, Path::new("d")).unwrap(), Some(identity()));
    }

    #[test]
    fn a_directory_of_something_else_is_not_formatted() {
        let disk = MemoryDisk::new();
        disk.create("photos.zip").unwrap();
        let error = format(&disk, Path::new("d"), &identity()).unwrap_err().to_string();
        assert!(error.contains("photos.zip"), "{error}");
        assert_eq!(disk.list().unwrap(), ["photos.zip"]);
    }

    #[test]
    fn no_damage_makes_another_identity() {
        let good = encode(&identity());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "cut to {length}");
        }
    }
}
