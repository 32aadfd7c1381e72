//! Reading entries that were located.

use std::collections::VecDeque;

use bytes::BytesMut;
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use inkfast_wire::FRAME_HEADER_BYTES;

use super::Store;
use crate::log::{Place, ReadError};

/// An entry that is wanted: where it is, or what is to be said of it.
pub(crate) type Wanted = (EntryId, Result<Place, Refusal>);

impl Store {
    /// Reads entries of a ledger that were located, and says of each in order what came of it. The
    /// caller limits how much it asks for: the entries take no other memory than theirs. Each stands
    /// behind the room for a frame's header.
    pub(crate) async fn read(
        &self,
        ledger: LedgerId,
        wanted: Vec<Wanted>,
    ) -> Vec<Result<BytesMut, Refusal>> {
        let places = wanted.iter().filter_map(|(_, place)| place.as_ref().ok().copied());
        let read = self.reader.read_many(places.collect(), FRAME_HEADER_BYTES).await;
        let mut read: VecDeque<_> = read.into();
        let mut entries = Vec::with_capacity(wanted.len());
        for (entry, place) in wanted {
            entries.push(match place.map(|place| (place, read.pop_front())) {
                Ok((_, Some(Ok(bytes)))) => Ok(bytes),
                Ok((place, Some(Err(error)))) => self.read_moved(ledger, entry, place, error).await,
                Ok((_, None)) => Err(Refusal::Unknown("the copy was not read".to_owned())),
                Err(refusal) => Err(refusal),
            });
        }
        entries
    }

    /// Reads an entry that was not found at its place where it is now, if the log has moved it
    /// meanwhile.
    async fn read_moved(
        &self,
        ledger: LedgerId,
        entry: EntryId,
        place: Place,
        error: ReadError,
    ) -> Result<BytesMut, Refusal> {
        if matches!(error, ReadError::Log(_)) {
            return Err(said(error));
        }
        match self.locate(ledger, vec![entry]).await?.pop() {
            Some(Ok(now)) if now != place => {
                let read = self.reader.read_many(vec![now], FRAME_HEADER_BYTES).await.pop();
                read.unwrap_or(Err(error)).map_err(said)
            }
            Some(Err(refusal)) => Err(refusal),
            Some(Ok(_)) | None => Err(said(error)),
        }
    }
}

/// A copy that is lost or damaged is not absent, and one that cannot be read now may be sound.
pub(super) fn said(error: ReadError) -> Refusal {
    match error {
        ReadError::Corrupt { .. } | ReadError::Gone { .. } => Refusal::Corrupt(error.to_string()),
        ReadError::Log(_) => Refusal::Unknown(error.to_string()),
    }
}
