//! Scripts of the writer.

use std::error::Error;
use std::str::FromStr;

use goldenscript::{Command, Context};
use inkfast_protocol::writer::{Action, Writer};
use inkfast_protocol::{BookieId, EntryId, Tenure};

use crate::metastore::{Metastore, Told};
use crate::words::{Name, Said, entry_or_none, short};

#[derive(Default)]
pub(crate) struct Runner {
    metastore: Metastore,
    writer: Option<Writer>,
}

#[derive(Command)]
pub(crate) enum Input {
    /// Begins to write the ledger.
    Write,
    /// Appends so many entries, one if no number is given, of so many bytes, one likewise.
    Append {
        count: Option<usize>,
        #[arg(key)]
        bytes: Option<usize>,
    },
    /// A place acknowledges an entry, or all up to another.
    Added {
        entry: u64,
        #[arg(key)]
        by: usize,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key, optional)]
        tenure: u64,
    },
    /// A place refuses, or does not answer.
    Refused {
        #[arg(key)]
        by: usize,
        #[arg(key)]
        why: Said,
        #[arg(key, optional)]
        tenure: u64,
    },
    /// Bookies were found for places, each `PLACE/BOOKIE`.
    Chosen(Vec<Choice>),
    /// Nothing was appended for a while.
    Idle,
    /// Nothing was confirmed for too long.
    Overdue,
    Close,
    /// What the metastore was asked can never be done.
    Impossible,
    /// The metadata cannot be read.
    NoMetadata,
    /// The metadata is not there any more.
    NoLedger,
    /// What happens in the metastore.
    #[command(other)]
    Metastore(Command),
}

/// A bookie for a place.
pub(crate) struct Choice(usize, BookieId);

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, bookie) = text.split_once('/').ok_or("a choice is 2/b3")?;
        let place = place.parse().map_err(|_| format!("'{place}' is no place"))?;
        Ok(Self(place, bookie.parse::<Name>()?.0))
    }
}

impl goldenscript::Runner for Runner {
    type Command = Input;

    fn run(&mut self, input: &Input, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut out = String::new();
        match input {
            Input::Write => {
                let metadata = self.metastore.metadata.clone();
                self.writer = Some(Writer::new(self.metastore.version, metadata));
            }
            Input::Append { count, bytes } => {
                let payload = vec![b'x'; bytes.unwrap_or(1)];
                for _ in 0..count.unwrap_or(1) {
                    if let Err(error) = self.writer()?.append(&payload, 0) {
                        out += &format!("append fails: {}\n", short(&error));
                    }
                }
            }
            Input::Added { entry, by, to, tenure } => {
                let [first, last] = [*entry, to.unwrap_or(*entry)].map(EntryId::new);
                self.writer()?.on_added(*by, Tenure(*tenure), first, last);
            }
            Input::Refused { by, why, tenure } => {
                self.writer()?.on_refused(*by, Tenure(*tenure), why.0.clone());
            }
            Input::Chosen(choices) => {
                let chosen = choices.iter().map(|Choice(place, bookie)| (*place, *bookie));
                self.writer()?.on_chosen(&chosen.collect());
            }
            Input::Idle => self.writer()?.on_idle(),
            Input::Overdue => self.writer()?.on_overdue(),
            Input::Close => self.writer()?.close(),
            Input::Impossible => self.writer()?.on_impossible("it does not fit".to_owned()),
            Input::NoMetadata => self.writer()?.on_metadata_unavailable(),
            Input::NoLedger => self.writer()?.on_deleted(),
            Input::Metastore(command) => match self.metastore.run(command)? {
                Told::Nothing(words) => out += &format!("{words}\n"),
                Told::Cas(outcome, words) => {
                    out += &format!("{words}\n");
                    self.writer()?.on_cas(outcome);
                }
                Told::Metadata(version, metadata) => self.writer()?.on_metadata(version, metadata),
            },
        }
        Ok(out + &self.actions())
    }
}

impl Runner {
    fn writer(&mut self) -> Result<&mut Writer, &'static str> {
        self.writer.as_mut().ok_or("begin with 'write'")
    }

    fn actions(&mut self) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut sent = None;
        while let Some(action) = self.writer.as_mut().and_then(Writer::next_action) {
            let line = match action {
                // One line for all the places of an entry.
                Action::Send { place, entry, .. } if sent == Some(entry.id()) => {
                    *lines.last_mut().unwrap() += &format!(" {place}");
                    continue;
                }
                Action::Send { place, entry, .. } => {
                    sent = Some(entry.id());
                    let header = entry.header();
                    let confirmed = entry_or_none(header.last_add_confirmed);
                    format!(
                        "send {} (lac {confirmed}, {} bytes) to {place}",
                        entry.id(),
                        header.length
                    )
                }
                Action::Tell { place, confirmed, .. } => {
                    let told = format!("tell {confirmed} to");
                    match lines.last_mut().filter(|line| line.starts_with(&told)) {
                        Some(line) => *line += &format!(" {place}"),
                        None => lines.push(format!("{told} {place}")),
                    }
                    continue;
                }
                Action::Choose => {
                    let lacking = self.writer.as_ref().map(Writer::lacking);
                    format!("choose bookies for {:?}", lacking.unwrap_or_default())
                }
                Action::Confirm(entry) => format!("confirm up to {entry}"),
                Action::Fail(error) => format!("fail: {}", short(&error)),
                Action::ReadMetadata => "read the metadata".to_owned(),
                Action::Cas { version, metadata } => self.metastore.ask(version, metadata),
                Action::Closed { last } => format!("closed, last {}", entry_or_none(last)),
                Action::NotClosed(error) => format!("not closed: {}", short(&error)),
            };
            lines.push(line);
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}
