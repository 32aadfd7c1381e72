//! `inkfast doctor`: looks at what is on a disk.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use inkfast::{EntryId, LedgerId};
use inkfast_bookie::doctor::{self, Listed, Rebuilt, What};

use crate::Failure;
use crate::output::{Format, Output, say};

mod view;

use view::View;

#[derive(clap::Subcommand)]
pub(crate) enum Doctor {
    /// Examines the directories of a bookie that does not run: reads all of them and changes
    /// nothing. Exit status 0 says that they are sound
    Bookie(BookieArguments),
}

#[derive(clap::Args)]
pub(crate) struct BookieArguments {
    /// A directory of the bookie; give it once for each
    #[arg(long, required = true, value_name = "DIR")]
    dir: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Lists the records of the log, in its order: segment, offset, what it is, ledger, entry, and
    /// the bytes of its payload
    Records {
        /// Only those of this segment
        #[arg(long, value_name = "N")]
        segment: Option<u32>,
        /// Only those of this ledger
        #[arg(long, value_name = "ID")]
        ledger: Option<LedgerId>,
    },
    /// Writes the payload of an entry to standard output
    Dump {
        ledger: LedgerId,
        entry: u64,
        /// Writes it to this file
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Removes the index, and makes it anew from the log. It is the only task that writes; a bookie
    /// that starts does the same where the index is missing or cannot be read
    RebuildIndex,
}

impl Doctor {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self::Bookie(BookieArguments { dir, output, task }) = self;
        if task.is_some() && matches!(output.format, Format::Json) {
            return Err(Failure::Usage("only what is examined is printed as JSON".to_owned()));
        }
        let done = match task {
            None => examine(&dir, &output),
            Some(Task::Records { segment, ledger }) => records(&dir, segment, ledger),
            Some(Task::Dump { ledger, entry, out }) => {
                dump(&dir, ledger, EntryId::new(entry), out.as_deref())
            }
            Some(Task::RebuildIndex) => rebuild(&dir).await,
        };
        match done {
            // Whoever reads what is printed has had enough of it.
            Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done,
        }
    }
}

fn examine(dirs: &[PathBuf], output: &Output) -> Result<(), Failure> {
    let mut reports = Vec::new();
    for dir in dirs {
        reports.push((dir.as_path(), doctor::examine(dir)?));
    }
    output.print(&View::new(&reports))?;
    let mut troubles = reports.iter().flat_map(|(_, report)| &report.troubles).peekable();
    if troubles.peek().is_none() {
        return Ok(());
    }
    let words = match troubles.any(|trouble| trouble.in_log) {
        true => {
            "the log is damaged. What is lost here has to be read from other bookies; started all \
             the same, this one serves the rest, refuses writers, and calls nothing absent. When \
             others have all of its ledgers, let it begin anew with empty directories"
        }
        false => {
            "the index is not as it should be, and the log is whole: nothing is lost. Run \
             `inkfast doctor bookie --dir DIR rebuild-index`"
        }
    };
    Err(Failure::Failed(words.to_owned()))
}

fn records(
    dirs: &[PathBuf],
    segment: Option<u32>,
    ledger: Option<LedgerId>,
) -> Result<(), Failure> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    for dir in dirs {
        let mut failed = None;
        doctor::records(dir, segment, ledger, &mut |listed| match writeln!(
            stdout,
            "{}",
            line(&listed)
        ) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(stdout.flush()?)
}

fn line(Listed { segment, offset, bytes, what }: &Listed) -> String {
    let what = match what {
        What::Entry(ledger, entry) => format!("entry      {ledger:>8} {entry:>10}"),
        What::Fence(ledger) => format!("fence      {ledger:>8}          -"),
        What::Writer(ledger) => format!("writer     {ledger:>8}          -"),
        What::Tombstone(ledger) => format!("tombstone  {ledger:>8}          -"),
        What::Dropped => "dropped           -          -".to_owned(),
        What::Unknown(kind) => format!("unknown {kind:>3}       -          -"),
        What::Damage => "DAMAGE            -          -".to_owned(),
    };
    format!("{segment} {offset:>10}  {what} {bytes:>10}")
}

fn dump(
    dirs: &[PathBuf],
    ledger: LedgerId,
    entry: EntryId,
    out: Option<&Path>,
) -> Result<(), Failure> {
    for dir in dirs {
        let Some(payload) = doctor::dump(dir, ledger, entry)? else { continue };
        let Some(out) = out else {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&payload)?;
            return Ok(stdout.flush()?);
        };
        return fs::write(out, &payload).map_err(|error| {
            Failure::Failed(format!("cannot write to {}: {error}", out.display()))
        });
    }
    let words = format!("entry {entry} of ledger {ledger} is not there, or damaged");
    Err(Failure::Failed(words))
}

async fn rebuild(dirs: &[PathBuf]) -> Result<(), Failure> {
    for dir in dirs {
        let Rebuilt { ledgers, entries, damages } = doctor::rebuild_index(dir).await?;
        let damaged = match damages {
            0 => String::new(),
            _ => format!("; the log is damaged in {damages} places"),
        };
        let dir = dir.display();
        say(format_args!(
            "{dir} has a new index of {entries} entries of {ledgers} ledgers{damaged}"
        ))?;
    }
    Ok(())
}
