//! What goes wrong, and when, as the seed says.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use inkfast_metastore::Error;
use inkfast_metastore::messages::Request;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::OPERATOR;
use super::client::SimClient;
use super::members::Members;
use super::net::{Place, SimNet, Weather};
use super::record::Record;

/// The most members at a time.
const MEMBERS_MAX: usize = 6;
/// How long a change of the members is tried.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one member is waited for meanwhile.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Faults {
    net: SimNet,
    record: Record,
    random: Rng,
    /// By how much less happens.
    calmness: u16,
    operator: Arc<SimClient>,
    /// The change of the members that is under way.
    change: JoinSet<Change>,
}

/// A change of the members.
struct Change {
    what: &'static str,
    /// The member that is to go.
    gone: Option<usize>,
    done: Result<(), Error>,
}

impl Faults {
    pub(super) fn new(
        net: &SimNet,
        record: &Record,
        operator: Arc<SimClient>,
        mut random: Rng,
    ) -> Self {
        let calmness = random.u16(1..5);
        let (net, record) = (net.clone(), record.clone());
        Self { net, record, random, calmness, operator, change: JoinSet::new() }
    }

    /// Lets something happen, or nothing.
    pub(super) async fn step(&mut self, members: &mut Members) {
        self.settle(members);
        for number in members.numbers(false) {
            if self.random.u8(..100) < 12 {
                members.start(number).await;
            }
        }
        if self.random.u8(..100) < 4 && members.leader().is_some() {
            self.black_out(members).await;
        }
        // The calmer runs get more done, and the others more wrong.
        match self.random.u16(..1000).saturating_mul(self.calmness) {
            0..28 => {
                let chosen = self.choose(members);
                self.kill(members, chosen.into_iter().collect()).await;
            }
            28..35 => {
                let mut chosen = members.numbers(true);
                chosen.retain(|_| self.random.u8(..4) != 0);
                self.kill(members, chosen).await;
            }
            35..50 => self.cut_one(members),
            50..65 => self.isolate(members),
            65..90 => self.net.heal(),
            90..105 => {
                let lost = [0, 0, 10, 100, 300][self.random.usize(..5)];
                let slow = [0, 0, 20, 200][self.random.usize(..4)];
                self.net.set_weather(Weather { lost, slow });
            }
            105..120 => {
                let Some(number) = self.choose(members) else { return };
                let pause = Duration::from_millis(self.random.u64(50..3000));
                self.net.pause(Place::Member(number), Instant::now() + pause);
            }
            120..160 => self.change_members(members).await,
            _ => {}
        }
    }

    /// Mends everything, starts every member, and waits for the change that is under way.
    pub(super) async fn end(&mut self, members: &mut Members) {
        self.net.heal();
        self.net.set_weather(Weather::default());
        for number in members.numbers(false) {
            members.start(number).await;
        }
        while !self.change.is_empty() {
            sleep(Duration::from_millis(100)).await;
            self.settle(members);
        }
    }

    /// Cuts the power of some members, perhaps a while after their disks have failed.
    async fn kill(&mut self, members: &mut Members, chosen: Vec<usize>) {
        if self.random.bool() {
            for number in &chosen {
                members.cut_power_after(*number, self.random.usize(..20));
            }
            sleep(Duration::from_millis(self.random.u64(..50))).await;
        }
        chosen.into_iter().for_each(|number| members.kill(number));
    }

    /// Lets no log get to disk any more, and cuts all power a little later: whatever was answered
    /// in between was answered too early, and is gone.
    async fn black_out(&mut self, members: &mut Members) {
        self.record.note(|| "blackout".into());
        self.record.count("blackouts", 1);
        let all = members.numbers(true);
        all.iter().for_each(|number| members.break_log(*number));
        sleep(Duration::from_millis(self.random.u64(40..150))).await;
        all.iter().for_each(|number| members.kill(*number));
        sleep(Duration::from_millis(self.random.u64(..300))).await;
        for number in all {
            members.start(number).await;
        }
    }

    fn cut_one(&mut self, members: &Members) {
        let Some(one) = self.choose(members) else { return };
        let one = Place::Member(one);
        let other = if self.random.u8(..4) == 0 {
            Place::Client(self.random.usize(..OPERATOR))
        } else {
            let Some(other) = self.choose(members) else { return };
            Place::Member(other)
        };
        if self.random.bool() {
            self.net.cut(one, other);
        }
        self.net.cut(other, one);
    }

    /// Cuts a member off from the others, and perhaps from the clients.
    fn isolate(&mut self, members: &Members) {
        let Some(one) = self.choose(members) else { return };
        let (one, clients_too, both) =
            (Place::Member(one), self.random.bool(), self.random.u8(..3));
        let clients = (0..if clients_too { OPERATOR + 1 } else { 0 }).map(Place::Client);
        let others = members.nodes.keys().map(|other| Place::Member(*other));
        for other in clients.chain(others).filter(|other| *other != one) {
            if both != 0 {
                self.net.cut(one, other);
            }
            if both != 1 {
                self.net.cut(other, one);
            }
        }
    }

    async fn change_members(&mut self, members: &mut Members) {
        if !self.change.is_empty() {
            return;
        }
        let count = members.nodes.len();
        let (what, gone, request) = match self.random.u8(..3) {
            0 => {
                let Some(number) = self.choose(members) else { return };
                ("transfers", None, Request::TransferLeader(members.nodes[&number].id))
            }
            1 if count > 3 => {
                let number = self.any(members);
                ("removals", Some(number), Request::RemoveMember(members.nodes[&number].id))
            }
            _ if count < MEMBERS_MAX => {
                let number = members.make().await;
                let address = Place::Member(number).address();
                ("additions", None, Request::AddMember { address, id: None })
            }
            _ => return,
        };
        let operator = self.operator.clone();
        self.change.spawn(async move {
            operator.note(&request);
            let done = operator.ask(request, CHANGE_TIMEOUT, CHANGE_PATIENCE).await;
            Change { what, gone, done: done.map(drop) }
        });
    }

    /// Throws away a member that was removed.
    fn settle(&mut self, members: &mut Members) {
        while let Some(done) = self.change.try_join_next() {
            let Change { what, gone, done: Ok(()) } = done.unwrap() else { continue };
            self.record.count(what, 1);
            if let Some(gone) = gone {
                members.throw_away(gone);
            }
        }
    }

    fn choose(&mut self, members: &Members) -> Option<usize> {
        // Who leads is hit more often.
        match members.leader() {
            Some(leader) if self.random.u8(..3) == 0 => Some(leader),
            _ => self.random.choice(members.numbers(true)),
        }
    }

    fn any(&mut self, members: &Members) -> usize {
        let all = members.nodes.keys().copied().collect::<Vec<_>>();
        all[self.random.usize(..all.len())]
    }
}
