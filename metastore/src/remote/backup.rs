//! Backups, taken from a metastore that runs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use inkfast_wire::Stream;
use tokio::time::timeout;

use super::leader::Leader;
use crate::error::Error;
use crate::messages::{Request, answer_from_frame};
use crate::state::Answer;

/// How long the first piece may take.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long each further piece may take.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// All that a metastore had at one moment, piece by piece.
#[derive(Debug)]
pub struct Backup {
    stream: Stream,
    first: Option<Bytes>,
    ended: bool,
}

impl Backup {
    pub(super) async fn begin(leader: &Arc<Leader>) -> Result<Self, Error> {
        let opened = leader.open(Request::Backup, BEGIN_TIMEOUT).await?;
        let first = opened.answer.piece()?;
        Ok(Self { stream: opened.stream, ended: first.is_empty(), first: Some(first) })
    }

    /// Waits for the next bytes, of which there is at least one; none at the end of the backup,
    /// which is then whole.
    ///
    /// Fails with [`Error::Unavailable`] when it breaks off, or nothing comes for 30 s. What came
    /// is of no use then: begin another.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let piece = match self.first.take() {
            Some(first) => first,
            None if self.ended => return Ok(None),
            None => self.receive().await?.piece()?,
        };
        self.ended = piece.is_empty();
        Ok((!self.ended).then_some(piece))
    }

    async fn receive(&mut self) -> Result<Answer, Error> {
        let broke_off = |why| Error::unavailable(format!("the backup broke off: {why}"));
        let frame = timeout(PIECE_TIMEOUT, self.stream.receiver.next())
            .await
            .map_err(|_| broke_off(format!("nothing came for {PIECE_TIMEOUT:?}")))?
            .map_err(|error| broke_off(error.to_string()))?
            .ok_or_else(|| broke_off("the member ended it".into()))?;
        answer_from_frame(frame).map_err(broke_off)?
    }
}
