//! The file of the log: who the member is, its vote, and the entries that are not purged.
//!
//! Every value is [sealed](seal) with its place, so a record that is torn, damaged or at the place
//! of another is found. Entries follow each other without a hole, from the one after the purged.

use std::fmt::Display;
use std::io;
use std::ops::{Range, RangeInclusive};

use bytes::Bytes;
use inkfast_metastore::rows::StateError;
use prost::Message;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use crate::consensus::codec::Coded;
use crate::consensus::types::{Entry, LogId, Vote};
use crate::database::{self, META, seal, unseal};
use crate::directory::{Files, LOG};
use crate::error::Error;
use crate::member::{Member, StoredMember};

/// The most memory that redb's cache takes. Entries are written once and seldom read.
const CACHE_BYTES: usize = 16 << 20;

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META_MEMBER: &str = "member";
const META_VOTE: &str = "vote";
const META_PURGED: &str = "purged";

/// The open file.
#[derive(Debug)]
pub(crate) struct LogFile(Database);

/// What a file had when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) member: Member,
    /// Whether the cluster begins with this member.
    pub(crate) founder: bool,
    /// Whether it has yet to be made a voter for the first time.
    pub(crate) joining: bool,
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    /// The last entry's, or else the purged.
    pub(crate) last: Option<LogId>,
    pub(crate) entries: Range<u64>,
}

/// What is done to the file, several together in one transaction.
pub(crate) enum Change {
    Append(Vec<Entry>),
    /// Removes the entries from this index on.
    Truncate(u64),
    /// Removes the entries up to this one.
    Purge(LogId),
    Vote(Vote),
    /// Notes that the member was made a voter.
    Joined,
}

/// Entries of a range.
pub(crate) struct Read {
    pub(crate) entries: Vec<Entry>,
    /// Whether there was no room for all of them.
    pub(crate) more: bool,
}

impl LogFile {
    /// Makes the file of a new member under a name of its own, to be renamed when all is there.
    pub(crate) fn make(
        files: &dyn Files,
        name: &str,
        member: &StoredMember,
        changes: &[Change],
    ) -> Result<Self, Error> {
        let fill = |transaction: &WriteTransaction| {
            set(&mut transaction.open_table(META)?, META_MEMBER, &member.encode_to_vec())?;
            write_all(transaction, changes)
        };
        database::make(files, name, CACHE_BYTES, fill).map(Self)
    }

    /// Opens the file and checks every entry; there are few, for the log is purged.
    pub(crate) fn open(files: &dyn Files) -> Result<(Self, Found), Error> {
        let file = Self(database::open(files, LOG, CACHE_BYTES, true)?);
        let found = file.check().map_err(|error| Error::not_a_metastore(error.0))?;
        Ok((file, found))
    }

    fn check(&self) -> Result<Found, StateError> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let meta = transaction.open_table(META).map_err(broken)?;
        let member = stored_member(&meta)?;
        let vote = value(&meta, META_VOTE)?.map(Vote::decode).transpose().map_err(broken)?;
        let purged = value(&meta, META_PURGED)?.map(LogId::decode).transpose().map_err(broken)?;
        let first = purged.map_or(0, |purged| purged.index + 1);
        let (mut last, mut next) = (purged, first);
        for row in transaction
            .open_table(ENTRIES)
            .and_then(|entries| Ok(entries.range::<u64>(..)?))
            .map_err(broken)?
        {
            let (index, sealed) = row.map_err(broken)?;
            let entry = entry(index.value(), sealed.value())?;
            if entry.log_id.index != next {
                return Err(broken(format!("there is no entry {next}, but {}", index.value())));
            }
            if last.is_some_and(|last| entry.log_id.leader_id < last.leader_id) {
                return Err(broken(format!("the entry {next} is of an earlier term than others")));
            }
            (last, next) = (Some(entry.log_id), next + 1);
        }
        let (founder, joining) = (member.founder, member.joining);
        let member = member.member().ok_or_else(|| broken("it does not say whose it is"))?;
        Ok(Found { member, founder, joining, vote, purged, last, entries: first..next })
    }

    /// Does changes in their order, and syncs them.
    ///
    /// One sync is all that it takes: without a second one, and without a saved map of free pages,
    /// an open after a kill verifies the checksums of the whole file and falls back to the commit
    /// before if the last one is not whole. That is a walk over a file that is small, where the
    /// state's saves it with a dearer commit. As with every log that is synced once, damage to the
    /// last commit before a kill cannot be told from a commit that the kill cut short; damage to
    /// any earlier one is found.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<(), StateError> {
        let commit = || {
            let mut transaction = self.0.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            write_all(&transaction, changes)?;
            Ok(transaction.commit()?)
        };
        commit().map_err(|error: redb::Error| broken(error))
    }

    /// Reads entries of a range until there are so many bytes, at least one. Those that are
    /// not there are left out.
    pub(crate) fn read(
        &self,
        range: RangeInclusive<u64>,
        bytes_max: usize,
    ) -> Result<Read, StateError> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let entries = transaction.open_table(ENTRIES).map_err(broken)?;
        let (mut read, mut bytes) = (Read { entries: Vec::new(), more: false }, 0);
        for row in entries.range(range).map_err(broken)? {
            let (index, sealed) = row.map_err(broken)?;
            bytes += sealed.value().len();
            if bytes > bytes_max && !read.entries.is_empty() {
                read.more = true;
                break;
            }
            read.entries.push(entry(index.value(), sealed.value())?);
        }
        Ok(read)
    }
}

fn write_all(transaction: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let mut entries = transaction.open_table(ENTRIES)?;
    for change in changes {
        match change {
            Change::Append(appended) => {
                for entry in appended {
                    let index = entry.log_id.index;
                    let sealed = seal(&index.to_le_bytes(), &entry.encode());
                    entries.insert(index, sealed.as_slice())?;
                }
            }
            Change::Truncate(from) => entries.retain_in::<u64, _>(from.., |_, _| false)?,
            Change::Purge(upto) => {
                entries.retain_in::<u64, _>(..=upto.index, |_, _| false)?;
                set(&mut meta, META_PURGED, &upto.encode())?;
            }
            Change::Vote(vote) => set(&mut meta, META_VOTE, &vote.encode())?,
            Change::Joined => {
                let mut member = stored_member(&meta).map_err(io::Error::other)?;
                member.joining = false;
                set(&mut meta, META_MEMBER, &member.encode_to_vec())?;
            }
        }
    }
    Ok(())
}

fn set(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    name: &str,
    value: &[u8],
) -> Result<(), redb::Error> {
    meta.insert(name, seal(name.as_bytes(), value).as_slice())?;
    Ok(())
}

fn stored_member(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<StoredMember, StateError> {
    let member = value(meta, META_MEMBER)?.and_then(|bytes| StoredMember::decode(bytes).ok());
    member.ok_or_else(|| broken("it does not say whose it is"))
}

fn value(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<Bytes>, StateError> {
    let Some(sealed) = meta.get(name).map_err(broken)? else { return Ok(None) };
    match unseal(name.as_bytes(), sealed.value()) {
        Some(value) => Ok(Some(Bytes::copy_from_slice(value))),
        None => Err(broken(format!("its {name} is damaged"))),
    }
}

fn entry(index: u64, sealed: &[u8]) -> Result<Entry, StateError> {
    let value = unseal(&index.to_le_bytes(), sealed)
        .ok_or_else(|| broken(format!("the entry {index} is damaged")))?;
    let entry = Entry::decode(Bytes::copy_from_slice(value))
        .map_err(|error| broken(format!("the entry {index}: {error}")))?;
    if entry.log_id.index != index {
        return Err(broken(format!("the entry {index} is the entry {}", entry.log_id.index)));
    }
    Ok(entry)
}

fn broken(why: impl Display) -> StateError {
    StateError(format!("{LOG}: {why}"))
}
