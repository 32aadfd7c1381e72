//! The metastore of a script: one ledger's metadata, its version, and what was asked of it.

use std::collections::VecDeque;
use std::error::Error;

use goldenscript::Command;
use inkfast_protocol::writer::CasOutcome;
use inkfast_protocol::{EntryId, Fragment, LedgerMetadata, MetadataVersion, Replication, State};

use crate::ledgers::ledger;
use crate::words::{Name, describe};

pub(crate) struct Metastore {
    pub(crate) version: MetadataVersion,
    pub(crate) metadata: LedgerMetadata,
    asked: VecDeque<Cas>,
    unanswered: VecDeque<Cas>,
}

type Cas = (MetadataVersion, LedgerMetadata);

/// What the metastore tells the machine.
pub(crate) enum Told {
    Nothing(String),
    Cas(CasOutcome, String),
    Metadata(MetadataVersion, LedgerMetadata),
}

/// What a script may do to the metastore.
#[derive(Command)]
enum Input {
    /// Creates the ledger on b0, b1, ...
    Ledger {
        #[arg(key)]
        e: usize,
        #[arg(key)]
        w: usize,
        #[arg(key)]
        a: usize,
    },
    /// Adds a fragment, as an ensemble change does.
    Fragment {
        first: u64,
        ensemble: Vec<Name>,
        #[arg(key, optional)]
        length: u64,
    },
    /// Somebody else changes what is nobody's concern here.
    Note(String),
    /// Replaces a bookie of a fragment, as re-replication does.
    Swap {
        #[arg(key)]
        fragment: usize,
        #[arg(key)]
        place: usize,
        #[arg(key)]
        to: Name,
    },
    /// Somebody else changes the state: `open`, `in-recovery` or `closed`.
    State {
        state: String,
        #[arg(key)]
        last: Option<u64>,
        #[arg(key, optional)]
        length: u64,
    },
    /// Carries out the oldest compare-and-set and answers it; or does not answer.
    Cas(Option<String>),
    /// An unanswered compare-and-set arrives after all.
    Land,
    /// Answers a read of the metadata.
    Metadata,
}

impl Metastore {
    pub(crate) fn ask(&mut self, version: MetadataVersion, metadata: LedgerMetadata) -> String {
        let words = format!("cas of version {}: {}", version.0, describe(&metadata));
        self.asked.push_back((version, metadata));
        words
    }

    pub(crate) fn run(&mut self, command: &Command) -> Result<Told, Box<dyn Error>> {
        match Input::try_from(command)? {
            Input::Ledger { e, w, a } => self.metadata = ledger(Replication::new(e, w, a)?),
            Input::Fragment { first, ensemble, length } => {
                let ensemble = ensemble.into_iter().map(|Name(bookie)| bookie).collect();
                let first = EntryId::new(first);
                self.metadata.fragments.push(Fragment { first, length_before: length, ensemble });
                self.changed()?;
            }
            Input::Note(text) => {
                self.metadata.custom.insert("note".to_owned(), text.into());
                self.changed()?;
            }
            Input::Swap { fragment, place, to } => {
                self.metadata.fragments[fragment].ensemble[place] = to.0;
                self.changed()?;
            }
            Input::State { state, last, length } => {
                self.metadata.state = match state.as_str() {
                    "open" => State::Open,
                    "in-recovery" => State::InRecovery,
                    "closed" => State::Closed { last: last.map(EntryId::new), length },
                    _ => return Err(format!("'{state}' is no state").into()),
                };
                self.changed()?;
            }
            Input::Cas(unanswered) => {
                let asked = self.asked.pop_front().ok_or("no compare-and-set was asked for")?;
                if unanswered.is_some() {
                    self.unanswered.push_back(asked);
                    return Ok(Told::Cas(CasOutcome::Unknown, "no answer".to_owned()));
                }
                let (outcome, words) = self.carry_out(asked)?;
                return Ok(Told::Cas(outcome, words));
            }
            Input::Land => {
                let late = self.unanswered.pop_front().ok_or("nothing is unanswered")?;
                return Ok(Told::Nothing(self.carry_out(late)?.1));
            }
            Input::Metadata => return Ok(Told::Metadata(self.version, self.metadata.clone())),
        }
        let words = format!("version {}: {}", self.version.0, describe(&self.metadata));
        Ok(Told::Nothing(words))
    }

    fn carry_out(
        &mut self,
        (version, metadata): Cas,
    ) -> Result<(CasOutcome, String), Box<dyn Error>> {
        if version != self.version {
            return Ok((CasOutcome::Lost, format!("lost to version {}", self.version.0)));
        }
        self.metadata = metadata;
        self.changed()?;
        Ok((CasOutcome::Won(self.version), format!("won, now version {}", self.version.0)))
    }

    /// The next version, if the metadata can be stored.
    fn changed(&mut self) -> Result<(), Box<dyn Error>> {
        self.version.0 += 1;
        self.metadata.encode()?;
        Ok(())
    }
}

impl Default for Metastore {
    fn default() -> Self {
        Self {
            version: MetadataVersion(1),
            metadata: ledger(Replication::DEFAULT),
            asked: VecDeque::new(),
            unanswered: VecDeque::new(),
        }
    }
}
