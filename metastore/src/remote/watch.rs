//! A watch over the wire: one member at a time is asked for more, and when it is lost another.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use inkfast_wire::{Error as WireError, Frame, Stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{ATTEMPT_TIMEOUT, Member, Members, Tried, pause};
use crate::error::Error;
use crate::limits::check_watch;
use crate::messages::{Request, answer_from_frame, encode_request};
use crate::state::Answer;
use crate::types::{Change, Version};
use crate::watches::PROGRESS_INTERVAL;

/// Watches at whatever member answers.
pub(crate) struct RemoteWatch {
    members: Arc<Members>,
    prefix: String,
    /// Everything up to here has been told.
    seen: Version,
    /// Whose turn it is.
    turn: usize,
    /// What that member was asked on, once it was.
    asked: Option<Asked>,
    /// None while a member tells; over several calls if they are dropped.
    search: Option<Search>,
    _permit: OwnedSemaphorePermit,
}

/// A stream on which a member was asked to tell.
struct Asked {
    stream: Stream,
    /// When its next answer has to be here; none if it was not asked for one.
    due: Option<Instant>,
}

/// The time since there was a member that tells.
struct Search {
    since: Instant,
    tried: Tried,
}

impl RemoteWatch {
    /// Begins a watch, when a member has taken it.
    pub(super) async fn begin(
        members: &Arc<Members>,
        prefix: &str,
        after: Version,
    ) -> Result<Self, Error> {
        check_watch(prefix)?;
        let permit = members.watches.clone().try_acquire_owned().map_err(|_| {
            Error::bad_request("this process has as many watches as it can: drop some")
        })?;
        let mut watch = Self {
            members: members.clone(),
            prefix: prefix.into(),
            seen: after,
            turn: members.favourite.load(Ordering::Relaxed),
            asked: None,
            search: Some(Search::default()),
            _permit: permit,
        };
        watch.answer().await?.done()?;
        // It is found, whenever the first answer is wanted.
        watch.search = None;
        Ok(watch)
    }

    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            match self.answer().await? {
                // Another member has taken the watch.
                Answer::Done => {}
                other => {
                    let told = other.told()?;
                    self.search = None;
                    self.seen = told.seen;
                    if !told.changes.is_empty() {
                        return Ok(told.changes);
                    }
                }
            }
        }
    }

    /// Gets the next answer, from one member after the other until one gives it.
    async fn answer(&mut self) -> Result<Answer, Error> {
        loop {
            let late = self.search.as_ref().map(|search| search.since + self.members.timeout);
            let answer = match late {
                // Who has taken the watch may have nothing to tell for longer than the timeout.
                Some(late) if self.asked.is_none() => timeout_at(late, self.attempt()).await.ok(),
                _ => Some(self.attempt().await),
            };
            match answer {
                Some(Some(answer)) => return answer,
                Some(None) if self.search.as_ref().is_none_or(|it| !it.tried.only_refused()) => {
                    self.turn = self.turn.wrapping_add(1);
                    sleep(pause()).await;
                }
                _ => {
                    // A later call begins anew.
                    self.asked = None;
                    let why = self.search.take().unwrap_or_default().tried.into_words();
                    return Err(Error::unavailable(why));
                }
            }
        }
    }

    /// Asks the member whose turn it is; none if another has to be asked.
    async fn attempt(&mut self) -> Option<Result<Answer, Error>> {
        let members = self.members.clone();
        let Some(member) = members.at(self.turn) else {
            return Some(Err(Error::unavailable(Tried::default().into_words())));
        };
        let answer = self.ask(member).await.map(answer_from_frame);
        let tried = &mut self.search.get_or_insert_default().tried;
        match answer {
            Ok(Ok(Err(Error::Unavailable { why })) | Err(why)) => {
                self.asked = None;
                tried.note(member, why)
            }
            Ok(Ok(answer)) => {
                if answer.is_err() {
                    self.asked = None;
                }
                self.members.favourite.store(self.turn, Ordering::Relaxed);
                Some(answer)
            }
            Err(error) => {
                self.asked = None;
                tried.failed(member, &error)
            }
        }
    }

    /// Asks a member for an answer, if that was not done yet, and waits for it.
    async fn ask(&mut self, member: &Member) -> Result<Frame, WireError> {
        let asked = match &mut self.asked {
            Some(asked) => asked,
            empty => {
                if let Some(search) = &mut self.search {
                    search.tried.connecting(member);
                }
                let watch = Request::Watch { prefix: self.prefix.clone(), after: self.seen };
                let connection = member.remote.connection().await?;
                let mut stream = in_time(connection.open()).await?;
                in_time(stream.sender.send(&encode_request(watch))).await?;
                empty.insert(Asked { stream, due: Some(Instant::now() + ATTEMPT_TIMEOUT) })
            }
        };
        let due = match asked.due {
            Some(due) => due,
            None => {
                in_time(asked.stream.sender.send(&encode_request(Request::More))).await?;
                *asked.due.insert(Instant::now() + PROGRESS_INTERVAL + ATTEMPT_TIMEOUT)
            }
        };
        let answer = timeout_at(due, asked.stream.receiver.next()).await.map_err(|_| late())?;
        asked.due = None;
        answer?.ok_or_else(|| WireError::Lost { why: "the member ended the watch".into() })
    }
}

impl Default for Search {
    fn default() -> Self {
        Self { since: Instant::now(), tried: Tried::default() }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    timeout(ATTEMPT_TIMEOUT, work).await.map_err(|_| late())?
}

fn late() -> WireError {
    WireError::TimedOut { what: "what a watch has to tell".into() }
}
