//! Histories of many clients while everything happens that may: members that are killed, hang, are
//! cut off, leave and come back, and leadership that is handed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use inkfast_metastore::DEFAULT_TIMEOUT;
use inkfast_metastore::history::{History, Summary, drive};
use tokio::task::JoinHandle;

use crate::load::{is_long, until};
use crate::metastores::Metastores;
use crate::metastores::library::Library;
use crate::process::Signal;
use crate::proxy::Direction;
use crate::random::{Random, seed};

const MEMBERS: usize = 3;

/// How many clients there are of each kind.
const CLIENTS: u64 = 3;

/// How long the impatient ones wait: so short that there are outcomes which nobody knows.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// What may happen.
#[derive(Clone, Copy)]
enum Happening {
    LeaderKilled,
    Killed,
    LeaderPaused,
    Paused,
    LeaderCutOff,
    Removed,
    HandedOver,
}

use Happening::*;

const HAPPENINGS: [Happening; 7] =
    [LeaderKilled, Killed, LeaderPaused, Paused, LeaderCutOff, Removed, HandedOver];

/// Clients that do random things, and write down what they were told.
struct Clients<'a> {
    library: &'a Library,
    history: History,
    stopped: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What happens to a cluster, one thing after the other.
struct Schedule<'a> {
    cluster: &'a mut Metastores,
    random: Random,
    since: Instant,
    /// Removals and hand-overs that were done; others may have failed.
    removed: u32,
    handed_over: u32,
}

#[test]
fn whatever_happens_history_is_linear() {
    let time = Duration::from_secs(if is_long() { 300 } else { 20 });
    let seed = seed();
    let mut cluster = Metastores::start_in_network(MEMBERS, 0);
    let library = cluster.library();
    let clients = Clients::start(&library, &cluster, seed);
    let (random, since) = (Random::new(seed), Instant::now());
    let mut schedule =
        Schedule { cluster: &mut cluster, random, since, removed: 0, handed_over: 0 };
    schedule.go_on_for(time);
    schedule.end();
    let summary = clients.check();
    eprintln!("{summary:?}");
    assert!(summary.committed > 100 && summary.conflicts > 10, "{summary:?}");
    assert!(summary.gets > 10 && summary.scans > 0 && summary.blocks > 0, "{summary:?}");
}

impl<'a> Clients<'a> {
    fn start(library: &'a Library, cluster: &Metastores, seed: u64) -> Self {
        let (history, stopped) = (History::default(), Arc::new(AtomicBool::new(false)));
        let start = |number| {
            let patience = if number % 2 == 0 { DEFAULT_TIMEOUT } else { IMPATIENCE };
            let store = library.store_of(&cluster.addresses(), patience);
            let (history, stopped) = (history.clone(), Arc::clone(&stopped));
            library.spawn(async move {
                let is_stopped = || stopped.load(Ordering::Relaxed);
                let seed = seed.wrapping_add(number);
                drive(store.as_ref(), &history, "history/", seed, is_stopped).await;
            })
        };
        let tasks = (0..2 * CLIENTS).map(start).collect();
        Self { library, history, stopped, tasks }
    }

    /// Ends the clients. Panics unless there is an order of all that they did in which all that
    /// they were told is true.
    fn check(self) -> Summary {
        self.stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            self.library.run(task).unwrap();
        }
        let since = Instant::now();
        let checked = self.history.check();
        eprintln!("the check took {:?}", since.elapsed());
        checked.unwrap_or_else(|failure| panic!("{failure}"))
    }
}

impl Schedule<'_> {
    /// Lets everything happen, each thing once before any comes again, and goes on for this long;
    /// longer, if no member has been removed or leadership handed over yet.
    fn go_on_for(&mut self, time: Duration) {
        for round in 0.. {
            for happening in self.shuffled() {
                let elapsed = self.since.elapsed();
                let is_missing = self.removed == 0 || self.handed_over == 0;
                if round > 0 && elapsed >= time && (!is_missing || elapsed >= 3 * time) {
                    assert!(!is_missing, "{} removed, {} led", self.removed, self.handed_over);
                    return;
                }
                self.go_on(happening);
            }
        }
    }

    fn shuffled(&mut self) -> [Happening; 7] {
        let mut happenings = HAPPENINGS;
        for left in (2..=happenings.len()).rev() {
            let place = usize::try_from(self.random.below(left as u64)).unwrap();
            happenings.swap(place, left - 1);
        }
        happenings
    }

    /// Does one thing, and undoes it after a while.
    fn go_on(&mut self, happening: Happening) {
        let member = match happening {
            // The leader is where most goes wrong.
            LeaderKilled | LeaderPaused | LeaderCutOff => self.cluster.leader(),
            Killed | Paused | Removed | HandedOver => self.random.pick(&[0, 1, 2]),
        };
        match happening {
            LeaderKilled | Killed => self.kill(member),
            LeaderPaused | Paused => self.pause(member),
            LeaderCutOff => self.cut_off(member),
            Removed => self.remove(member),
            HandedOver => self.hand_over(member),
        }
        // Sometimes the next thing comes before the members have got over this one.
        if self.random.below(2) == 0 {
            self.wait(1500);
        }
    }

    fn kill(&mut self, member: usize) {
        self.tell(&format!("{member} is killed"));
        self.cluster.members[member].kill();
        self.wait(2000);
        self.tell(&format!("{member} is started"));
        self.cluster.members[member].restart();
    }

    fn pause(&mut self, member: usize) {
        self.tell(&format!("{member} hangs"));
        self.cluster.members[member].signal(Signal::Stop);
        thread::sleep(Duration::from_secs(1));
        self.wait(2000);
        self.tell(&format!("{member} wakes"));
        self.cluster.members[member].signal(Signal::Continue);
    }

    fn cut_off(&mut self, member: usize) {
        let directions = [Direction::Inbound, Direction::Outbound, Direction::Both];
        let direction = self.random.pick(&directions);
        self.tell(&format!("{member} is cut off: {direction:?}"));
        self.cluster.network().cut_off(member, direction);
        thread::sleep(Duration::from_secs(1));
        self.wait(3000);
        self.tell("all reach each other");
        self.cluster.network().heal();
    }

    fn remove(&mut self, member: usize) {
        let removed = self.cluster.change("remove-member", member);
        self.tell(&format!("{member} is removed: {removed}"));
        assert!(matches!(removed.status, Some(0 | 1)), "{removed}");
        self.removed += u32::from(removed.status == Some(0));
        self.wait(1000);
        self.add(member);
    }

    fn add(&mut self, member: usize) {
        until("added", || {
            let added = self.cluster.change("add-member", member);
            self.tell(&format!("{member} is added: {added}"));
            assert!(matches!(added.status, Some(0 | 1)), "{added}");
            added.status == Some(0)
        });
    }

    fn hand_over(&mut self, member: usize) {
        let handed_over = self.cluster.change("transfer-leader", member);
        self.tell(&format!("{member} is to lead: {handed_over}"));
        assert!(matches!(handed_over.status, Some(0 | 1)), "{handed_over}");
        self.handed_over += u32::from(handed_over.status == Some(0));
    }

    /// Leaves the cluster as it was.
    fn end(mut self) {
        (0..MEMBERS).for_each(|member| self.add(member));
        self.tell("all are to be well");
        self.cluster.wait_all_settled();
        self.tell("all are well");
    }

    /// Waits for up to this time.
    fn wait(&mut self, milliseconds_max: u64) {
        thread::sleep(Duration::from_millis(self.random.below(milliseconds_max)));
    }

    fn tell(&self, what: &str) {
        eprintln!("{:7.3} s: {what}", self.since.elapsed().as_secs_f64());
    }
}
