//! The directory of a metastore: whose it is, and that one process has it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::Error;

const FILE: &str = "metastore.redb";
const LOCK: &str = "metastore.lock";

/// Opens the metastore's file in a directory, and the lock that is held as long as it is open.
///
/// Makes the directory and an empty file if they are missing, and has them on disk then. Refuses a
/// directory in which something else lives already.
pub(crate) fn open(dir: &Path) -> Result<(File, File), Error> {
    let failed = |error: io::Error| Error::Directory { path: dir.into(), why: error.to_string() };
    fs::create_dir_all(dir).map_err(failed)?;
    if let Some(other) = foreign(dir).map_err(failed)? {
        let why = format!("it has {other:?} and no {FILE}; give an empty one");
        return Err(Error::Directory { path: dir.into(), why });
    }
    let lock = open_file(dir, LOCK).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: dir.into() }),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let file = open_file(dir, FILE).map_err(failed)?;
    sync_directory(dir).map_err(failed)?;
    Ok((file, lock))
}

/// Finds what shows that a directory is of something else; certificates may lie anywhere.
fn foreign(dir: &Path) -> io::Result<Option<String>> {
    if dir.join(FILE).exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = name == LOCK || name == "lost+found";
        if !ours && !name.ends_with(".pem") && !name.ends_with(".key") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Opens a file, which is made if it is missing; nobody else may read it, for the reset key in it.
fn open_file(dir: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(dir.join(name))
}

/// Syncs the names in a directory, and its own in its parent.
fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    match dir.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
