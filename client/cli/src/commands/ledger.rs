//! `inkfast ledger`: ledgers on the command line.

use std::io::{self, BufWriter, Write as _};

use futures::TryStreamExt;
use inkfast::{Client, EntryId, LedgerId};

use crate::Failure;
use crate::output::{Format, Output, say};
use view::View;

mod tail;
mod view;
mod write;

#[derive(clap::Subcommand)]
pub(crate) enum Ledger {
    /// Writes standard input to a new ledger: a line, with its newline, is an entry
    ///
    /// The first line printed is `ledger ID`. At the end of the input the ledger is closed, unless
    /// it is to be left open.
    Write(write::Write),
    /// Prints the entries of a ledger: exactly the bytes that were written
    ///
    /// Does not disturb its writer. Fails before it prints if a part of the range is beyond the
    /// end, or not confirmed yet.
    Read(Read),
    /// Prints the entries of a ledger as they are confirmed, until it is closed
    Tail(tail::Tail),
    /// Ends the ledger of a writer that is gone, and prints where
    ///
    /// All that was confirmed is in it then. A writer that is alive after all is fenced.
    Recover(Named),
    /// Prints what is known of a ledger
    Show(Named),
    /// Lists ledgers
    List(List),
    /// Deletes a ledger
    Delete {
        /// The ledger's id
        id: LedgerId,
    },
}

#[derive(clap::Args)]
pub(crate) struct Read {
    /// The ledger's id
    id: LedgerId,
    /// The first entry to print
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// The last entry to print [default: the end, or the last that is confirmed]
    #[arg(long, value_name = "M")]
    to: Option<u64>,
}

#[derive(clap::Args)]
pub(crate) struct Named {
    /// The ledger's id
    id: LedgerId,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct List {
    /// Only those of this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Ledger {
    /// Refuses what no server has to be asked about.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Write(write) => write.check(),
            Self::Read(Read { from, to: Some(to), .. }) if from > to => {
                Err(Failure::Usage(format!("--from {from} is above --to {to}: swap them")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn run(self, client: &Client) -> Result<(), Failure> {
        let printed = match self {
            Self::Write(write) => return write.run(client).await,
            Self::Read(read) => read.run(client).await,
            Self::Tail(tail) => tail.run(client).await,
            Self::Recover(named) => named.recover(client).await,
            Self::Show(named) => named.show(client).await,
            Self::List(list) => list.run(client).await,
            Self::Delete { id } => {
                client.delete_ledger(id).await?;
                say(format_args!("ledger {id} deleted")).map_err(Failure::from)
            }
        };
        match printed {
            // Whoever reads what is printed has had enough of it.
            Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            printed => printed,
        }
    }
}

impl Named {
    async fn recover(self, client: &Client) -> Result<(), Failure> {
        let metadata = client.recover_ledger(self.id).await?.metadata();
        let view = View::new(&metadata);
        match self.output.format {
            Format::Table => Ok(say(view.end())?),
            Format::Json => Ok(self.output.print(&view)?),
        }
    }

    async fn show(self, client: &Client) -> Result<(), Failure> {
        let metadata = client.ledger_metadata(self.id).await?;
        Ok(self.output.print(&View::new(&metadata))?)
    }
}

impl Read {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let reader = client.open_ledger(self.id).await?;
        let from = EntryId::new(self.from);
        let to = match self.to {
            Some(to) => EntryId::new(to),
            None => match reader.last_add_confirmed().await? {
                None if from == EntryId::FIRST => return Ok(()),
                // If it begins beyond the end, reading says so.
                last => last.unwrap_or(from).max(from),
            },
        };
        let mut entries = Box::pin(reader.read(from..=to));
        let mut stdout = BufWriter::new(io::stdout().lock());
        while let Some(entry) = entries.try_next().await? {
            stdout.write_all(&entry.payload())?;
        }
        Ok(stdout.flush()?)
    }
}

impl List {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let mut ledgers = Box::pin(client.list_ledgers(self.namespace.as_deref()));
        let mut stdout = BufWriter::new(io::stdout().lock());
        let json = matches!(self.output.format, Format::Json);
        let (head, end) = if json { ("[", "\n]\n") } else { (view::ROW_HEAD, "\n") };
        stdout.write_all(head.as_bytes())?;
        let mut first = true;
        while let Some(metadata) = ledgers.try_next().await? {
            let view = View::new(&metadata);
            if json {
                let comma = if first { "" } else { "," };
                let object = serde_json::to_string(&view).map_err(io::Error::from)?;
                write!(stdout, "{comma}\n  {object}")?;
            } else {
                write!(stdout, "\n{}", view.row())?;
            }
            first = false;
        }
        stdout.write_all(end.as_bytes())?;
        Ok(stdout.flush()?)
    }
}
