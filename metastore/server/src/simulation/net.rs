//! The network between members, and from clients to them: late, lossy, cut, as the seed says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use inkfast_wire::Frame;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use uuid::Uuid;

use super::record::Record;
use crate::consensus::Consensus;
use crate::consensus::network::Peers;
use crate::consensus::types::Runtime;
use crate::service::Front;

/// Who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Member(usize),
    Client(usize),
}

/// What becomes of messages, each a share of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) lost: u16,
    pub(super) slow: u16,
}

/// The network. Clones are the same.
#[derive(Clone)]
pub(super) struct SimNet(Arc<Mutex<Inner>>);

struct Inner {
    random: Rng,
    running: BTreeMap<Place, Running>,
    lives: u64,
    /// From whom nothing gets to whom.
    cuts: BTreeSet<(Place, Place)>,
    paused_until: BTreeMap<Place, Instant>,
    weather: Weather,
    record: Record,
}

/// A member that runs.
#[derive(Clone)]
pub(super) struct Running {
    /// Tells it from the same member before and after a restart.
    pub(super) life: u64,
    pub(super) id: Uuid,
    pub(super) front: Front,
    pub(super) consensus: Consensus,
}

/// One end of an exchange: a member in one of its lives, or a client.
#[derive(Clone, Copy, Debug)]
struct End(Place, Option<u64>);

/// A call to whoever is at an address.
struct Call<'a> {
    from: End,
    to: &'a str,
    what: String,
    /// When the answer is waited for no more.
    late: Instant,
}

/// The network as a member has it, as long as it lives.
pub(super) struct Port {
    pub(super) net: SimNet,
    pub(super) place: Place,
    pub(super) life: u64,
    pub(super) id: Uuid,
}

impl Place {
    pub(super) fn address(self) -> String {
        format!("{self}:1")
    }

    fn at(address: &str) -> Option<Self> {
        let number = address.strip_prefix('m')?.strip_suffix(":1")?;
        number.parse().ok().map(Self::Member)
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(number) => write!(f, "m{number}"),
            Self::Client(number) => write!(f, "c{number}"),
        }
    }
}

impl SimNet {
    pub(super) fn new(random: Rng, record: Record) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random,
            running: BTreeMap::new(),
            lives: 0,
            cuts: BTreeSet::new(),
            paused_until: BTreeMap::new(),
            weather: Weather::default(),
            record,
        })))
    }

    /// Gives a number that was not given before.
    pub(super) fn new_life(&self) -> u64 {
        let mut inner = self.lock();
        inner.lives += 1;
        inner.lives
    }

    pub(super) fn connect(&self, place: Place, running: Running) {
        self.lock().running.insert(place, running);
    }

    /// Takes a member off the network: nothing that it has sent and not yet delivered arrives.
    pub(super) fn disconnect(&self, place: Place) {
        self.lock().running.remove(&place);
    }

    pub(super) fn running(&self, place: Place) -> Option<Running> {
        self.lock().running.get(&place).cloned()
    }

    /// Returns the address of the member that runs and comes next after an address, in a ring.
    pub(super) fn next_member(&self, after: &str) -> String {
        let inner = self.lock();
        let mut places = inner.running.keys().copied();
        let next = places.clone().find(|place| Some(*place) > Place::at(after));
        next.or_else(|| places.next()).map_or_else(|| after.to_owned(), Place::address)
    }

    /// Lets nothing more get from one place to another.
    pub(super) fn cut(&self, from: Place, to: Place) {
        let mut inner = self.lock();
        inner.cuts.insert((from, to));
        inner.record.count("cuts", 1);
    }

    /// Mends all that was cut.
    pub(super) fn heal(&self) {
        self.lock().cuts.clear();
    }

    /// Lets nothing get to or from a place for a while; it arrives afterwards.
    pub(super) fn pause(&self, place: Place, until: Instant) {
        let mut inner = self.lock();
        inner.paused_until.insert(place, until);
        inner.record.count("pauses", 1);
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    pub(super) fn seed(&self) -> u64 {
        self.lock().random.u64(..)
    }

    /// Has a member work on something for a client, which waits no longer than until `late`; none
    /// if no answer came.
    pub(super) async fn ask<A: Send + 'static, W: Future<Output = A> + Send + 'static>(
        &self,
        from: Place,
        to: &str,
        late: Instant,
        work: impl FnOnce(Running) -> W + Send + 'static,
    ) -> Option<A> {
        let call = Call { from: End(from, None), to, what: "request".into(), late };
        self.exchange(call, work).await
    }

    /// Carries something to a member, has it worked on there, and carries the answer back. Nobody
    /// notices that one of the two is lost, other than by waiting until `late`.
    async fn exchange<A: Send + 'static, W: Future<Output = A> + Send + 'static>(
        &self,
        call: Call<'_>,
        work: impl FnOnce(Running) -> W + Send + 'static,
    ) -> Option<A> {
        let Call { from, to, what, late } = call;
        let (answer, answered) = oneshot::channel();
        let (net, to) = (self.clone(), Place::at(to)?);
        // In a task: what was sent arrives, also if the sender waits no more.
        let carried = async move {
            net.carry(from, to, &what).await?;
            let running = net.running(to)?;
            let there = End(to, Some(running.life));
            let done = work(running).await;
            net.carry(there, from.0, &what).await?;
            net.is_alive(from).then(|| drop(answer.send(done)))
        };
        tokio::spawn(Runtime::scope(self.seed(), carried));
        match timeout_at(late, answered).await {
            Ok(Ok(answer)) => Some(answer),
            _ => {
                sleep_until(late).await;
                None
            }
        }
    }

    /// Carries a message, which takes a while; none if it is lost.
    async fn carry(&self, from: End, to: Place, what: &str) -> Option<()> {
        self.while_paused(from.0).await;
        let delay = self.lock().send(from, to, what)?;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.while_paused(to).await;
        let inner = self.lock();
        let lost = inner.cuts.contains(&(from.0, to)) || !inner.is_alive(from);
        inner.record.note(|| format!("{from} > {to} {what}{}", if lost { " lost" } else { "" }));
        (!lost).then_some(())
    }

    async fn while_paused(&self, place: Place) {
        let until = self.lock().paused_until.get(&place).copied();
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    fn is_alive(&self, end: End) -> bool {
        self.lock().is_alive(end)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

impl Inner {
    /// Decides how long a message takes; none if it is lost.
    fn send(&mut self, from: End, to: Place, what: &str) -> Option<Duration> {
        let lost = self.random.u16(..1000) < self.weather.lost;
        let slow = self.random.u16(..1000) < self.weather.slow;
        let delay_ms = match self.random.u8(..10) {
            _ if slow => self.random.u64(5..600),
            0..4 => 0,
            4..9 => self.random.u64(1..4),
            _ => self.random.u64(4..20),
        };
        if lost || self.cuts.contains(&(from.0, to)) || !self.is_alive(from) {
            self.record.note(|| format!("{from} > {to} {what} lost at once"));
            return None;
        }
        Some(Duration::from_millis(delay_ms))
    }

    fn is_alive(&self, End(place, life): End) -> bool {
        life.is_none() || self.running.get(&place).map(|running| running.life) == life
    }
}

impl Display for End {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl Peers for Port {
    async fn call(
        &self,
        id: Uuid,
        address: &str,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Frame, String> {
        let late = Instant::now() + deadline;
        let record = self.net.lock().record.clone();
        let what = record.called(self.id, &frame);
        let work = move |running: Running| async move {
            if running.id != id {
                return Err(format!("{} lives there", running.id));
            }
            let answer = running.consensus.answer(frame.clone()).await;
            record.answered(id, &frame, &answer);
            Ok(answer)
        };
        let from = End(self.place, Some(self.life));
        let answer = self.net.exchange(Call { from, to: address, what, late }, work).await;
        answer.unwrap_or_else(|| Err("no answer".into()))
    }

    async fn who(&self, address: &str) -> Result<Uuid, String> {
        let late = Instant::now() + Duration::from_secs(2);
        let from = End(self.place, Some(self.life));
        let who = |running: Running| async move { running.id };
        let call = Call { from, to: address, what: "who".into(), late };
        let who = self.net.exchange(call, who).await;
        who.ok_or_else(|| "no answer".into())
    }
}
