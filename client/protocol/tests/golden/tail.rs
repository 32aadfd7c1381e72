//! Scripts of the tail. What bookies say comes on the stream of a lane, the newest unless a
//! script names another.

use std::collections::BTreeMap;
use std::error::Error;

use goldenscript::{Command, Context};
use inkfast_protocol::EntryId;
use inkfast_protocol::tail::{Action, StreamNumber, Tail};

use crate::ledgers::entry;
use crate::metastore::{Metastore, Told};
use crate::words::{Said, entry_or_none, short};

#[derive(Default)]
pub(crate) struct Runner {
    metastore: Metastore,
    tail: Option<Tail>,
    /// The newest stream of each lane.
    streams: BTreeMap<usize, StreamNumber>,
}

#[derive(Command)]
pub(crate) enum Input {
    /// Begins to follow from an entry on.
    Tail {
        from: u64,
    },
    /// An entry is pushed, or entries up to another, each on the stream of its lane.
    Push {
        entry: u64,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        lac: Option<u64>,
        #[arg(key)]
        on: Option<StreamNumber>,
    },
    /// A bookie says that an entry is confirmed.
    Confirmed(u64),
    /// A bookie cannot push an entry.
    Missing {
        entry: u64,
        #[arg(key)]
        why: Said,
    },
    /// The streams of lanes break off.
    Fail(Vec<usize>),
    /// What is waited for has not come in time.
    Late,
    Retry,
    Overdue,
    /// The metadata cannot be read.
    Unavailable,
    /// The ledger is gone.
    Deleted,
    /// What happens in the metastore.
    #[command(other)]
    Metastore(Command),
}

impl goldenscript::Runner for Runner {
    type Command = Input;

    fn run(&mut self, input: &Input, _: &Context) -> Result<String, Box<dyn Error>> {
        match input {
            Input::Tail { from } => {
                let metadata = self.metastore.metadata.clone();
                self.tail = Some(Tail::new(metadata, EntryId::new(*from)));
            }
            Input::Push { entry: id, to, lac, on } => {
                let mut out = String::new();
                for id in *id..=to.unwrap_or(*id) {
                    let stream = on.map_or_else(|| self.stream_of(id), Ok)?;
                    self.tail()?.on_entry(stream, entry(id, *lac, 0, b"x"));
                    out += &self.actions();
                }
                return Ok(out);
            }
            Input::Confirmed(entry) => self.tail()?.on_confirmed(EntryId::new(*entry)),
            Input::Missing { entry, why } => {
                let stream = self.stream_of(*entry)?;
                self.tail()?.on_missing(stream, EntryId::new(*entry), why.0.clone());
            }
            Input::Fail(lanes) => {
                let mut out = String::new();
                for lane in lanes {
                    let stream = *self.streams.get(lane).ok_or("no such lane")?;
                    self.tail()?.on_failed(stream, "no answer");
                    out += &self.actions();
                }
                return Ok(out);
            }
            Input::Late => self.tail()?.on_late(),
            Input::Retry => self.tail()?.on_retry(),
            Input::Overdue => self.tail()?.on_overdue(),
            Input::Unavailable => self.tail()?.on_metadata_unavailable(),
            Input::Deleted => self.tail()?.on_deleted(),
            Input::Metastore(command) => match self.metastore.run(command)? {
                Told::Metadata(_, metadata) => self.tail()?.on_metadata(metadata),
                Told::Nothing(words) | Told::Cas(_, words) => return Ok(words),
            },
        }
        Ok(self.actions())
    }
}

impl Runner {
    fn tail(&mut self) -> Result<&mut Tail, &'static str> {
        self.tail.as_mut().ok_or("begin with 'tail'")
    }

    fn stream_of(&self, entry: u64) -> Result<StreamNumber, String> {
        let lanes = self.metastore.metadata.replication.ensemble() as u64;
        let lane = usize::try_from(entry % lanes).map_err(|error| error.to_string())?;
        self.streams.get(&lane).copied().ok_or_else(|| format!("lane {lane} has no stream"))
    }

    fn actions(&mut self) -> String {
        let mut out = String::new();
        while let Some(action) = self.tail.as_mut().and_then(Tail::next_action) {
            out += &match action {
                Action::Follow { stream, bookie, lane, from, to } => {
                    self.streams.insert(lane, stream);
                    let bookie = short(&bookie);
                    let to = to.map_or_else(String::new, |to| format!(" to {to}"));
                    format!("stream {stream}: {bookie} pushes lane {lane} from {from}{to}\n")
                }
                Action::Deliver(entry) => format!("deliver {}\n", entry.id()),
                Action::ReadMetadata => "read the metadata\n".to_owned(),
                Action::Retry => "retry later\n".to_owned(),
                Action::Done => "done\n".to_owned(),
                Action::Fail(error) => format!("fail: {}\n", short(&error)),
            };
        }
        let waits_for = self.tail.as_ref().and_then(Tail::waits_for);
        if waits_for.is_some() {
            out += &format!("waits for {}\n", entry_or_none(waits_for));
        }
        out
    }
}
