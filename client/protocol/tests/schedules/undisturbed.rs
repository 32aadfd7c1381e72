//! What comes to an end once nothing disturbs it any more, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};

use inkfast_protocol::recovery;
use inkfast_protocol::{BookieId, Places, Refusal};

use crate::bookie::Bookie;
use crate::ledgers::bookie;
use crate::messages::{Asked, Ticket};
use crate::world::{World, number};

/// What is not disturbed has ended after so many deliveries.
const DELIVERIES_MAX: usize = 20_000;

/// How a bookie is while a recovery is not disturbed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing {
    /// It hangs, unless it is a spare or too many do.
    Hung,
    /// It takes so many more adds, and is full then.
    Room(usize),
}

/// Which bookies are found for the places that lack one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Spares,
    /// Those that stood there, unless they have refused the ledger.
    Back,
    /// None as long as it must go on without.
    NoneYet,
}

impl World {
    /// Runs a recovery to its end, while some bookies of the last ensemble hang, as many as may,
    /// and these and others become full. Before that, `more` is appended. The first of
    /// `standings` are those of the last ensemble; `picks` say in what order messages arrive.
    pub(crate) fn recover_undisturbed(
        &mut self,
        standings: &[Standing],
        (found, more): (Found, usize),
        picks: &[usize],
    ) {
        self.repair_bookies();
        (0..more).for_each(|_| self.append_one());
        let ensemble = &self.metastore.metadata.last_fragment().ensemble;
        let ensemble: Vec<_> = ensemble.iter().map(number).collect();
        let spares = (0..self.bookies.len()).filter(|number| !ensemble.contains(number));
        let in_order: Vec<_> = ensemble.iter().copied().chain(spares).collect();
        for (at, (number, standing)) in in_order.into_iter().zip(standings).enumerate() {
            match standing {
                Standing::Hung => self.bookies[number].hung = at < ensemble.len(),
                Standing::Room(adds) => self.bookies[number].room = *adds,
            }
        }
        self.recovered = false;
        let r = self.recoveries.len();
        self.begin_recovery();
        for &pick in picks.iter().cycle().take(DELIVERIES_MAX) {
            if self.recovered {
                return;
            }
            // The writer may still change the ensemble.
            self.hang_few();
            match pick % 32 {
                0..8 => self.sync(pick / 32),
                8..12 => self.find_for_recovery(r, found),
                _ => {
                    if !self.deliver(pick / 32) && !self.sync_all() {
                        self.help_recovery(r, found);
                    }
                }
            }
            self.check();
        }
        panic!("the recovery did not end");
    }

    /// Gives a recovery bookies, if it has asked.
    fn find_for_recovery(&mut self, r: usize, found: Found) {
        if let Some(&(_, round)) = self.seeking.iter().find(|(seeker, _)| *seeker == r) {
            let recovery = &self.recoveries[r];
            let (lacking, ensemble) = (recovery.lacking(), recovery.ensemble().to_vec());
            let refused = recovery.refused();
            let chosen = self.find(found, lacking, &ensemble, &refused);
            self.give_recovery(r, round, &chosen);
        }
    }

    /// Gives a recovery bookies, or lets it give up waiting for one that hangs.
    fn help_recovery(&mut self, r: usize, found: Found) {
        if self.seeking.iter().any(|(seeker, _)| *seeker == r) {
            return self.find_for_recovery(r, found);
        }
        let is_its = |ticket: &Ticket| match self.questions[*ticket].asked {
            Asked::Recovery(of, _) => of == r,
            Asked::Writer(_) => false,
        };
        let hung = self.waiting.iter().copied().find(is_its);
        let hung = hung.expect("the recovery waits for nothing");
        self.give_up(hung, Refusal::Unknown("it hangs".to_owned()));
    }

    /// Lets so many bookies of the last ensemble go on that those which hang are fewer than Qa of
    /// a write set, and no more than Qw - Qa.
    fn hang_few(&mut self) {
        let [write, ack] = [self.replication.write_quorum(), self.replication.ack_quorum()];
        let mut hung = Places::default();
        for (place, bookie) in self.metastore.metadata.last_fragment().ensemble.iter().enumerate() {
            let bookie = &mut self.bookies[number(bookie)];
            if !bookie.hung {
                continue;
            }
            hung.insert(place);
            let too_many = (0..self.replication.ensemble() as u64).any(|entry| {
                let write_set = self.replication.write_set(entry);
                write_set.filter(|&p| hung.contains(p)).count() > (ack - 1).min(write - ack)
            });
            if too_many {
                hung.remove(place);
                bookie.hung = false;
            }
        }
    }

    /// Appends `more`, while bookies hang that the writer can go on without, then runs until the
    /// writer has confirmed what it has pending, or cannot, and then until it is closed.
    pub(crate) fn write_undisturbed(&mut self, (found, more): (Found, usize), picks: &[usize]) {
        self.repair_bookies();
        (0..more).for_each(|_| self.append_one());
        for pick in picks {
            match pick % 32 {
                0..8 => self.sync(pick / 32),
                8..12 => self.fail_youngest(),
                12 => {
                    self.find_for_writer(Found::Spares);
                }
                _ => {
                    self.deliver(pick / 32);
                }
            }
            self.check();
        }
        self.fail_youngest();
        let all = |world: &Self| world.confirmed == world.appended.last().map(|e| e.id());
        self.run_until(found, |world| world.failed || all(world));
        self.close();
        self.run_until(found, |world| world.ended);
    }

    fn run_until(&mut self, found: Found, is_done: impl Fn(&Self) -> bool) {
        for _ in 0..DELIVERIES_MAX {
            if is_done(self) {
                return;
            }
            self.sync_all();
            if !self.deliver(0) {
                self.help_writer(found);
            }
            self.check();
        }
        panic!("the writer did not end");
    }

    /// Gives the writer bookies, or lets somebody give up waiting for what was lost.
    fn help_writer(&mut self, found: Found) {
        if self.find_for_writer(found) {
            return;
        }
        match self.waiting.iter().copied().find(|ticket| self.gives_up(*ticket)) {
            Some(lost) => self.give_up(lost, Refusal::Unknown("lost".to_owned())),
            // It can take no other bookies.
            None if self.full => self.overdue(),
            None => panic!("the writer waits for nothing"),
        }
    }

    /// Gives the writer bookies, if it has asked and some are found, and says whether it took any.
    fn find_for_writer(&mut self, found: Found) -> bool {
        if !self.writer.is_choosing() {
            return false;
        }
        let (lacking, ensemble) = (self.writer.lacking(), self.ensemble().to_vec());
        let refused = self.writer.refused().clone();
        let chosen = self.find(found, lacking, &ensemble, &refused);
        self.give(&chosen);
        self.writer.lacking() != lacking
    }

    /// Says whether somebody stops waiting for a message that was lost.
    fn gives_up(&self, ticket: Ticket) -> bool {
        !matches!(self.questions[ticket].asked, Asked::Recovery(_, recovery::Action::ReadMetadata))
    }

    /// Lets the bookie of a place hang that the writer can go on without, the place that was given
    /// a bookie most often.
    fn fail_youngest(&mut self) {
        let tenures: BTreeMap<_, _> = self.streams.keys().copied().collect();
        let lacking = self.writer.lacking();
        let is_spare = |place: usize| {
            let lacking = lacking.iter().chain([place]).collect::<Places>();
            self.replication.is_writable_on(lacking.complement())
        };
        let live = tenures.into_iter().filter(|(place, _)| !lacking.contains(*place));
        let youngest = live.filter(|(place, _)| is_spare(*place)).max_by_key(|(_, tenure)| *tenure);
        if let Some((place, tenure)) = youngest {
            self.bookies[self.streams[&(place, tenure)]].hung = true;
            self.writer.on_refused(place, tenure, Refusal::Unknown("gone".to_owned()));
            self.take_actions();
        }
    }

    /// Has every bookie put a record on disk, and says whether one had any.
    fn sync_all(&mut self) -> bool {
        let is_unsynced = self.bookies.iter().any(Bookie::is_unsynced);
        (0..self.bookies.len()).for_each(|number| self.sync_one(number));
        is_unsynced
    }

    fn repair_bookies(&mut self) {
        for bookie in &mut self.bookies {
            (bookie.hung, bookie.room) = (false, usize::MAX);
        }
    }

    /// Finds bookies for the places that lack one, new ones if there are no others, which are well.
    fn find(
        &mut self,
        found: Found,
        lacking: Places,
        ensemble: &[BookieId],
        refused: &BTreeSet<BookieId>,
    ) -> BTreeMap<usize, BookieId> {
        let mut chosen = BTreeMap::new();
        let takes_adds =
            |place: &usize| !lacking.contains(*place) && !refused.contains(&ensemble[*place]);
        let live = (0..ensemble.len()).filter(takes_adds).collect();
        if matches!(found, Found::NoneYet) && self.replication.is_writable_on(live) {
            return chosen;
        }
        for place in lacking.iter() {
            let own = ensemble[place];
            if matches!(found, Found::Back) && !refused.contains(&own) {
                self.bookies[number(&own)].hung = false;
                chosen.insert(place, own);
                continue;
            }
            let is_well = |number: &usize| {
                self.bookies.get(*number).is_none_or(|bookie| bookie.room > 0 && !bookie.hung)
            };
            let is_in_use = |bookie: &BookieId| {
                ensemble.contains(bookie) || chosen.values().any(|other| other == bookie)
            };
            let mut spares = (0..).filter(is_well).map(bookie);
            let spare = spares.find(|spare| !is_in_use(spare) && !refused.contains(spare));
            chosen.extend(spare.map(|spare| (place, spare)));
        }
        let most = chosen.values().map(number).max().unwrap_or(0);
        if most >= self.bookies.len() {
            self.bookies.resize_with(most + 1, Bookie::new);
        }
        chosen
    }
}
