//! A disk on which nothing changes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BLOCK_BYTES, Disk, DiskFile, Space};

/// The most places that cannot be read of which one is told.
const UNREADABLE_MAX: usize = 100;

/// Shows the files of another disk, and keeps what is written in memory: what opens them for
/// writing can be used to look at them, and is told nothing of it.
///
/// What cannot be read is shown as zeros, so that one bad spot does not hide all the rest.
pub(crate) struct Overlay {
    below: Arc<dyn Disk>,
    /// The files of which the name or the contents have changed; none of a name that is gone.
    files: Mutex<BTreeMap<String, Option<Arc<Layer>>>>,
    unreadable: Arc<Mutex<Vec<String>>>,
}

/// What was written to a file.
#[derive(Default)]
struct Layer {
    /// What the file is called below; none of a new one.
    name: Option<String>,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    len: u64,
    /// How much of the file below still counts.
    below: u64,
    /// The blocks that were written to.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    /// Shows the files of a disk.
    pub(crate) fn new(below: Arc<dyn Disk>) -> Self {
        Self { below, files: Mutex::default(), unreadable: Arc::default() }
    }

    /// Returns in words what could not be read; of very much only the first.
    pub(crate) fn unreadable(&self) -> Vec<String> {
        lock(&self.unreadable).clone()
    }

    fn layer(&self, name: &str) -> io::Result<Arc<Layer>> {
        if let Some(known) = lock(&self.files).get(name) {
            return known.clone().ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        let len = self.below.open(name)?.len_bytes()?;
        let changes = Mutex::new(Changes { len, below: len, ..Changes::default() });
        let layer = Arc::new(Layer { name: Some(name.to_owned()), changes });
        lock(&self.files).insert(name.to_owned(), Some(Arc::clone(&layer)));
        Ok(layer)
    }

    fn file(&self, layer: Arc<Layer>) -> io::Result<Arc<dyn DiskFile>> {
        let below = layer.name.as_ref().map(|name| self.below.open(name)).transpose()?;
        Ok(Arc::new(OverlayFile { below, layer, unreadable: Arc::clone(&self.unreadable) }))
    }
}

impl Disk for Overlay {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(self.layer(name)?)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if self.layer(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let layer = Arc::<Layer>::default();
        lock(&self.files).insert(name.to_owned(), Some(Arc::clone(&layer)));
        self.file(layer)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let files = lock(&self.files);
        let mut names = self.below.list()?;
        names.retain(|name| !files.contains_key(name));
        names.extend(files.iter().filter(|(_, file)| file.is_some()).map(|(name, _)| name.clone()));
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.layer(name)?;
        lock(&self.files).insert(name.to_owned(), None);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let layer = self.layer(from)?;
        let mut files = lock(&self.files);
        files.insert(from.to_owned(), None);
        files.insert(to.to_owned(), Some(layer));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        self.below.space()
    }
}

struct OverlayFile {
    below: Option<Arc<dyn DiskFile>>,
    layer: Arc<Layer>,
    unreadable: Arc<Mutex<Vec<String>>>,
}

impl OverlayFile {
    /// Reads what the file below has, and zeros where it has nothing, or nothing that counts.
    fn read_below(&self, offset: u64, buffer: &mut [u8], counts: u64) {
        buffer.fill(0);
        let bytes = counts.saturating_sub(offset).min(buffer.len() as u64);
        let bytes = usize::try_from(bytes).unwrap_or(buffer.len());
        let Some(below) = self.below.as_ref().filter(|_| bytes > 0) else { return };
        if below.read_at(offset, &mut buffer[..bytes]).is_ok() {
            return;
        }
        for (number, part) in buffer[..bytes].chunks_mut(BLOCK_BYTES).enumerate() {
            let at = offset + (number * BLOCK_BYTES) as u64;
            let Err(error) = below.read_at(at, part) else { continue };
            part.fill(0);
            let mut unreadable = lock(&self.unreadable);
            if unreadable.len() < UNREADABLE_MAX {
                let name = self.layer.name.as_deref().unwrap_or_default();
                unreadable.push(format!("{name} cannot be read at offset {at}: {error}"));
            }
        }
    }
}

impl DiskFile for OverlayFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let changes = lock(&self.layer.changes);
        let end = offset + buffer.len() as u64;
        if end > changes.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_below(offset, buffer, changes.below);
        for (number, block) in changes.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            let target = &mut buffer[index(from - offset)..index(to - offset)];
            target.copy_from_slice(&block[index(from - start)..index(to - start)]);
        }
        Ok(())
    }

    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut changes = lock(&self.layer.changes);
        let end = offset + bytes.len() as u64;
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let (start, below) = (number * BLOCK, changes.below);
            let block = changes.blocks.entry(number).or_insert_with(|| {
                let mut block = vec![0; BLOCK_BYTES];
                self.read_below(start, &mut block, below);
                block
            });
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            let source = &bytes[index(from - offset)..index(to - offset)];
            block[index(from - start)..index(to - start)].copy_from_slice(source);
        }
        changes.len = changes.len.max(end);
        Ok(())
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)
    }

    fn reserve(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, offset: u64, bytes: u64) {
        if let Some(below) = &self.below {
            below.forget(offset, bytes);
        }
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.layer.changes).len)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let mut changes = lock(&self.layer.changes);
        changes.len = len_bytes;
        changes.below = changes.below.min(len_bytes);
        changes.blocks.split_off(&len_bytes.div_ceil(BLOCK));
        if let Some(last) = changes.blocks.get_mut(&(len_bytes / BLOCK)) {
            last[index(len_bytes % BLOCK)..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

const BLOCK: u64 = BLOCK_BYTES as u64;

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset in a buffer fits in memory")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
