//! Copies of the state on their way from one member to another, or to a backup.
//!
//! A copy is a stream of chunks: protobuf messages of rows, the last of which also says how many
//! rows there were, of how many bytes, and their checksum. So a copy that ends too early or has
//! lost something is known as such before it is used.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use inkfast_metastore::rows::{Rows, RowsMut, StateError};
use inkfast_metastore::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use inkfast_wire::FRAME_BYTES_MAX;
use prost::Message;
use prost::encoding::message::encoded_len;
use redb::{Database, Durability};
use tokio::sync::OwnedSemaphorePermit;

use crate::consensus::types::SnapshotMeta;
use crate::directory::{Files, INCOMING};
use crate::error::Error;
use crate::rows::{ReadRows, state_error};
use crate::store::{self, Copy, Executor, Sending, Shared, Store};

/// The most bytes of rows in a chunk, as they are encoded; a larger row goes alone.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// The most bytes of a row, as it is encoded: a key and its value, and what is noted with them.
const ROW_BYTES_MAX: usize = KEY_BYTES_MAX + VALUE_BYTES_MAX + 256;
/// The most bytes around the rows: their totals, and the message that the chunk is sent in.
const AROUND_BYTES_MAX: usize = 512;

// Each chunk goes in a frame.
const _: () = {
    assert!(CHUNK_BYTES + AROUND_BYTES_MAX <= FRAME_BYTES_MAX);
    assert!(ROW_BYTES_MAX + AROUND_BYTES_MAX <= FRAME_BYTES_MAX);
};

/// A snapshot that openraft has to do with.
pub(crate) enum SnapshotData {
    /// One to be sent.
    View(View),
    /// One that came.
    Received(Received),
}

/// The state as it was at a moment, while others change it.
pub(crate) struct View {
    copy: Arc<Copy>,
    executor: Executor,
    /// None if a read was broken off.
    reading: Option<Box<Reading>>,
    shared: Arc<Shared>,
    /// From when on it is being sent.
    sending: Option<Sending>,
}

struct Reading {
    rows: ReadRows,
    chunks: Chunks,
}

/// A copy of a state, as far as it has come. Dropped, it is forgotten.
pub(crate) struct Incoming {
    /// None if a write was broken off.
    filling: Option<Filling>,
    executor: Executor,
    place: Place,
}

/// A copy of a state that is whole. Dropped, it is forgotten.
pub(crate) struct Received {
    database: Database,
    _place: Place,
}

/// The file of what comes; there is only one.
struct Place {
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Store {
    /// Looks at the state as it is now, all of it on disk, and says how much of the log it has.
    pub(crate) async fn view(&self) -> Result<(SnapshotMeta, View), StateError> {
        let (executor, shared) = (self.executor, self.shared.clone());
        self.sync_and(move |copy| {
            let (meta, rows) =
                copy.read(|database| Ok((store::read_applied(database)?, store::rows(database)?)))?;
            let reading = Some(Box::new(Reading { rows, chunks: Chunks::default() }));
            Ok((meta, View { copy, executor, reading, shared, sending: None }))
        })
        .await
    }

    /// Begins to receive a copy, if none is being received.
    pub(crate) async fn receive(&self) -> Result<Incoming, StateError> {
        let permit = self.shared.receiving.clone().try_acquire_owned();
        let _permit =
            permit.map_err(|_| StateError("another snapshot is being received".into()))?;
        let place = Place { shared: self.shared.clone(), _permit };
        let make = move || {
            let filling = place.shared.files(|files| Ok(Filling::make(files, INCOMING)))?;
            Ok((filling.map_err(state_error)?, place))
        };
        let (filling, place) = self.executor.run(make).await.flatten()?;
        Ok(Incoming { filling: Some(filling), executor: self.executor, place })
    }

    /// Puts a copy in the place of the state. A power cut leaves the one or the other.
    pub(crate) async fn install(
        &self,
        received: Received,
        meta: SnapshotMeta,
    ) -> Result<(), StateError> {
        let Received { database, _place } = received;
        let finish = move || {
            store::write(&database, Durability::Immediate, |_, applied| {
                *applied = meta;
                Ok(())
            })?;
            Ok(database)
        };
        let database = self.executor.run(finish).await.flatten()?;
        self.replace(INCOMING, database).await
    }
}

impl View {
    /// Notes that the view is being sent, until it is dropped: the log after it is kept for
    /// whoever receives it, [as long as it may be](Store::keeps_log).
    pub(crate) fn keep_log(&mut self) {
        self.sending.get_or_insert_with(|| Sending::begin(&self.shared));
    }

    /// Reads the next chunk; none after the last. Each fits a frame.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StateError> {
        let mut reading = self.reading.take().ok_or_else(broken_off)?;
        let copy = self.copy.clone();
        let read = move || {
            let chunk = copy.read(|_| reading.chunks.next(&reading.rows))?;
            Ok((reading, chunk))
        };
        let (reading, chunk) = self.executor.run(read).await.flatten()?;
        self.reading = Some(reading);
        Ok(chunk)
    }
}

impl Incoming {
    /// Takes the next chunk.
    pub(crate) async fn add(&mut self, chunk: Bytes) -> Result<(), StateError> {
        let mut filling = self.filling.take().ok_or_else(broken_off)?;
        let add = move || {
            filling.add(chunk)?;
            Ok(filling)
        };
        self.filling = Some(self.executor.run(add).await.flatten()?);
        Ok(())
    }

    /// Ends the copy. Refuses one that is not whole.
    pub(crate) async fn finish(self) -> Result<Received, StateError> {
        let database = self.filling.ok_or_else(broken_off)?.finish()?;
        Ok(Received { database, _place: self.place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // If it was installed, it is not there; if it cannot be removed, the next start does it.
        let _ = self.shared.files(|files| files.remove(INCOMING));
    }
}

/// A file that is filled with a copy of a state.
pub(crate) struct Filling {
    database: Database,
    totals: Totals,
    ended: bool,
}

impl Filling {
    pub(crate) fn make(files: &dyn Files, name: &str) -> Result<Self, Error> {
        let database = store::make(files, name)?;
        Ok(Self { database, totals: Totals::default(), ended: false })
    }

    /// Adds the rows of a chunk, not yet durably.
    pub(crate) fn add(&mut self, chunk: Bytes) -> Result<(), StateError> {
        if self.ended {
            return Err(StateError("a copy of a state goes on after its end".into()));
        }
        let Chunk { rows: added, end } = Chunk::decode(chunk).map_err(state_error)?;
        store::write(&self.database, Durability::None, |rows, _| {
            added.iter().try_for_each(|Row { key, value }| rows.insert(key, value))
        })?;
        added.iter().for_each(|row| self.totals.count(row));
        match end {
            Some(end) if end != self.totals => Err(StateError(format!(
                "a copy of a state is damaged: it has {:?}, and should have {end:?}",
                self.totals
            ))),
            end => {
                self.ended = end.is_some();
                Ok(())
            }
        }
    }

    /// Returns what has come so far.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns the file, which still has to be synced, if all has come.
    pub(crate) fn finish(self) -> Result<Database, StateError> {
        match self.ended {
            true => Ok(self.database),
            false => Err(StateError("a copy of a state has no end: it was broken off".into())),
        }
    }
}

/// Turns rows into chunks.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    last: Option<Vec<u8>>,
    pub(crate) totals: Totals,
    ended: bool,
}

impl Chunks {
    /// Returns the next chunk of rows, which are always the same; none after the last.
    pub(crate) fn next(&mut self, rows: &impl Rows) -> Result<Option<Bytes>, StateError> {
        if self.ended {
            return Ok(None);
        }
        let (mut chunk, mut bytes) = (Chunk::default(), 0);
        let from = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = rows.walk(from)?;
        loop {
            let Some((key, value)) = rest.next().transpose()? else {
                chunk.end = Some(self.totals);
                self.ended = true;
                break;
            };
            let row = Row { key: key.into(), value };
            bytes += encoded_len(ROWS_TAG, &row);
            if bytes > CHUNK_BYTES && !chunk.rows.is_empty() {
                // The next chunk begins with it.
                break;
            }
            self.totals.count(&row);
            chunk.rows.push(row);
        }
        self.last = chunk.rows.last().map(|row| row.key.to_vec());
        Ok(Some(chunk.encode_to_vec().into()))
    }
}

const ROWS_TAG: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    /// Tagged as [`ROWS_TAG`] says.
    #[prost(message, repeated, tag = "1")]
    rows: Vec<Row>,
    /// In the last one only.
    #[prost(message, optional, tag = "2")]
    end: Option<Totals>,
}

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// What a copy has in all.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Totals {
    #[prost(uint64, tag = "1")]
    pub(crate) rows: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) bytes: u64,
    /// Of all keys and values with their lengths, in order.
    #[prost(fixed32, tag = "3")]
    checksum: u32,
}

impl Totals {
    fn count(&mut self, Row { key, value }: &Row) {
        self.rows += 1;
        for part in [key, value] {
            let length = part.len() as u64;
            self.bytes += length;
            self.checksum = crc32c::crc32c_append(self.checksum, &length.to_le_bytes());
            self.checksum = crc32c::crc32c_append(self.checksum, part);
        }
    }
}

fn broken_off() -> StateError {
    StateError("a copy of a state was broken off".into())
}

#[cfg(test)]
mod tests;
