//! The file under redb, in which no byte changes unnoticed.
//!
//! redb does not check what it reads: one changed bit of a key would hide a run. So every page is
//! checked here.
//!
//! | block | what |
//! |---|---|
//! | 0, 1 | the front, twice: see [`Front`] |
//! | 2 | the checksums of pages 0 to 1023, each a CRC32C of its number and its bytes |
//! | 3 to 1026 | these pages |
//! | 1027 | the checksums of the next 1024 pages, and so on |
//!
//! A block is as long as a page of redb. What redb has in its page 0 is in the front: it is the only
//! page that is overwritten while it counts. All others are written where nothing is that counts,
//! and a checksum changes with its page, so a torn write hits nothing of the last commit. A sync
//! makes the pages durable, then one copy of the front, then the other. So one of the two is always
//! whole: if one is damaged, the other has the same, or what a sync that was cut short had before.

use std::collections::BTreeSet;
use std::fmt::{self, Debug, Formatter};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Buf, BufMut};
use redb::StorageBackend;
use uuid::Uuid;

use super::IndexError;
use crate::disk::{BLOCK_BYTES, DiskFile};

const MAGIC: &[u8; 8] = b"inkf-idx";
/// The format of the file, all that redb has in it included; a higher one is refused.
const FORMAT: u32 = 1;
/// How much redb uses of its first page, and some more.
const FIRST_PAGE_BYTES: usize = 512;
/// The copies of the front.
const FRONTS: usize = 2;
/// How many pages one block has the checksums of.
const GROUP_PAGES: usize = BLOCK_BYTES / 4;

/// A file whose pages are checked.
pub(super) struct Pages {
    file: Arc<dyn DiskFile>,
    checksums: Mutex<Checksums>,
    /// Held while the file is synced, which readers need not wait for.
    front: Mutex<Front>,
    damage: OnceLock<String>,
}

#[derive(Default)]
struct Checksums {
    /// 0 is that of a page that was never written.
    of_pages: Vec<u32>,
    /// The groups whose block is to be written.
    changed: BTreeSet<usize>,
}

/// What the file says of itself.
///
/// | offset | bytes | what, little-endian |
/// |---|---|---|
/// | 0 | 8 | `inkf-idx` |
/// | 8 | 4 | CRC32C of the rest of the block |
/// | 12 | 4 | format version; all before here is so in every format |
/// | 16 | 16 | the log that the index belongs to |
/// | 32 | 8 | how often the front was written |
/// | 40 | 8 | how long redb's file is |
/// | 48 | 512 | redb's first page, as far as it is used; then zeros up to a block |
#[derive(Clone, PartialEq, Eq)]
struct Front {
    log: Uuid,
    sequence: u64,
    len: u64,
    first_page: [u8; FIRST_PAGE_BYTES],
    changed: bool,
}

impl Pages {
    /// Makes an empty file of a log, of one that is empty.
    pub(super) fn create(file: Arc<dyn DiskFile>, log: Uuid) -> Self {
        let front =
            Front { log, sequence: 0, len: 0, first_page: [0; FIRST_PAGE_BYTES], changed: false };
        Self::new(file, front, Checksums::default())
    }

    /// Opens a file. Refuses one of another log or of a newer format.
    pub(super) fn open(file: Arc<dyn DiskFile>, log: Uuid) -> Result<Self, IndexError> {
        let file_bytes = file.len_bytes()?;
        if file_bytes < offset_of(FRONTS) {
            return Err(IndexError::Damaged("it is cut short".to_owned()));
        }
        let mut fronts = [None, None];
        for (copy, front) in fronts.iter_mut().enumerate() {
            let mut block = [0; BLOCK_BYTES];
            file.read_at(offset_of(copy), &mut block)?;
            *front = Front::decode(&block, log)?;
        }
        let newest = fronts.iter().flatten().max_by_key(|front| front.sequence);
        let front = newest
            .cloned()
            .ok_or_else(|| IndexError::Damaged("what it begins with is unreadable".to_owned()))?;
        if file_bytes < file_bytes_for(front.len) {
            return Err(IndexError::Damaged("it is cut short".to_owned()));
        }
        for (copy, found) in fronts.iter().enumerate() {
            if found.as_ref() != Some(&front) {
                file.write_at(offset_of(copy), &front.encode())?;
                file.sync_data()?;
            }
        }
        let mut checksums = Checksums::default();
        for group in 0..pages_in(front.len).div_ceil(GROUP_PAGES) {
            let mut block = [0; BLOCK_BYTES];
            file.read_at(offset_of(checksums_block(group)), &mut block)?;
            let (checks, _) = block.as_chunks();
            checksums.of_pages.extend(checks.iter().map(|check| u32::from_le_bytes(*check)));
        }
        checksums.of_pages.truncate(pages_in(front.len));
        Ok(Self::new(file, front, checksums))
    }

    fn new(file: Arc<dyn DiskFile>, front: Front, checksums: Checksums) -> Self {
        let (front, checksums) = (Mutex::new(front), Mutex::new(checksums));
        Self { file, checksums, front, damage: OnceLock::new() }
    }

    /// Says that the file is damaged if that was found, now or before: redb knows it as an error of
    /// the disk, and of each later call only that there was one.
    pub(super) fn damaged_or(&self, error: IndexError) -> IndexError {
        self.damage.get().map_or(error, |words| IndexError::Damaged(words.clone()))
    }

    /// Makes everything durable: the pages, then the front, if it has changed.
    fn sync(&self, front: &mut Front) -> io::Result<()> {
        for (group, block) in self.checksums().take_changed() {
            self.file.write_at(offset_of(checksums_block(group)), &block)?;
        }
        self.file.sync_data()?;
        if front.changed {
            front.sequence += 1;
            for copy in 0..FRONTS {
                self.file.write_at(offset_of(copy), &front.encode())?;
                self.file.sync_data()?;
            }
            front.changed = false;
        }
        Ok(())
    }

    fn read_pages(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for (page, bytes) in pieces(offset, out.len())? {
            let out = &mut out[bytes];
            self.file.read_at(offset_of(block_of(page)), out)?;
            let expected = {
                let checksums = self.checksums();
                let known = checksums.of_pages.get(page..page + out.len() / BLOCK_BYTES);
                known.map(<[u32]>::to_vec).unwrap_or_default()
            };
            let found = checksums_of(page, out);
            if found != expected {
                let bad = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                let words = format!("its page {} is not as it was written", page + bad);
                self.damage.get_or_init(|| words.clone());
                return Err(io::Error::new(io::ErrorKind::InvalidData, words));
            }
        }
        Ok(())
    }

    fn write_pages(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (page, bytes) in pieces(offset, data.len())? {
            let data = &data[bytes];
            self.file.write_at(offset_of(block_of(page)), data)?;
            self.checksums().set(page, &checksums_of(page, data));
        }
        Ok(())
    }

    fn checksums(&self) -> MutexGuard<'_, Checksums> {
        self.checksums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checksums {
    fn set(&mut self, page: usize, checksums: &[u32]) {
        let end = page + checksums.len();
        self.of_pages.resize(self.of_pages.len().max(end), 0);
        self.of_pages[page..end].copy_from_slice(checksums);
        self.changed.extend(page / GROUP_PAGES..=(end - 1) / GROUP_PAGES);
    }

    /// Returns the blocks to be written.
    fn take_changed(&mut self) -> Vec<(usize, [u8; BLOCK_BYTES])> {
        let changed = std::mem::take(&mut self.changed);
        let block = |group: usize| {
            let mut block = [0; BLOCK_BYTES];
            let checksums = self.of_pages.chunks(GROUP_PAGES).nth(group)?;
            for (bytes, checksum) in block.as_chunks_mut().0.iter_mut().zip(checksums) {
                *bytes = checksum.to_le_bytes();
            }
            Some((group, block))
        };
        changed.into_iter().filter_map(block).collect()
    }
}

impl Front {
    fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut rest = &mut block[..];
        rest.put_slice(MAGIC);
        rest.put_u32_le(0);
        rest.put_u32_le(FORMAT);
        rest.put_slice(self.log.as_bytes());
        rest.put_u64_le(self.sequence);
        rest.put_u64_le(self.len);
        rest.put_slice(&self.first_page);
        let checksum = crc32c::crc32c(&block[12..]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Reads a copy; none if it is damaged.
    fn decode(block: &[u8; BLOCK_BYTES], log: Uuid) -> Result<Option<Self>, IndexError> {
        let mut rest = &block[..];
        let mut magic = [0; MAGIC.len()];
        rest.copy_to_slice(&mut magic);
        let checksum = rest.get_u32_le();
        if magic != *MAGIC || checksum != crc32c::crc32c(rest) {
            return Ok(None);
        }
        let format = rest.get_u32_le();
        if format != FORMAT {
            return Err(IndexError::Refused(format!(
                "it has format {format}, and this program knows {FORMAT}; start a newer program"
            )));
        }
        let mut found = [0; 16];
        rest.copy_to_slice(&mut found);
        let found = Uuid::from_bytes(found);
        if found != log {
            return Err(IndexError::Refused(format!(
                "it belongs to the log {found}, not to {log}: it was copied from elsewhere"
            )));
        }
        let (sequence, len) = (rest.get_u64_le(), rest.get_u64_le());
        let mut first_page = [0; FIRST_PAGE_BYTES];
        rest.copy_to_slice(&mut first_page);
        Ok(Some(Self { log, sequence, len, first_page, changed: false }))
    }
}

/// The pages as redb's file. It is not locked: whoever has the disk is alone.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<Pages>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.front().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset > 0 {
            return self.0.read_pages(offset, out);
        }
        let front = self.0.front();
        out.copy_from_slice(front.first_page.get(..out.len()).ok_or_else(not_in_pages)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset > 0 {
            return self.0.write_pages(offset, data);
        }
        let mut front = self.0.front();
        front.first_page.get_mut(..data.len()).ok_or_else(not_in_pages)?.copy_from_slice(data);
        front.changed = true;
        Ok(())
    }

    /// A growth is durable with the next sync that has something to say in the first page; one
    /// that makes the file shorter is at once, or redb would walk all of it at the next start.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut front = self.0.front();
        let shorter = len < front.len;
        front.len = len;
        self.0.checksums().of_pages.resize(pages_in(len), 0);
        if shorter {
            front.changed = true;
            self.0.sync(&mut front)?;
        }
        self.0.file.set_len(file_bytes_for(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync(&mut self.0.front())
    }
}

impl Debug for Pages {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("damage", &self.damage).finish_non_exhaustive()
    }
}

/// Splits whole pages so that no piece reaches beyond its group: the first page of each piece, and
/// which of the bytes are its.
fn pieces(offset: u64, bytes: usize) -> io::Result<Vec<(usize, Range<usize>)>> {
    if !offset.is_multiple_of(BLOCK_BYTES as u64) || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(not_in_pages());
    }
    let first = pages_in(offset);
    let mut pieces = Vec::with_capacity(1);
    let mut start = 0;
    while start < bytes {
        let page = first + start / BLOCK_BYTES;
        let in_group = (GROUP_PAGES - page % GROUP_PAGES) * BLOCK_BYTES;
        let end = bytes.min(start + in_group);
        pieces.push((page, start..end));
        start = end;
    }
    Ok(pieces)
}

fn not_in_pages() -> io::Error {
    io::Error::other("redb does not read and write in pages as it did; this is a mistake of ours")
}

fn checksums_of(first: usize, pages: &[u8]) -> Vec<u32> {
    let checksum = |(page, bytes)| {
        let seed = crc32c::crc32c(&u64::to_le_bytes(page));
        crc32c::crc32c_append(seed, bytes).max(1)
    };
    (first as u64..).zip(pages.chunks(BLOCK_BYTES)).map(checksum).collect()
}

/// How many pages there are in a file of redb; far more than any disk has, if there is no telling.
fn pages_in(len: u64) -> usize {
    usize::try_from(len.div_ceil(BLOCK_BYTES as u64)).unwrap_or(usize::MAX)
}

const fn checksums_block(group: usize) -> usize {
    FRONTS + group * (1 + GROUP_PAGES)
}

const fn block_of(page: usize) -> usize {
    checksums_block(page / GROUP_PAGES) + 1 + page % GROUP_PAGES
}

const fn offset_of(block: usize) -> u64 {
    block as u64 * BLOCK_BYTES as u64
}

/// How long the file is when redb's is so long.
fn file_bytes_for(len: u64) -> u64 {
    offset_of(pages_in(len).checked_sub(1).map_or(FRONTS, |last| block_of(last) + 1))
}
