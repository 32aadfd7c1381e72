//! Requests, sent to one member after the other until one answers.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use inkfast_wire::{Connection, Error as WireError, Frame, Stream};
use tokio::time::{Instant, sleep, timeout};

use super::leader::{Leader, is_refusal};
use super::members::Member;
use super::{PAUSE, REFUSALS_MAX, jittered};
use crate::error::Error;
use crate::messages::{Request, answer_from_frame, encode_request};
use crate::state::Answer;

/// How many attempts follow each other at once; before each further one is a pause.
const AT_ONCE_MAX: u32 = 3;
/// How long a member has for an answer that any member may give, before the next is asked; twice
/// as long when all have been asked in vain, and so on.
const ANYONE_DEADLINE: Duration = Duration::from_secs(1);

/// A stream on which the leader has begun to answer.
pub(super) struct Opened {
    pub(super) answer: Answer,
    pub(super) stream: Stream,
    pub(super) connection: Connection,
    pub(super) member: Arc<Member>,
}

/// A request on its way.
struct Question {
    frame: Frame,
    /// Whether the stream is needed after the first answer.
    keeps_stream: bool,
    limit: Duration,
    /// Whether it changes something.
    changes: bool,
    /// Whether a member may have made its change.
    unsettled: bool,
    /// The connection of the last attempt, if there was one.
    connection: Option<Connection>,
}

type Reply = (Result<Answer, Error>, Option<Stream>);

impl Leader {
    /// Asks whoever leads, until there is an answer or the limit is over.
    pub(super) async fn ask(
        self: &Arc<Self>,
        request: Request,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let mut question = Question::new(request, false, limit);
        let (_, (answer, _)) = question.settle(self).await?;
        answer
    }

    /// The same, with the stream on which there is more to come.
    pub(super) async fn open(
        self: &Arc<Self>,
        request: Request,
        limit: Duration,
    ) -> Result<Opened, Error> {
        let mut question = Question::new(request, true, limit);
        let (member, (answer, stream)) = question.settle(self).await?;
        let answer = answer?;
        match (stream, question.connection) {
            (Some(stream), Some(connection)) => Ok(Opened { answer, stream, connection, member }),
            _ => Err(Error::unavailable("a stream ended before it began")),
        }
    }

    /// Asks any member for what any can tell: the one that told something last, or leads, and the
    /// others if it does not answer.
    pub(super) async fn ask_anyone(
        &self,
        request: Request,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let frame = encode_request(request);
        match timeout(limit, self.try_all(&frame)).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => Err(Error::unavailable(self.members().words())),
        }
    }

    /// Asks one member after the other; none if all of them refuse us.
    async fn try_all(&self, frame: &Frame) -> Option<Result<Answer, Error>> {
        let begun = Instant::now();
        let mut deadline = ANYONE_DEADLINE;
        loop {
            let mut only_refused = true;
            for member in self.near_first() {
                match member.request(frame.clone(), deadline).await {
                    Ok(Err(Error::Unavailable { why })) => member.note(why),
                    Ok(Err(refused @ Error::NotLeader { .. })) => member.note(refused.to_string()),
                    Ok(answer) => {
                        self.members().set_near(&member);
                        return Some(answer);
                    }
                    Err(error) => {
                        member.note(error.to_string());
                        if is_refusal(&error) {
                            continue;
                        }
                    }
                }
                only_refused = false;
            }
            if only_refused && (begun.elapsed() >= REFUSALS_MAX || self.members().all().is_empty())
            {
                return None;
            }
            deadline *= 2;
            sleep(jittered(PAUSE)).await;
        }
    }

    fn near_first(&self) -> Vec<Arc<Member>> {
        let mut all = self.members().all();
        if let Some(near) = self.members().near().or_else(|| self.believed())
            && let Some(place) = all.iter().position(|member| Arc::ptr_eq(member, &near))
        {
            all[..=place].rotate_right(1);
        }
        all
    }
}

impl Question {
    fn new(request: Request, keeps_stream: bool, limit: Duration) -> Self {
        let changes = request.changes();
        let frame = encode_request(request);
        Self { frame, keeps_stream, limit, changes, unsettled: false, connection: None }
    }

    /// Gets the answer, and tells who gave it.
    async fn settle(&mut self, leader: &Arc<Leader>) -> Result<(Arc<Member>, Reply), Error> {
        let timeout_after = self.limit;
        match timeout(timeout_after, self.put(leader)).await {
            Ok(Some(answered)) => Ok(answered),
            Ok(None) | Err(_) => {
                let why = leader.members().words();
                Err(if self.unsettled {
                    Error::TimedOut { timeout: timeout_after, why }
                } else {
                    Error::Unavailable { why }
                })
            }
        }
    }

    /// Asks whoever is believed to lead until it is answered; none if all members refuse us.
    async fn put(&mut self, leader: &Arc<Leader>) -> Option<(Arc<Member>, Reply)> {
        for attempt in 1_u32.. {
            let member = leader.find().await?;
            match leader.unless_moved(&member, self.exchange(&member)).await {
                Some(Ok((Err(Error::NotLeader { leader: named }), _))) => {
                    leader.redirect(&member, named.as_deref());
                }
                Some(Ok((Err(Error::Unavailable { why }), _))) => member.note(why),
                Some(Ok(reply)) => return Some((member, reply)),
                Some(Err(error)) => leader.fail(&member, self.connection.as_ref(), &error),
                None => tracing::debug!(from = member.address(), "a request goes to a new leader"),
            }
            if attempt >= AT_ONCE_MAX {
                sleep(jittered(PAUSE)).await;
            }
        }
        None
    }

    async fn exchange(&mut self, member: &Member) -> Result<Reply, WireError> {
        self.connection = None;
        let connection = self.connection.insert(member.connection().await?);
        let unsettled = mem::replace(&mut self.unsettled, self.changes);
        let (answer, stream) = if self.keeps_stream {
            let mut stream = connection.open().await?;
            stream.sender.send(&self.frame).await?;
            let ended = || WireError::Lost { why: "the member ended the stream".into() };
            (stream.receiver.next().await?.ok_or_else(ended)?, Some(stream))
        } else {
            (connection.request(self.frame.clone(), self.limit).await?, None)
        };
        let answer = answer_from_frame(answer).map_err(|why| WireError::Malformed { why })?;
        if matches!(answer, Err(Error::NotLeader { .. })) {
            self.unsettled = unsettled;
        }
        Ok((answer, stream))
    }
}
