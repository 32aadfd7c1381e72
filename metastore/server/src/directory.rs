//! The directory of a metastore: whose it is, and that one process has it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

const FILE: &str = "metastore.redb";
const NEW_FILE: &str = "metastore.redb.new";
const LOCK: &str = "metastore.lock";

/// The directory of a metastore, which no other process has as long as this is held.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes a directory, made if it is missing. Refuses one in which something else lives, or
    /// that another process has.
    pub(crate) fn lock(path: &Path) -> Result<Self, Error> {
        let failed = failed(path);
        fs::create_dir_all(path).map_err(&failed)?;
        if let Some(other) = foreign(path).map_err(&failed)? {
            let why = format!("it has {other:?} and no {FILE}; give an empty one");
            return Err(Error::Directory { path: path.into(), why });
        }
        let lock = open_file(path, LOCK).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.into() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Gives an empty file to make the metastore's in, if it has none. What an attempt that was
    /// cut short has left is thrown away.
    pub(crate) fn begin_file(&self) -> Result<Option<File>, Error> {
        if self.path.join(FILE).exists() {
            return Ok(None);
        }
        let make = || {
            let new = open_file(&self.path, NEW_FILE)?;
            new.set_len(0)?;
            Ok(new)
        };
        make().map(Some).map_err(failed(&self.path))
    }

    /// Makes the file that was begun, and is whole, the metastore's, durably.
    pub(crate) fn finish_file(&self) -> Result<(), Error> {
        let finish = || {
            File::open(self.path.join(NEW_FILE))?.sync_all()?;
            fs::rename(self.path.join(NEW_FILE), self.path.join(FILE))?;
            sync_directory(&self.path)
        };
        finish().map_err(failed(&self.path))
    }

    /// Opens the metastore's file.
    pub(crate) fn open_file(&self) -> Result<File, Error> {
        open_file(&self.path, FILE).map_err(failed(&self.path))
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| Error::Directory { path: path.into(), why: error.to_string() }
}

/// Finds what shows that a directory is of something else; certificates may lie anywhere.
fn foreign(dir: &Path) -> io::Result<Option<String>> {
    if dir.join(FILE).exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = [LOCK, NEW_FILE, "lost+found"].contains(&name.as_str());
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
