//! Scripts of the reader.

use std::collections::BTreeMap;
use std::error::Error;

use goldenscript::{Command, Context};
use inkfast_protocol::EntryId;
use inkfast_protocol::reader::{Action, Reader};

use crate::ledgers::entry;
use crate::metastore::{Metastore, Told};
use crate::words::{Name, Said, short};

/// The most actions of a kind that are told one by one.
const TOLD_ONE_BY_ONE: usize = 12;

#[derive(Default)]
pub(crate) struct Runner {
    metastore: Metastore,
    reader: Option<Reader>,
}

#[derive(Command)]
pub(crate) enum Input {
    /// Begins to read the entries from the first to the last.
    Read { first: u64, last: u64 },
    /// A copy comes, or copies up to another entry, each of so many bytes.
    Copy {
        entry: u64,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        bytes: Option<usize>,
    },
    /// A bookie refuses an entry.
    Refused {
        entry: u64,
        #[arg(key)]
        by: Name,
        #[arg(key)]
        why: Said,
    },
    /// A bookie does not answer for an entry.
    Silent {
        entry: u64,
        #[arg(key)]
        by: Name,
    },
    /// Nobody listens any more to those that were asked.
    HungUp,
    /// What happens in the metastore.
    #[command(other)]
    Metastore(Command),
}

impl goldenscript::Runner for Runner {
    type Command = Input;

    fn run(&mut self, input: &Input, _: &Context) -> Result<String, Box<dyn Error>> {
        match input {
            Input::Read { first, last } => {
                let entries = EntryId::new(*first)..=EntryId::new(*last);
                self.reader = Some(Reader::new(self.metastore.metadata.clone(), entries));
            }
            Input::Copy { entry: id, to, bytes } => {
                let payload = vec![b'x'; bytes.unwrap_or(1)];
                for id in *id..=to.unwrap_or(*id) {
                    self.reader()?.on_copy(entry(id, None, 0, &payload));
                }
            }
            Input::Refused { entry, by, why } => {
                self.reader()?.on_refused(by.0, EntryId::new(*entry), why.0.clone());
            }
            Input::Silent { entry, by } => {
                self.reader()?.on_silent(by.0, EntryId::new(*entry), "no answer");
            }
            Input::HungUp => self.reader()?.on_hung_up(),
            Input::Metastore(command) => {
                if let Told::Nothing(words) = self.metastore.run(command)? {
                    return Ok(words);
                }
            }
        }
        Ok(self.actions())
    }
}

impl Runner {
    fn reader(&mut self) -> Result<&mut Reader, &'static str> {
        self.reader.as_mut().ok_or("begin with 'read'")
    }

    fn actions(&mut self) -> String {
        let (mut asked, mut rest) = (Vec::new(), String::new());
        while let Some(action) = self.reader.as_mut().and_then(Reader::next_action) {
            match action {
                Action::Ask { bookie, entry } => asked.push((bookie, entry)),
                Action::Deliver(entry) => rest += &format!("deliver {}\n", entry.id()),
                Action::Done => rest += "done\n",
                Action::Fail(lost) => rest += &format!("fail: {}\n", short(&lost)),
            }
        }
        let asked = match &asked[..] {
            [(_, first), .., (_, last)] if asked.len() > TOLD_ONE_BY_ONE => {
                let mut counts = BTreeMap::<_, usize>::new();
                asked.iter().for_each(|(bookie, _)| *counts.entry(bookie).or_default() += 1);
                let each = counts.iter().map(|(b, count)| format!(", {} for {count}", short(b)));
                format!("ask for {first} to {last}{}\n", each.collect::<String>())
            }
            few => few.iter().map(|(b, entry)| format!("ask {} for {entry}\n", short(b))).collect(),
        };
        rest + &asked
    }
}
