//! What bookies have on their disks: that nothing confirmed is lost however often they are killed,
//! and that what was deleted goes.
//!
//! Here is what these tests share: entries whose bytes tell which they are, so that each is checked
//! wherever it is read, and looks at a bookie's directory and process from outside.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::try_join_all;
use inkfast::{Client, CreateOptions, EntryId, Error, LedgerId, LedgerWriter, Replication};

use crate::cluster::Cluster;
use crate::load::until;
use crate::metastores::library::Library;
use crate::random::Random;

mod deleted;
mod figures;
mod kills;
mod space;

/// The bytes of an entry that does not have to be small.
const LARGE: usize = 64 << 10;
/// A little less than a segment of the log.
const SEGMENT_BYTES: u64 = 255 << 20;

/// The library, as a client of this cluster.
fn library(cluster: &Cluster) -> (Library, Client) {
    let library = Library::new(cluster.home().join("certs"), vec![cluster.metastore.address]);
    let client = library.client();
    (library, client)
}

/// The entry of this number: bytes that no other entry has.
fn payload(ledger: LedgerId, entry: u64, bytes: usize) -> Bytes {
    let mut random = Random::new(ledger.get() << 32 ^ entry);
    let mut payload = Vec::with_capacity(bytes + 24);
    payload.extend(ledger.get().to_le_bytes());
    payload.extend(entry.to_le_bytes());
    while payload.len() < bytes {
        payload.extend(random.next().to_le_bytes());
    }
    payload.truncate(bytes);
    payload.into()
}

async fn create(client: &Client, bookies: usize, ack_quorum: usize) -> Result<LedgerWriter, Error> {
    let replication = Replication::new(bookies, bookies, ack_quorum).unwrap();
    client.create_ledger(CreateOptions { replication, ..CreateOptions::default() }).await
}

/// Appends these entries, all under way at once as far as the writer lets them, and waits until
/// they are confirmed.
async fn append(
    writer: &LedgerWriter,
    entries: std::ops::Range<u64>,
    bytes: impl Fn(u64) -> usize,
) -> Result<(), Error> {
    let mut under_way = Vec::new();
    for entry in entries {
        let append = writer.append(payload(writer.id(), entry, bytes(entry))).await?;
        assert_eq!(append.entry(), EntryId::new(entry));
        under_way.push(append);
    }
    try_join_all(under_way).await.map(drop)
}

/// Writes so many ledgers of so many large entries at once, so that their entries are mixed in the
/// log, and closes them.
async fn write_mixed(client: &Client, ledgers: usize, entries: u64) -> Vec<LedgerId> {
    let write = || async {
        let writer = create(client, 1, 1).await?;
        append(&writer, 0..entries, |_| LARGE).await?;
        let ledger = writer.id();
        writer.close().await.map(|_| ledger)
    };
    try_join_all((0..ledgers).map(|_| write())).await.unwrap()
}

/// Reads a ledger, whose end must be known, and gives how many entries it has. Panics if one of them
/// is another than was written.
async fn check(
    client: &Client,
    ledger: LedgerId,
    bytes: impl Fn(u64) -> usize,
) -> Result<u64, Error> {
    let reader = client.open_ledger(ledger).await?;
    let Some(last) = reader.last_add_confirmed().await? else { return Ok(0) };
    let mut read = Box::pin(reader.read(EntryId::FIRST..=last));
    let mut next = 0;
    while let Some(entry) = read.try_next().await? {
        assert_eq!(entry.id(), EntryId::new(next), "ledger {ledger}");
        let is_equal = entry.payload() == payload(ledger, next, bytes(next));
        assert!(is_equal, "ledger {ledger}, entry {next}: other bytes came back");
        next += 1;
    }
    assert_eq!(next, last.get() + 1, "ledger {ledger}: entries read, and its end");
    Ok(next)
}

/// Checks ledgers of so many large entries.
async fn check_large(client: &Client, ledgers: &[LedgerId], entries: u64) {
    for &ledger in ledgers {
        assert_eq!(check(client, ledger, |_| LARGE).await.unwrap(), entries, "ledger {ledger}");
    }
}

async fn delete(client: &Client, ledgers: &[LedgerId]) {
    try_join_all(ledgers.iter().map(|&ledger| client.delete_ledger(ledger))).await.unwrap();
}

/// The blocks of a directory's files, in bytes.
fn disk_bytes(dir: &Path) -> u64 {
    files(dir).map(|(_, bytes)| bytes).sum()
}

/// The bytes of the segments that are not free for use again.
fn log_bytes(dir: &Path) -> u64 {
    files(dir).filter(|(name, _)| name.starts_with("log-")).map(|(_, bytes)| bytes).sum()
}

/// The names of the segments that are not free for use again, in their order.
fn log_names(dir: &Path) -> Vec<String> {
    let names = files(dir).map(|(name, _)| name).filter(|name| name.starts_with("log-"));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The names of a directory's files, and the bytes of their blocks.
fn files(dir: &Path) -> impl Iterator<Item = (String, u64)> {
    fs::read_dir(dir).unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        // It may have another name by now.
        let blocks = entry.metadata().ok()?.blocks();
        Some((entry.file_name().into_string().unwrap(), blocks * 512))
    })
}

/// Waits until the ledgers' segments take no more than this.
fn wait_collected(dir: &Path, bytes_max: u64) {
    until("collected", || log_bytes(dir) <= bytes_max);
}

/// A number that the system tells of a process, in a line of one of its files.
fn figure(id: u32, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}"))
}
