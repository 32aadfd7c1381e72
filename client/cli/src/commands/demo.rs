//! `inkfast demo`: the main job on real input.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::TryStreamExt;
use inkfast::{Client, CreateOptions, EntryId, LedgerId, LedgerReader, PAYLOAD_BYTES_MAX};
use tokio::fs::File;

use crate::Failure;
use crate::cluster::{BOOKIES_DEFAULT, Cluster, METASTORES_DEFAULT};
use crate::entries::Entries;
use crate::output::say;

const SAMPLE_LINES: u64 = 50_000;

/// The part of the entries that may be unconfirmed when the writer dies: one in so many.
const UNCONFIRMED_PART: u64 = 10;

#[derive(clap::Args)]
pub(crate) struct Demo {
    /// The file to write; a sample is made where none is named
    file: Option<PathBuf>,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if let Some(file) = &self.file {
            // It is read twice, so it must be a file indeed.
            open(file).await?;
        }
        let begun = Instant::now();
        let cluster = Cluster::temporary(BOOKIES_DEFAULT, METASTORES_DEFAULT).await?;
        told(begun, format_args!("started a metastore and {BOOKIES_DEFAULT} bookies"))?;
        let outcome = self.show(&cluster).await;
        cluster.stop().await;
        outcome
    }

    async fn show(self, cluster: &Cluster) -> Result<(), Failure> {
        let file = match self.file {
            Some(file) => file,
            None => make_sample(cluster.dir())?,
        };
        let (ledger, confirmed) = write_and_die(&cluster.client().await?, &file).await?;

        let begun = Instant::now();
        let reader = cluster.client().await?.recover_ledger(ledger).await?;
        let last = reader.last_add_confirmed().await?;
        let end =
            last.map_or_else(|| "without entries".to_owned(), |last| format!("at entry {last}"));
        told(begun, format_args!("recovered ledger {ledger} from another client: closed {end}"))?;
        let begun = Instant::now();
        let entries = compare(&reader, last, &file).await?;
        if last < confirmed || entries != EntryId::after(last).get() {
            let confirmed = EntryId::after(confirmed);
            let words = format!("{confirmed} entries were confirmed, and {entries} came back");
            return Err(Failure::Failed(words));
        }
        told(begun, format_args!("read {entries} entries back: byte for byte what was written"))?;
        Ok(say("Everything that was confirmed is there, though its writer died.")?)
    }
}

/// Writes a file to a ledger and drops the writer without closing, while the last entries may not
/// be confirmed. Returns the ledger and the highest entry that was.
async fn write_and_die(
    client: &Client,
    file: &Path,
) -> Result<(LedgerId, Option<EntryId>), Failure> {
    let begun = Instant::now();
    let writer = client.create_ledger(CreateOptions::default()).await?;
    let mut input = open(file).await?;
    let (mut entries, mut bytes) = (0, 0);
    while let Some(entry) = input.next().await.map_err(|error| unreadable(file, &error))? {
        bytes += entry.len();
        drop(writer.append(entry).await?);
        entries += 1;
    }
    let awaited = entries - entries / UNCONFIRMED_PART;
    if awaited > 0 {
        writer.confirmed_beyond(EntryId::new(awaited - 1).previous()).await?;
    }
    let (ledger, confirmed) = (writer.id(), writer.last_add_confirmed());
    drop(writer);
    told(begun, format_args!("wrote {}: {entries} entries, {bytes} bytes", file.display()))?;
    let count = EntryId::after(confirmed).get();
    let open = entries - count;
    say(format_args!(
        "{:>12}the writer is dropped: {count} entries are confirmed, {open} are open",
        ""
    ))?;
    Ok((ledger, confirmed))
}

/// Reads a ledger up to its end and compares it with the beginning of a file. Returns the number
/// of entries.
async fn compare(
    reader: &LedgerReader,
    last: Option<EntryId>,
    file: &Path,
) -> Result<u64, Failure> {
    let Some(last) = last else { return Ok(0) };
    let mut written = open(file).await?;
    let mut entries = Box::pin(reader.read(EntryId::FIRST..=last));
    let mut count = 0;
    while let Some(entry) = entries.try_next().await? {
        let expected = written.next().await.map_err(|error| unreadable(file, &error))?;
        if expected != Some(entry.payload()) {
            let words = format!("entry {} of the ledger is not what was written", entry.id());
            return Err(Failure::Failed(words));
        }
        count += 1;
    }
    Ok(count)
}

/// Opens a file to be cut into lines; longer ones than an entry may be are cut, too.
async fn open(path: &Path) -> Result<Entries<File>, Failure> {
    let file = File::open(path).await.map_err(|error| unreadable(path, &error))?;
    let metadata = file.metadata().await.map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        let words = format!("{} is not a regular file: name one", path.display());
        return Err(Failure::Failed(words));
    }
    Ok(Entries::lines(file, PAYLOAD_BYTES_MAX))
}

fn make_sample(dir: &Path) -> Result<PathBuf, Failure> {
    let begun = Instant::now();
    let mut text = String::new();
    for line in 0..SAMPLE_LINES {
        let (from, to, cents) =
            (line * 7919 % 9973, line * 104_729 % 9967, line * line % 1_000_003);
        let _ =
            writeln!(text, "transfer {line}: {cents} cents from account {from} to account {to}");
    }
    let path = dir.join("sample.txt");
    std::fs::write(&path, text)
        .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
    told(begun, format_args!("made a sample of {SAMPLE_LINES} lines"))?;
    Ok(path)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("cannot read {}: {error}", path.display()))
}

/// Tells what was done, and how long it took.
fn told(begun: Instant, what: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    Ok(say(format_args!("{:>8.3} s  {what}", begun.elapsed().as_secs_f64()))?)
}
