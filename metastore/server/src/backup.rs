//! Backups: the state in one file, from which a cluster can begin again.
//!
//! A backup is a line of text that says what it is, and then pieces: the length of each and the
//! checksum of length and bytes (four bytes each, little endian), and the bytes. The first is a
//! protobuf message that says of which cluster it is and how much of the log it has, the others are
//! the chunks of a [copy of the state](crate::snapshot), the last of which says that it is the last
//! and what there is in all. So nothing can be lost, changed or cut off unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use inkfast_metastore::rows::{Rows, StateError};
use inkfast_metastore::{Version, state};
use prost::Message;
use redb::Durability;
use uuid::Uuid;

use crate::consensus::codec::{Coded, SnapshotMetaMessage};
use crate::consensus::log::file::{Change, LogFile};
use crate::consensus::machine::apply_entry;
use crate::consensus::types::{
    Address, LeaderId, LogId, Membership, NodeId, SnapshotMeta, StoredMembership, Vote,
};
use crate::database::{seal, unseal};
use crate::directory::{Directory, Files, LOG, NEW_LOG, NEW_STATE, STATE};
use crate::error::Error;
use crate::member::{Member, StoredMember};
use crate::rows::state_error;
use crate::snapshot::{CHUNK_BYTES, Chunks, Filling, Totals, View};
use crate::storage;
use crate::store::{self, Store};

/// What a backup begins with.
const FIRST_LINE: &[u8] = b"A backup of an Inkfast metastore, version 1.\n";
/// The most bytes of a piece: a chunk, with the largest row and what encodes its rows.
const PIECE_BYTES_MAX: usize = 4 * CHUNK_BYTES;

/// A backup that is being made.
pub(crate) struct Backup {
    header: Option<Bytes>,
    view: View,
}

/// What a backup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// The cluster.
    pub cluster: Uuid,
    /// The term of the last entry of the log that it has.
    pub term: u64,
    /// The index of that entry.
    pub entry: u64,
    /// The revision that the state is at.
    pub revision: Version,
    /// How many rows the state has.
    pub rows: u64,
    /// How many bytes the rows have.
    pub bytes: u64,
}

/// What a backup has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreSummary {
    /// The id of the member that lives in the directory now.
    pub member: Uuid,
    /// The revision that its state is at, after its leap.
    pub revision: Version,
    /// How many rows the state has.
    pub rows: u64,
}

impl Backup {
    /// Begins a backup of the state as it is now.
    pub(crate) async fn of(store: &Store, cluster: Uuid) -> Result<Self, StateError> {
        let (meta, view) = store.view().await?;
        let (header, _) = header(cluster, &meta)?;
        Ok(Self { header: Some(header), view })
    }

    /// Returns the next bytes of the file; none after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StateError> {
        if let Some(header) = self.header.take() {
            return Ok(Some(header));
        }
        Ok(self.view.next().await?.map(|chunk| piece(&chunk)))
    }
}

/// Backs up the member of a directory that does not run, to a new file.
///
/// The backup has the member's whole log. What is at its end and not yet in the state is applied,
/// whether this member knew that the cluster had agreed on it or not: the leader may have answered
/// it. Nothing is changed in the directory.
///
/// This is for when the majority of a cluster is lost: **what this member had not heard of is
/// lost**. Of several take the one whose log ends in the highest term, and among those the one with
/// the highest entry, as an election would. A log that is longer but ends in a lower term has what
/// was never agreed on, and may lack what was.
///
/// Refuses a directory that has no member or in which one runs, and a file that is there.
pub async fn backup_directory(dir: &Path, file: &Path) -> Result<BackupSummary, Error> {
    let (dir, file) = (dir.to_owned(), file.to_owned());
    blocking(move || back_up(&dir, &file)).await
}

/// Makes of a backup the only member of its cluster, in a directory that is missing or empty.
///
/// The member is a new one. All sequences, the revision and the numbers of leases
/// [leap](state::leap), so that nothing that was given out after the backup is given out again.
/// Refuses a file that is damaged or not whole; the directory has no member then.
pub async fn restore(file: &Path, dir: &Path) -> Result<RestoreSummary, Error> {
    let (dir, file) = (dir.to_owned(), file.to_owned());
    blocking(move || restore_now(&file, &dir)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(state_error)?
}

fn back_up(dir: &Path, path: &Path) -> Result<BackupSummary, Error> {
    if !Directory::has_member(dir)? {
        let why = "no member of a metastore lives in it".into();
        return Err(Error::Directory { path: dir.into(), why });
    }
    let files = Directory::lock(dir)?;
    let (log, found) = LogFile::open(&files)?;
    let database = storage::open_state(&files, &found)?;
    let transaction = database.begin_write().map_err(state_error)?;
    let summary = store::work_on(&transaction, |rows, meta| {
        let next = meta.last_log_id.map_or(0, |last| last.index + 1).max(found.entries.start);
        for index in next..found.entries.end {
            for entry in log.read(index..=index, usize::MAX)?.entries {
                // What it was answered with does not matter any more.
                let _ = apply_entry(rows, meta, entry, &mut Vec::new())?;
            }
        }
        Ok(write_file(path, found.member.cluster, rows, meta))
    })?;
    transaction.abort().map_err(state_error)?;
    summary
}

fn write_file(
    path: &Path,
    cluster: Uuid,
    rows: &impl Rows,
    meta: &SnapshotMeta,
) -> Result<BackupSummary, Error> {
    let (header, last) = header(cluster, meta)?;
    let failed = |error: io::Error| Error::Backup { path: path.into(), why: error.to_string() };
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let write = || {
        let mut file = BufWriter::new(file);
        file.write_all(&header).map_err(failed)?;
        let mut chunks = Chunks::default();
        while let Some(chunk) = chunks.next(rows)? {
            file.write_all(&piece(&chunk)).map_err(failed)?;
        }
        file.into_inner()
            .map_err(io::Error::from)
            .and_then(|file| file.sync_all())
            .map_err(failed)?;
        let Totals { rows: count, bytes, .. } = chunks.totals;
        let revision = state::revision(rows)?;
        let (term, entry) = (last.leader_id.term, last.index);
        Ok(BackupSummary { cluster, term, entry, revision, rows: count, bytes })
    };
    let written = write();
    if written.is_err() {
        // It is of no use, and in the way of another attempt.
        let _ = fs::remove_file(path);
    }
    written
}

fn restore_now(path: &Path, dir: &Path) -> Result<RestoreSummary, Error> {
    let failed = |why| Error::Backup { path: path.into(), why };
    let (header, mut pieces) = Pieces::open(path).map_err(failed)?;
    let files = Directory::lock_empty(dir)?;
    let mut restore = || {
        let mut filling = Filling::make(&files, NEW_STATE)?;
        while let Some(chunk) = pieces.next().map_err(failed)? {
            filling.add(chunk).map_err(|error| failed(error.0))?;
        }
        let rows = filling.totals().rows;
        let database = filling.finish().map_err(|error| failed(error.0))?;
        let Header { cluster, last, meta } = header.clone();
        let member = Member::new(cluster);
        let revision = store::write(&database, Durability::Immediate, |rows, applied| {
            state::leap(rows)?;
            *applied = alone(&member, meta, last)?;
            state::revision(rows)
        })?;
        drop(database);
        make_log(&files, &member, last)?;
        Ok(RestoreSummary { member: member.id, revision, rows })
    };
    let restored = restore();
    if restored.is_err() {
        for left in [NEW_STATE, NEW_LOG] {
            // The next start or attempt removes it.
            let _ = files.remove(left);
        }
    }
    restored
}

/// Makes the member the only one of its cluster.
fn alone(member: &Member, meta: SnapshotMeta, last: LogId) -> Result<SnapshotMeta, StateError> {
    let id = NodeId(member.id);
    // It says where it is when it starts.
    let nodes = BTreeMap::from([(id, Address::default())]);
    let membership = Membership::new(vec![BTreeSet::from([id])], nodes).map_err(state_error)?;
    Ok(SnapshotMeta { last_membership: StoredMembership::new(Some(last), membership), ..meta })
}

/// Makes a log that ends where the state does, and so makes the directory a member's.
///
/// The member was the last candidate of the last term, so it elects itself in the next.
fn make_log(files: &Directory, member: &Member, last: LogId) -> Result<(), Error> {
    let leader_id = LeaderId { term: last.leader_id.term, voted_for: NodeId(member.id) };
    let vote = Vote { leader_id, committed: false };
    let changes = [Change::Purge(last), Change::Vote(vote)];
    drop(LogFile::make(files, NEW_LOG, &StoredMember::new(member, false), &changes)?);
    for (from, to) in [(NEW_STATE, STATE), (NEW_LOG, LOG)] {
        files.rename(from, to).map_err(|error| Error::database(to, error))?;
    }
    Ok(())
}

/// Makes the beginning of a backup, and returns it with the last entry of the log that the backup
/// has. Refuses a state to which nothing has been done.
fn header(cluster: Uuid, meta: &SnapshotMeta) -> Result<(Bytes, LogId), StateError> {
    let nothing = || StateError("nothing was ever written: there is nothing to back up".into());
    let last = meta.last_log_id.ok_or_else(nothing)?;
    let header = HeaderMessage {
        cluster: Bytes::copy_from_slice(cluster.as_bytes()),
        meta: Some(meta.to_message()),
    };
    Ok(([FIRST_LINE, &piece(&header.encode_to_vec())].concat().into(), last))
}

/// Puts length and checksum before the bytes of a piece.
fn piece(bytes: &[u8]) -> Bytes {
    let length = u32::try_from(bytes.len()).expect("a piece is small").to_le_bytes();
    [length.as_slice(), &seal(&length, bytes)].concat().into()
}

#[derive(Clone, PartialEq, Message)]
struct HeaderMessage {
    #[prost(bytes = "bytes", tag = "1")]
    cluster: Bytes,
    #[prost(message, optional, tag = "2")]
    meta: Option<SnapshotMetaMessage>,
}

/// What a backup says of itself.
#[derive(Clone)]
struct Header {
    cluster: Uuid,
    /// The last entry of the log that it has.
    last: LogId,
    meta: SnapshotMeta,
}

/// Reads the pieces of a backup, or says what is wrong with it.
struct Pieces(BufReader<File>);

impl Pieces {
    fn open(path: &Path) -> Result<(Header, Self), String> {
        let mut pieces = Self(BufReader::new(File::open(path).map_err(|error| error.to_string())?));
        let mut first_line = [0; FIRST_LINE.len()];
        pieces.0.read_exact(&mut first_line).map_err(|_| "it is no backup of a metastore")?;
        if first_line != FIRST_LINE {
            return Err("it is no backup of a metastore, or one of a newer version".into());
        }
        let header = pieces.next()?.ok_or("it ends too early")?;
        let unreadable = || "what it says of itself cannot be read".to_string();
        let header = HeaderMessage::decode(header).map_err(|_| unreadable())?;
        let meta = SnapshotMeta::from_message(header.meta.ok_or_else(unreadable)?);
        let meta = meta.map_err(|error| error.to_string())?;
        let cluster = Uuid::from_slice(&header.cluster).map_err(|_| unreadable())?;
        let last = meta.last_log_id.ok_or_else(unreadable)?;
        Ok((Header { cluster, last, meta }, pieces))
    }

    /// Reads the next piece; none at the end of the file.
    fn next(&mut self) -> Result<Option<Bytes>, String> {
        if self.0.fill_buf().map_err(|error| error.to_string())?.is_empty() {
            return Ok(None);
        }
        let early = |_| "it ends too early".to_string();
        let mut length = [0; 4];
        self.0.read_exact(&mut length).map_err(early)?;
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > PIECE_BYTES_MAX {
            return Err("it is damaged".into());
        }
        let mut sealed = vec![0; 4 + bytes];
        self.0.read_exact(&mut sealed).map_err(early)?;
        let piece = unseal(&length, &sealed).ok_or("it is damaged")?;
        Ok(Some(Bytes::copy_from_slice(piece)))
    }
}

#[cfg(test)]
mod tests;
