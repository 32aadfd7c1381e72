//! A watch over the wire: the leader is asked for more, and when it is lost the next one.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use inkfast_wire::Error as WireError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::ask::Opened;
use super::leader::Leader;
use super::{Held, PAUSE, UNUSED_KEY, jittered};
use crate::error::Error;
use crate::limits::check_watch;
use crate::messages::{Request, answer_from_frame, encode_request};
use crate::state::{Answer, Told};
use crate::types::{Change, Version};
use crate::watches::PROGRESS_INTERVAL;

/// The most watches at a time: each has a stream, of which requests need some as well.
const WATCHES_MAX: usize = 10_000;
/// How long a watch's answer may take beyond the time after which there is one in any case.
const PROGRESS_MARGIN: Duration = Duration::from_secs(1);
/// The pause between two questions to the leader whether it leads, up to twice as long by chance.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// What the watches of a process share.
pub(super) struct Watching {
    leader: Arc<Leader>,
    /// How long a watch looks for a leader before it says that there is none.
    timeout: Duration,
    permits: Arc<Semaphore>,
    /// The task that asks the leader whether it leads, as long as there are watches.
    heartbeat: Mutex<Weak<Held>>,
}

/// Watches at whatever member leads.
pub(crate) struct RemoteWatch {
    shared: Arc<Watching>,
    prefix: String,
    /// Everything up to here has been told.
    seen: Version,
    state: State,
    _permit: OwnedSemaphorePermit,
    _heartbeat: Arc<Held>,
}

enum State {
    /// No member tells.
    Idle,
    /// The one task here has the leader take the watch. It goes on where a wait is broken off.
    Beginning(JoinSet<Result<Opened, Error>>),
    /// A member tells.
    Begun(Box<Begun>),
}

/// A watch that a member has taken.
struct Begun {
    at: Opened,
    /// When its next answer has to be here; none if it was not asked for one.
    due: Option<Instant>,
}

impl Watching {
    pub(super) fn new(leader: Arc<Leader>, timeout: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(WATCHES_MAX));
        Self { leader, timeout, permits, heartbeat: Mutex::default() }
    }

    /// Asks the leader now and then whether it still leads, at least as long as what is returned
    /// is held: a watch with nothing to be told would learn late that its member is lost.
    fn heartbeat(&self) -> Arc<Held> {
        let mut heartbeat = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = heartbeat.upgrade()
            && !running.0.is_finished()
        {
            return running;
        }
        let (leader, limit) = (self.leader.clone(), self.timeout);
        let running = Arc::new(Held(tokio::spawn(async move {
            loop {
                sleep(jittered(HEARTBEAT_INTERVAL)).await;
                let read = Request::Get { key: UNUSED_KEY.into(), stale: false };
                // To have been answered is all; and if not, it has been searched for a leader.
                let _ = leader.ask(read, limit).await;
            }
        })));
        *heartbeat = Arc::downgrade(&running);
        running
    }
}

impl RemoteWatch {
    /// Begins a watch, when the leader has taken it.
    pub(super) async fn begin(
        shared: &Arc<Watching>,
        prefix: &str,
        after: Version,
    ) -> Result<Self, Error> {
        check_watch(prefix)?;
        let permit = shared.permits.clone().try_acquire_owned().map_err(|_| {
            Error::bad_request("this process has as many watches as it can: drop some")
        })?;
        let mut watch = Self {
            shared: shared.clone(),
            prefix: prefix.into(),
            seen: after,
            state: State::Idle,
            _permit: permit,
            _heartbeat: shared.heartbeat(),
        };
        watch.begun().await?;
        Ok(watch)
    }

    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            let leader = self.shared.leader.clone();
            let begun = self.begun().await?;
            let (member, connection) = (begun.at.member.clone(), begun.at.connection.clone());
            let told = tokio::select! {
                biased;
                told = begun.more() => told,
                () = leader.moved(&member) => {
                    self.state = State::Idle;
                    continue;
                }
            };
            match told {
                Ok(Ok(told)) => {
                    self.seen = told.seen;
                    if !told.changes.is_empty() {
                        return Ok(told.changes);
                    }
                    continue;
                }
                Ok(Err(Error::NotLeader { leader: named })) => {
                    leader.redirect(&member, named.as_deref());
                }
                Ok(Err(Error::Unavailable { why })) => member.note(why),
                Ok(Err(error)) => {
                    self.state = State::Idle;
                    return Err(error);
                }
                Err(WireError::TimedOut { what }) => member.note(what),
                Err(error) => leader.fail(&member, Some(&connection), &error),
            }
            self.state = State::Idle;
            sleep(jittered(PAUSE)).await;
        }
    }

    /// Has the leader take the watch, if that was not done yet.
    async fn begun(&mut self) -> Result<&mut Begun, Error> {
        if let State::Idle = self.state {
            let (leader, limit) = (self.shared.leader.clone(), self.shared.timeout);
            let request = Request::Watch { prefix: self.prefix.clone(), after: self.seen };
            let mut task = JoinSet::new();
            task.spawn(async move { leader.open(request, limit).await });
            self.state = State::Beginning(task);
        }
        if let State::Beginning(task) = &mut self.state {
            let opened = task.join_next().await;
            self.state = State::Idle;
            let opened = match opened {
                Some(Ok(Ok(opened))) => opened,
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(_)) | None => return Err(Error::unavailable("its task was abandoned")),
            };
            opened.answer.clone().done()?;
            self.state = State::Begun(Box::new(Begun { at: opened, due: None }));
        }
        match &mut self.state {
            State::Begun(begun) => Ok(begun),
            State::Idle | State::Beginning(_) => Err(Error::unavailable("the watch did not begin")),
        }
    }
}

impl Begun {
    /// Asks for more, if that was not done yet, and waits for it.
    async fn more(&mut self) -> Result<Result<Told, Error>, WireError> {
        let late = || WireError::TimedOut { what: "what a watch has to tell".into() };
        let stream = &mut self.at.stream;
        let due = match self.due {
            Some(due) => due,
            None => {
                let due = Instant::now() + PROGRESS_INTERVAL + PROGRESS_MARGIN;
                let more = encode_request(Request::More);
                timeout_at(due, stream.sender.send(&more)).await.map_err(|_| late())??;
                *self.due.insert(due)
            }
        };
        let answer = timeout_at(due, stream.receiver.next()).await.map_err(|_| late())?;
        self.due = None;
        let ended = || WireError::Lost { why: "the member ended the watch".into() };
        let answer = answer_from_frame(answer?.ok_or_else(ended)?);
        answer
            .map(|answer| answer.and_then(Answer::told))
            .map_err(|why| WireError::Malformed { why })
    }
}
