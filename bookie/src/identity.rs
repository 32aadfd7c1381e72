//! Who a bookie is: made once, when its first directory is formatted, and kept in each of them.
//!
//! The file `bookie` of a directory begins with a magic, a CRC32C of what follows the CRC, and
//! holds a protobuf message: whose the directory is, which log it has, and which logs the bookie
//! has in all, so that a directory that is missing is missed.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use inkfast_protocol::BookieId;
use prost::Message;
use uuid::Uuid;

use crate::disk::Disk;
use crate::{Error, log};

pub(crate) const FILE: &str = "bookie";
const NEW_FILE: &str = "bookie.new";
const MAGIC: &[u8; 8] = b"INKFBOOK";
const FORMAT_VERSION: u32 = 2;
/// A program of this version knows one directory, and nothing of a list of logs.
const ONE_DIRECTORY_VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
/// The key of QUIC's stateless resets, see [`inkfast_wire::Server`].
const RESET_KEY_BYTES: usize = 64;

/// Who a bookie is: the same in all of its directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BookieIdentity {
    pub(crate) id: BookieId,
    /// The cluster that it belongs to.
    pub(crate) cluster: Uuid,
    /// The certificate name that it was formatted under.
    pub(crate) name: String,
    pub(crate) reset_key: [u8; RESET_KEY_BYTES],
}

/// What the file of a directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) bookie: BookieIdentity,
    /// The log in the directory.
    pub(crate) log: Uuid,
    /// The logs of all directories of the bookie, as far as was known when this was written.
    pub(crate) logs: BTreeSet<Uuid>,
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
    /// None if `log` is the only one.
    #[prost(bytes = "vec", repeated, tag = "7")]
    logs: Vec<Vec<u8>>,
}

impl BookieIdentity {
    /// Makes a bookie that never was before: one that has lost its disks must never answer for
    /// what it had.
    pub(crate) fn new(cluster: Uuid, name: String) -> Self {
        let mut reset_key = [0; RESET_KEY_BYTES];
        for part in reset_key.chunks_mut(16) {
            part.copy_from_slice(Uuid::new_v4().as_bytes());
        }
        Self { id: BookieId(Uuid::new_v4()), cluster, name, reset_key }
    }
}

/// Reads what the file of a directory says; none if the directory was never formatted. Blocks.
pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Label>, Error> {
    let file = match disk.open(FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(dir, error)),
    };
    let bytes = file.len_bytes().map_err(|error| cannot(dir, error))?;
    let mut contents = vec![0; usize::try_from(bytes.min(1 << 16)).unwrap_or(0)];
    file.read_at(0, &mut contents).map_err(|error| cannot(dir, error))?;
    decode(&contents)
        .map(Some)
        .map_err(|why| Error::directory(dir, format!("its file '{FILE}' {why}")))
}

/// Formats an empty directory: makes its log, and then the file that says whose it is. Blocks.
///
/// A directory that holds anything but what an interrupted formatting leaves is refused.
pub(crate) fn format(disk: &dyn Disk, dir: &Path, label: &Label) -> Result<(), Error> {
    let is_left_over = |name: &String| {
        ["log-", "spare-"].iter().any(|prefix| name.starts_with(prefix)) || name == NEW_FILE
    };
    let names = disk.list().map_err(|error| cannot(dir, error))?;
    if let Some(name) = names.iter().find(|name| !is_left_over(name)) {
        let why = format!("it holds '{name}' and is not a bookie's; give an empty directory");
        return Err(Error::directory(dir, why));
    }
    log::create(disk, label.log).map_err(|error| Error::directory(dir, error.to_string()))?;
    write(disk, dir, label)
}

/// Writes the file of a directory, durably and all at once: after a crash it is this one or the
/// one before. Blocks.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, label: &Label) -> Result<(), Error> {
    let write = || {
        match disk.remove(NEW_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create(NEW_FILE)?;
        file.write_at(0, &encode(label))?;
        file.sync_data()?;
        disk.rename(NEW_FILE, FILE)?;
        disk.sync_names()
    };
    write().map_err(|error| cannot(dir, error))
}

fn encode(label: &Label) -> Vec<u8> {
    let Label { bookie, log, logs } = label;
    let is_alone = logs.iter().all(|other| other == log);
    let stored = Stored {
        usable_from: if is_alone { ONE_DIRECTORY_VERSION } else { FORMAT_VERSION },
        id: bookie.id.0.as_bytes().to_vec(),
        cluster: bookie.cluster.as_bytes().to_vec(),
        name: bookie.name.clone(),
        log: log.as_bytes().to_vec(),
        reset_key: bookie.reset_key.to_vec(),
        logs: match is_alone {
            true => Vec::new(),
            false => logs.iter().map(|log| log.as_bytes().to_vec()).collect(),
        },
    };
    let message = stored.encode_to_vec();
    let mut contents = MAGIC.to_vec();
    contents.extend_from_slice(&crc32c::crc32c(&message).to_le_bytes());
    contents.extend_from_slice(&message);
    contents
}

fn decode(contents: &[u8]) -> Result<Label, String> {
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
    let log = uuid(&stored.log)?;
    let mut logs = BTreeSet::from([log]);
    for other in &stored.logs {
        logs.insert(uuid(other)?);
    }
    let bookie = BookieIdentity {
        id: BookieId(uuid(&stored.id)?),
        cluster: uuid(&stored.cluster)?,
        name: stored.name,
        reset_key: stored.reset_key.try_into().map_err(|_| "has a bad reset key".to_owned())?,
    };
    Ok(Label { bookie, log, logs })
}

fn cannot(dir: &Path, source: io::Error) -> Error {
    Error::directory(dir, format!("it cannot be used: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    fn label(logs: impl IntoIterator<Item = u128>) -> Label {
        let bookie = BookieIdentity {
            id: BookieId(Uuid::from_u128(1)),
            cluster: Uuid::from_u128(2),
            name: "b1".to_owned(),
            reset_key: [7; RESET_KEY_BYTES],
        };
        let logs = logs.into_iter().map(Uuid::from_u128).collect();
        Label { bookie, log: Uuid::from_u128(3), logs }
    }

    #[test]
    fn a_formatted_directory_says_whose_it_is() {
        let disk = MemoryDisk::new();
        assert_eq!(load(&disk, Path::new("d")).unwrap(), None);
        format(&disk, Path::new("d"), &label([3])).unwrap();
        assert_eq!(load(&disk, Path::new("d")).unwrap(), Some(label([3])));
        write(&disk, Path::new("d"), &label([3, 4, 5])).unwrap();
        assert_eq!(load(&disk, Path::new("d")).unwrap(), Some(label([3, 4, 5])));
    }

    #[test]
    fn only_one_directory_is_for_programs_that_know_one() {
        let version = |label: &Label| Stored::decode(&encode(label)[HEADER_BYTES..]).unwrap();
        let alone = version(&label([3]));
        assert_eq!((alone.usable_from, alone.logs.len()), (1, 0));
        let one_of_two = version(&label([3, 4]));
        assert_eq!((one_of_two.usable_from, one_of_two.logs.len()), (2, 2));
    }

    #[test]
    fn a_directory_of_something_else_is_not_formatted() {
        let disk = MemoryDisk::new();
        disk.create("photos.zip").unwrap();
        let error = format(&disk, Path::new("d"), &label([3])).unwrap_err().to_string();
        assert!(error.contains("photos.zip"), "{error}");
        assert_eq!(disk.list().unwrap(), ["photos.zip"]);
    }

    #[test]
    fn no_damage_makes_another_identity() {
        let good = encode(&label([3, 4]));
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
