//! The state's rows in a table of redb.

use std::fmt::Display;
use std::ops::Bound;

use bytes::Bytes;
use inkfast_metastore::rows::{Rows, RowsMut, StateError};
use redb::{ReadOnlyTable, ReadableTable, Table};

/// A table of redb, to read or to change.
pub(crate) struct RedbRows<T>(pub(crate) T);

/// The rows as they were when the reading began.
pub(crate) type ReadRows = RedbRows<ReadOnlyTable<&'static [u8], &'static [u8]>>;
/// The rows of a transaction that has not been committed.
pub(crate) type WriteRows<'t> = RedbRows<Table<'t, &'static [u8], &'static [u8]>>;

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Rows for RedbRows<T> {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.0.get(row).map_err(state_error)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn walk(
        &self,
        from: Bound<Vec<u8>>,
    ) -> Result<impl Iterator<Item = Result<(Vec<u8>, Bytes), StateError>>, StateError> {
        let from = from.as_ref().map(Vec::as_slice);
        let rows = self.0.range::<&[u8]>((from, Bound::Unbounded)).map_err(state_error)?;
        Ok(rows.map(|row| {
            let (row, value) = row.map_err(state_error)?;
            Ok((row.value().to_vec(), Bytes::copy_from_slice(value.value())))
        }))
    }
}

impl RowsMut for WriteRows<'_> {
    fn insert(&mut self, row: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.0.insert(row, value).map_err(state_error)?;
        Ok(())
    }

    fn remove(&mut self, row: &[u8]) -> Result<(), StateError> {
        self.0.remove(row).map_err(state_error)?;
        Ok(())
    }
}

pub(crate) fn state_error(error: impl Display) -> StateError {
    StateError(error.to_string())
}
