//! Scripts of the gate: one ledger on one bookie, with a disk and a log that is synced when the
//! script says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;

use goldenscript::{Command, Context};
use inkfast_protocol::gate::{Action, Adder, Answer, Gate, Record, Stored};
use inkfast_protocol::{Entry, EntryId, Refusal, Run, WriterId};

use crate::ledgers::{entry, writer};
use crate::words::entry_or_none;

pub(crate) struct Bookie {
    gate: Gate,
    disk: Disk,
    log: VecDeque<Record>,
    asked: Vec<String>,
}

#[derive(Default)]
struct Disk {
    entries: BTreeMap<EntryId, Entry>,
    spoiled: BTreeSet<EntryId>,
    writer: Option<WriterId>,
    fenced: bool,
    deleted: bool,
}

#[derive(Command)]
pub(crate) enum Input {
    /// An entry comes from writer `A`, writer `B`, or `recovery`; or all of them up to another.
    Add {
        entry: u64,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        by: String,
        #[arg(key)]
        data: Option<String>,
        #[arg(key)]
        lac: Option<u64>,
    },
    /// Writer `A`, writer `B`, or `recovery` says that an entry is confirmed.
    Confirmed {
        entry: u64,
        #[arg(key)]
        by: String,
    },
    /// Tells the highest last add confirmed that the gate knows.
    Lac,
    Fence,
    /// The ledger was deleted.
    Delete,
    /// The next records of the log become durable: all, or so many.
    Sync(Option<usize>),
    /// The log fails for good: nothing more becomes durable.
    FailLog,
    /// The bookie is killed, and starts from what is durable.
    Restart,
    /// A copy on disk becomes unreadable.
    Spoil(u64),
    /// Tells what is durable.
    Disk,
}

impl goldenscript::Runner for Bookie {
    type Command = Input;

    fn run(&mut self, input: &Input, _: &Context) -> Result<String, Box<dyn Error>> {
        match input {
            Input::Add { entry: id, to, by, data, lac } => {
                let payload = data.clone().unwrap_or_default();
                let entry = |id| entry(id, *lac, payload.len() as u64, payload.as_bytes());
                let run = Run::new((*id..=to.unwrap_or(*id)).map(entry));
                let run = run.ok_or("an empty run")?;
                let stored = run.entries().iter().map(|entry| self.disk.stored(entry));
                let stored = stored.reduce(|one, other| {
                    assert_eq!(one, other, "such a run is to be added one by one");
                    one
                });
                let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
                let ticket = self.ticket(format!("{by} adds {id}{to}"));
                self.gate.on_add(ticket, &adder(by)?, run, stored.ok_or("an empty run")?);
            }
            Input::Confirmed { entry, by } => {
                self.gate.on_confirmed(&adder(by)?, EntryId::new(*entry));
            }
            Input::Lac => {
                return Ok(format!("lac {}\n", entry_or_none(self.gate.last_add_confirmed())));
            }
            Input::Fence => {
                let ticket = self.ticket("fence".to_owned());
                self.gate.on_fence(ticket);
            }
            Input::Delete => {
                let ticket = self.ticket("delete".to_owned());
                self.gate.on_delete(ticket);
            }
            Input::Sync(count) => {
                let count = count.unwrap_or(self.log.len());
                let mut out = String::new();
                for record in self.log.drain(..count).collect::<Vec<_>>() {
                    out += &format!("durable: {}\n", words(&record));
                    self.disk.keep(&record);
                    self.gate.on_durable(&record);
                    out += &self.actions();
                }
                return Ok(out);
            }
            Input::FailLog => {
                self.log.clear();
                self.gate.on_log_failed("the sync failed");
            }
            Input::Restart => {
                self.log.clear();
                let Disk { entries, writer, fenced, deleted, .. } = &self.disk;
                let confirmed = entries.values().map(|e| e.header().last_add_confirmed).max();
                self.gate = if *deleted {
                    Gate::deleted()
                } else {
                    Gate::new(*fenced, *writer, confirmed.flatten())
                };
            }
            Input::Spoil(id) => drop(self.disk.spoiled.insert(EntryId::new(*id))),
            Input::Disk => return Ok(self.disk.words()),
        }
        Ok(self.actions())
    }
}

impl Bookie {
    fn ticket(&mut self, asked: String) -> u64 {
        self.asked.push(asked);
        self.asked.len() as u64 - 1
    }

    fn actions(&mut self) -> String {
        let mut out = String::new();
        while let Some(action) = self.gate.next_action() {
            match action {
                Action::Write(record) => {
                    out += &format!("to the log: {}\n", words(&record));
                    self.log.push_back(record);
                }
                Action::Answer(ticket, answer) => {
                    let asked = &self.asked[usize::try_from(ticket).unwrap()];
                    let answer = match answer {
                        Answer::Added => "added".to_owned(),
                        Answer::Fenced { last_add_confirmed } => {
                            format!("fenced, lac {}", entry_or_none(last_add_confirmed))
                        }
                        Answer::Deleted => "deleted".to_owned(),
                        Answer::Refused(refusal) => format!("refused: {refusal}"),
                    };
                    out += &format!("answer to \"{asked}\": {answer}\n");
                }
            }
        }
        out
    }
}

impl Disk {
    fn stored(&self, new: &Entry) -> Stored {
        match self.entries.get(&new.id()) {
            Some(_) if self.spoiled.contains(&new.id()) => {
                Stored::Unsound(Refusal::Corrupt("bad checksum".to_owned()))
            }
            Some(stored) if stored == new => Stored::Same,
            Some(_) => Stored::Other,
            None => Stored::Nothing,
        }
    }

    fn keep(&mut self, record: &Record) {
        match record {
            Record::Writer { id, .. } => {
                assert!(self.writer.replace(*id).is_none(), "there was a first writer");
            }
            Record::Entries(run) => {
                for entry in run.entries() {
                    let other = self.entries.insert(entry.id(), entry.clone());
                    assert!(other.is_none(), "the log had an entry at this id");
                }
            }
            Record::Fence => self.fenced = true,
            Record::Tombstone => *self = Self { deleted: true, ..Self::default() },
        }
    }

    fn words(&self) -> String {
        let writer = self.writer.map_or_else(|| "no writer".to_owned(), |id| name(id).to_owned());
        let entries: Vec<_> = self.entries.keys().map(ToString::to_string).collect();
        if self.deleted {
            return "deleted".to_owned();
        }
        let fenced = if self.fenced { "fenced" } else { "open" };
        format!("{writer}, {fenced}, entries [{}]", entries.join(" "))
    }
}

impl Default for Bookie {
    fn default() -> Self {
        Self {
            gate: Gate::new(false, None, None),
            disk: Disk::default(),
            log: VecDeque::new(),
            asked: Vec::new(),
        }
    }
}

fn adder(by: &str) -> Result<Adder, String> {
    let of = |number| Adder::Writer {
        id: writer(number),
        fragment: format!("fragment of {by}").into_bytes().into(),
    };
    match by {
        "A" => Ok(of(1)),
        "B" => Ok(of(2)),
        "recovery" => Ok(Adder::Recovery),
        _ => Err(format!("'{by}' adds nothing here")),
    }
}

fn name(id: WriterId) -> &'static str {
    if id == writer(1) { "A" } else { "B" }
}

fn words(record: &Record) -> String {
    match record {
        Record::Writer { id, fragment } => {
            format!("writer {}, {}", name(*id), String::from_utf8_lossy(fragment))
        }
        Record::Entries(run) => {
            let ids: Vec<_> = run.entries().iter().map(|entry| entry.id().to_string()).collect();
            format!("entry {}", ids.join(" "))
        }
        Record::Fence => "fence".to_owned(),
        Record::Tombstone => "tombstone".to_owned(),
    }
}
