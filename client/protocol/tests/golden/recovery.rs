//! Scripts of the recovery.

use std::collections::BTreeMap;
use std::error::Error;
use std::str::FromStr;

use goldenscript::{Command, Context};
use inkfast_protocol::recovery::{Action, Recovery, Round};
use inkfast_protocol::{BookieId, Entry, EntryId, Fragment, Tenure};

use crate::ledgers::entry;
use crate::metastore::{Metastore, Told};
use crate::words::{Name, Said, describe, entry_or_none, short};

/// The entries whose reads are told one by one.
const TOLD_ONE_BY_ONE: usize = 3;

pub(crate) struct Runner {
    metastore: Metastore,
    recovery: Option<Recovery>,
    /// The round of the actions that came last; answers are for it.
    round: Round,
    /// The tenure of each place that something was written back to in that round.
    tenures: BTreeMap<usize, Tenure>,
}

/// Numbers stand for entries and places; answers are to the present round and the place's present
/// tenure if the script names no other.
#[derive(Command)]
pub(crate) enum Input {
    /// Begins to recover the ledger.
    Recover,
    /// Places have fenced the ledger.
    Fenced {
        places: Vec<usize>,
        #[arg(key)]
        lac: Option<u64>,
        #[arg(key)]
        round: Option<u32>,
    },
    /// A place has not fenced the ledger.
    NotFenced {
        place: usize,
        #[arg(key)]
        why: Said,
    },
    /// A copy of an entry comes; the ledger has one byte an entry if the script does not say.
    Copy {
        entry: u64,
        #[arg(key)]
        lac: Option<u64>,
        #[arg(key)]
        length: Option<u64>,
        #[arg(key)]
        round: Option<u32>,
    },
    /// Places do not give an entry.
    NoCopy {
        entry: u64,
        _from: Preposition,
        places: Vec<usize>,
        #[arg(key)]
        why: Said,
        #[arg(key)]
        round: Option<u32>,
    },
    /// Places have an entry that was written back.
    Written {
        entry: u64,
        _at: Preposition,
        places: Vec<usize>,
        #[arg(key)]
        round: Option<u32>,
        #[arg(key)]
        tenure: Option<u64>,
    },
    /// A place takes no write-backs.
    NotWritten {
        place: usize,
        #[arg(key)]
        why: Said,
        #[arg(key)]
        tenure: Option<u64>,
    },
    /// Bookies are found for places, each told like `1/b5`; or none is.
    Chosen {
        #[arg(optional)]
        replacements: Vec<Replacement>,
        #[arg(key)]
        round: Option<u32>,
    },
    /// What happens in the metastore.
    #[command(other)]
    Metastore(Command),
}

/// Stands between an entry and places, `from` or `at`.
pub(crate) struct Preposition;

impl FromStr for Preposition {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if ["from", "at"].contains(&text) { Ok(Self) } else { Err("say 'from' or 'at'") }
    }
}

/// A bookie for a place, `1/b5`.
pub(crate) struct Replacement(usize, BookieId);

impl FromStr for Replacement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, bookie) = text.split_once('/').ok_or("say 'place/bookie'")?;
        let place = place.parse().map_err(|_| format!("'{place}' is no place"))?;
        Ok(Self(place, Name::from_str(bookie)?.0))
    }
}

impl goldenscript::Runner for Runner {
    type Command = Input;

    fn run(&mut self, input: &Input, _: &Context) -> Result<String, Box<dyn Error>> {
        let of = |round: &Option<u32>| round.map_or(self.round, Round);
        let mut out = String::new();
        match input {
            Input::Recover => {
                let metadata = self.metastore.metadata.clone();
                self.recovery = Some(Recovery::new(self.metastore.version, metadata));
                self.tenures.clear();
            }
            Input::Fenced { places, lac, round } => {
                let round = of(round);
                for place in places {
                    self.recovery()?.on_fenced(round, *place, lac.map(EntryId::new));
                }
            }
            Input::NotFenced { place, why } => {
                let round = self.round;
                self.recovery()?.on_fence_refused(round, *place, why.0.clone());
            }
            Input::Copy { entry: id, lac, length, round } => {
                let copy = entry(*id, *lac, length.unwrap_or(id + 1), b"x");
                let round = of(round);
                self.recovery()?.on_copy(round, copy);
            }
            Input::NoCopy { entry, places, why, round, .. } => {
                let round = of(round);
                for place in places {
                    let (entry, said) = (EntryId::new(*entry), why.0.clone());
                    self.recovery()?.on_read_refused(round, *place, entry, said);
                }
            }
            Input::Written { entry, places, round, tenure, .. } => {
                let round = of(round);
                for place in places {
                    let (entry, tenure) = (EntryId::new(*entry), self.tenure(*place, *tenure));
                    self.recovery()?.on_written(round, *place, tenure, entry..=entry);
                }
            }
            Input::NotWritten { place, why, tenure } => {
                let (round, tenure) = (self.round, self.tenure(*place, *tenure));
                self.recovery()?.on_write_refused(round, *place, tenure, why.0.clone());
            }
            Input::Chosen { replacements, round } => {
                let chosen = replacements.iter().map(|Replacement(place, b)| (*place, *b));
                let round = of(round);
                self.recovery()?.on_chosen(round, &chosen.collect());
            }
            Input::Metastore(command) => out += &self.run_metastore(command)?,
        }
        Ok(out + &self.actions())
    }
}

impl Runner {
    fn recovery(&mut self) -> Result<&mut Recovery, &'static str> {
        self.recovery.as_mut().ok_or("begin with 'recover'")
    }

    fn run_metastore(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        match self.metastore.run(command)? {
            Told::Nothing(words) => Ok(format!("{words}\n")),
            Told::Cas(outcome, words) => {
                self.recovery()?.on_cas(outcome);
                Ok(format!("{words}\n"))
            }
            Told::Metadata(version, metadata) => {
                self.recovery()?.on_metadata(version, metadata);
                Ok(String::new())
            }
        }
    }

    /// The tenure of an answer: the present one if the script names none.
    fn tenure(&self, place: usize, named: Option<u64>) -> Tenure {
        named.map_or_else(|| self.tenures.get(&place).copied().unwrap_or_default(), Tenure)
    }

    /// Tells a place, with its bookie if the metastore has another one there.
    fn at(&self, place: usize, bookie: BookieId) -> String {
        if self.metastore.metadata.last_fragment().ensemble[place] == bookie {
            return place.to_string();
        }
        format!("{place}/{}", short(&bookie))
    }

    fn actions(&mut self) -> String {
        let (mut told, mut reads) = (Lines::default(), Lines::default());
        while let Some(action) = self.recovery.as_mut().and_then(Recovery::next_action) {
            match action {
                Action::Fence { round, place, bookie } => {
                    if self.round != round {
                        self.tenures.clear();
                    }
                    self.round = round;
                    told.place(&format!("round {}: fence", round.0), &self.at(place, bookie));
                }
                Action::Read { place, bookie, entry, .. } => {
                    reads.place(&format!("read {entry} from"), &self.at(place, bookie));
                }
                Action::WriteBack { place, tenure, bookie, entry, .. } => {
                    self.tenures.insert(place, tenure);
                    let what = format!("write back {} to", words(&entry));
                    told.place(&what, &self.at(place, bookie));
                }
                Action::Choose { .. } => {
                    let recovery = self.recovery.as_ref().unwrap();
                    let lacking: Vec<_> =
                        recovery.lacking().iter().map(|p| p.to_string()).collect();
                    let refused: Vec<_> = recovery.refused().iter().map(short).collect();
                    let [lacking, refused] = [lacking, refused].map(|words| words.join(" "));
                    told.line(format!("choose for {lacking} (refused: {refused})"));
                }
                Action::ReadMetadata => told.line("read the metadata".to_owned()),
                Action::Cas { version, metadata } => {
                    let fragment = metadata.last_fragment().clone();
                    told.line(self.metastore.ask(version, metadata));
                    if fragment != *self.metastore.metadata.last_fragment() {
                        let Fragment { first, length_before, .. } = fragment;
                        told.line(format!("{length_before} bytes before {first}"));
                    }
                }
                Action::Done(version, metadata) => {
                    told.line(format!("done, version {}: {}", version.0, describe(&metadata)));
                }
                Action::Fail(error) => told.line(format!("fail: {}", short(&error))),
            }
        }
        if let Some(more) = reads.0.len().checked_sub(TOLD_ONE_BY_ONE).filter(|more| *more > 0) {
            reads.0.truncate(TOLD_ONE_BY_ONE);
            reads.line(format!("and so on: {more} more entries"));
        }
        let lines = told.0.into_iter().chain(reads.0);
        lines.map(|(line, places)| format!("{line}{places}\n")).collect()
    }
}

/// Lines to print; what goes to several places is one line, with the places behind it.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn place(&mut self, what: &str, place: &str) {
        match self.0.last_mut() {
            Some((line, places)) if line == what => *places += &format!(" {place}"),
            _ => self.0.push((what.to_owned(), format!(" {place}"))),
        }
    }

    fn line(&mut self, line: String) {
        self.0.push((line, String::new()));
    }
}

fn words(entry: &Entry) -> String {
    let header = entry.header();
    let confirmed = entry_or_none(header.last_add_confirmed);
    format!("{} (lac {confirmed}, {} bytes)", entry.id(), header.length)
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            metastore: Metastore::default(),
            recovery: None,
            round: Round(0),
            tenures: BTreeMap::new(),
        }
    }
}
