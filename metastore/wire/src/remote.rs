//! A process that is called again whenever the connection to it was lost.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use uuid::Uuid;

use crate::{Connection, Endpoint, Error, Frame, Role};

/// How long an attempt to connect may take, over all addresses.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long an address has before the next one is tried as well.
const ADDRESS_HEAD_START: Duration = Duration::from_millis(200);

/// The most addresses that one attempt tries, names resolved.
const ADDRESSES_MAX: usize = 8;

/// The pause after the first attempt that failed; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Where the doubling ends.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Says who is to be reached.
#[derive(Clone, Debug)]
pub struct Target {
    /// What the process is for; anyone else at the address is refused.
    pub role: Role,
    /// The process that is meant; others at the address refuse before they answer anything.
    /// Without it any process of the role will do.
    pub instance: Option<Uuid>,
    /// Where it may be, as `host:port`, the best first. The first that lets us in is taken.
    pub addresses: Vec<String>,
}

/// Reaches one process and shares one connection to it, which is made when it is first needed
/// and again after it was lost.
///
/// Clones are the same remote. Nothing happens while nobody asks.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

struct Shared {
    endpoint: Endpoint,
    target: Target,
    state: Mutex<State>,
}

struct State {
    /// The latest attempt; `None` inside while it is under way.
    attempt: watch::Receiver<Option<Outcome>>,
    failures: u32,
    /// The next attempt waits until then.
    not_before: Instant,
}

type Outcome = Result<Connection, Error>;

impl Remote {
    /// Makes a remote; connects to nothing yet.
    pub fn new(endpoint: &Endpoint, target: Target) -> Self {
        let state =
            State { attempt: watch::channel(None).1, failures: 0, not_before: Instant::now() };
        Self(Arc::new(Shared { endpoint: endpoint.clone(), target, state: Mutex::new(state) }))
    }

    /// Gives who is to be reached.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// Gives the connection, and makes it first if there is none that lives.
    ///
    /// Everyone who asks meanwhile gets the outcome of the same attempt, which takes at most 2 s,
    /// after a pause of 50 to 500 ms that grows with the attempts which failed in a row. Dropping
    /// the future does not stop the attempt.
    pub async fn connection(&self) -> Result<Connection, Error> {
        let mut attempt = self.attempt();
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Error::lost("the attempt to connect was abandoned")),
        }
    }

    /// Connects if need be, and makes a [`request`](Connection::request); all before `deadline`
    /// has passed.
    pub async fn request(&self, frame: Frame, deadline: Duration) -> Result<Frame, Error> {
        let late = Instant::now() + deadline;
        let connection = timeout(deadline, self.connection()).await.map_err(|_| {
            let what =
                format!("a connection to {}, {deadline:?}", self.0.target.addresses.join(", "));
            Error::TimedOut { what }
        })??;
        connection.request(frame, late.saturating_duration_since(Instant::now())).await
    }

    /// Gives the attempt under way or the one that succeeded, or begins another.
    fn attempt(&self) -> watch::Receiver<Option<Outcome>> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = match &*state.attempt.borrow() {
            // Its task may have been dropped with a runtime.
            None => state.attempt.has_changed().is_ok(),
            Some(Ok(connection)) => !connection.is_closed(),
            Some(Err(_)) => false,
        };
        if !usable {
            let (sender, receiver) = watch::channel(None);
            state.attempt = receiver;
            let (shared, not_before) = (self.0.clone(), state.not_before);
            tokio::spawn(async move {
                sleep_until(not_before).await;
                let outcome = shared.connect().await;
                shared.note(outcome.is_ok());
                // Nobody may be waiting any more.
                let _ = sender.send(Some(outcome));
            });
        }
        state.attempt.clone()
    }
}

impl Shared {
    /// Tries all addresses, the later ones a little later, and takes the first that works.
    async fn connect(&self) -> Outcome {
        let deadline = Instant::now() + CONNECT_DEADLINE;
        let (role, wanted) = (self.target.role, self.target.instance);
        let tries = self.target.addresses.iter().cloned().map(|host_port| {
            let endpoint = self.endpoint.clone();
            async move {
                let addresses = in_time(deadline, &host_port, endpoint.resolve(&host_port)).await?;
                race(addresses.into_iter().map(|address| {
                    let (endpoint, host_port) = (endpoint.clone(), host_port.clone());
                    async move {
                        let connecting = endpoint.connect(address, role, wanted);
                        in_time(deadline, &host_port, connecting).await
                    }
                }))
                .await
            }
        });
        race(tries).await
    }

    /// Takes the outcome of an attempt into account for the pause before the next.
    fn note(&self, connected: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures = if connected { 0 } else { state.failures.saturating_add(1) };
        state.not_before = Instant::now() + pause(state.failures);
    }
}

/// Gives the pause after so many failures in a row; the least one also after none, so that a
/// peer which lets us in and dies is not called without end.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    let pause = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
    // Those who lost the same peer should not all come back at once.
    pause.mul_f64(0.5 + 0.5 * fastrand::f64())
}

async fn in_time<T>(
    deadline: Instant,
    host_port: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout_at(deadline, work).await.map_err(|_| Error::TimedOut {
        what: format!("a connection to {host_port}, {CONNECT_DEADLINE:?}"),
    })?
}

/// Runs all of `tries`, each a little after the one before it, until one succeeds.
async fn race<F>(tries: impl Iterator<Item = F>) -> Outcome
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut start = Instant::now();
    for attempt in tries.take(ADDRESSES_MAX) {
        running.spawn(async move {
            sleep_until(start).await;
            attempt.await
        });
        start += ADDRESS_HEAD_START;
    }
    let mut failed = Error::Unreachable {
        address: "any address".into(),
        why: "none is known; give at least one".into(),
    };
    while let Some(outcome) = running.join_next().await {
        match outcome {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) if tells(&error) >= tells(&failed) => failed = error,
            _ => {}
        }
    }
    Err(failed)
}

/// Ranks errors by how much they help: somebody answered, something is known, nothing is.
fn tells(error: &Error) -> u8 {
    match error {
        Error::Refused { .. } | Error::WrongPeer { .. } => 2,
        Error::TimedOut { .. } | Error::Unreachable { .. } => 0,
        _ => 1,
    }
}
