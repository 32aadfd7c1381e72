//! The operating system's files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, fstatvfs};
use rustix::io::Errno;

use super::{BLOCK_BYTES, Disk, DiskFile, Space};

/// A directory of the operating system, held by this process alone.
#[derive(Debug)]
pub struct OsDisk {
    path: PathBuf,
    /// Open for as long as the directory is ours: it carries the lock, and syncs the names.
    directory: File,
    /// Whether files are opened for writing.
    writes: bool,
}

impl OsDisk {
    /// Opens a directory, made durably if it is missing; `ResourceBusy` while another `OsDisk`
    /// has it, in this process or another.
    pub fn open(path: &Path) -> io::Result<Self> {
        make_directory(path)?;
        Self::lock(path, true)
    }

    /// Opens a directory of which nothing can be changed; otherwise as [`open`](Self::open).
    pub fn open_to_read(path: &Path) -> io::Result<Self> {
        Self::lock(path, false)
    }

    fn lock(path: &Path, writes: bool) -> io::Result<Self> {
        let directory = File::open(path)?;
        match directory.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), directory, writes }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process; stop that first", path.display()),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn check_writes(&self) -> io::Result<()> {
        match self.writes {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "opened to read")),
        }
    }
}

impl Disk for OsDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(self.writes).open(self.path.join(name))?;
        Ok(Arc::new(OsFile::new(file, self.writes)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.check_writes()?;
        Ok(Arc::new(OsFile::new(File::create_new(self.path.join(name))?, true)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // No file of ours has a name that is not UTF-8.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_writes()?;
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check_writes()?;
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let found = fstatvfs(&self.directory)?;
        Ok(Space {
            device: self.directory.metadata()?.dev(),
            capacity_bytes: found.f_blocks * found.f_frsize,
            free_bytes: found.f_bavail * found.f_frsize,
        })
    }
}

struct OsFile {
    file: File,
    /// Whether it is open for writing.
    writes: bool,
    /// The same file, open for direct reads and writes; made when it is needed.
    direct: OnceLock<File>,
}

impl OsFile {
    const fn new(file: File, writes: bool) -> Self {
        Self { file, writes, direct: OnceLock::new() }
    }

    /// Opens the file anew for reads and writes that pass the system's cache by, if its file system
    /// lets them; the writes are durable when they return.
    fn direct(&self) -> io::Result<&File> {
        if let Some(file) = self.direct.get() {
            return Ok(file);
        }
        // By its number: it may have another name by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let open = |flags: OFlags| {
            let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
            OpenOptions::new().read(true).write(self.writes).custom_flags(flags).open(&path)
        };
        let file = match open(OFlags::DIRECT | OFlags::DSYNC) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(OFlags::DSYNC)?,
            file => file?,
        };
        Ok(self.direct.get_or_init(|| file))
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.direct()?.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.direct()?.write_all_at(bytes, offset)
    }

    fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, bytes) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
            // A file system that cannot do it writes all the same.
            _ => Ok(()),
        }
    }

    fn forget(&self, offset: u64, bytes: u64) {
        // It forgets no page of which only a part is named.
        let page = BLOCK_BYTES as u64;
        let (start, end) = (offset / page * page, (offset + bytes).next_multiple_of(page));
        let _ = fadvise(&self.file, start, NonZeroU64::new(end - start), Advice::DontNeed);
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Makes a directory and its missing parents, each durable in the one above.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    make_directory(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = OsDisk::open(dir.path()).unwrap();
        let error = OsDisk::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        OsDisk::open(dir.path()).unwrap();
    }
}
