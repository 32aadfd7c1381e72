//! `inkfast ledger write`: standard input to a new ledger.

use std::io::{IsTerminal, Write as _};
use std::pin::pin;
use std::time::Duration;

use inkfast::{Client, CreateOptions, EntryId, Error, LedgerWriter, PAYLOAD_BYTES_MAX};
use tokio::io::{Stdin, stdin};

use crate::Failure;
use crate::commands::Spread;
use crate::entries::Entries;
use crate::output::say;

/// How often the progress line is drawn.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Write {
    #[command(flatten)]
    spread: Spread,
    /// Makes every N bytes an entry, instead of every line
    #[arg(long, value_name = "N")]
    chunk_bytes: Option<usize>,
    /// Leaves the ledger open, as a writer that dies does
    #[arg(long)]
    leave_open: bool,
    /// Prints `confirmed ENTRY` whenever the highest confirmed entry moves
    #[arg(long)]
    confirmations: bool,
    /// The namespace that the ledger is listed under
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
}

impl Write {
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.spread.replication()?;
        match self.chunk_bytes {
            Some(bytes) if !(1..=PAYLOAD_BYTES_MAX).contains(&bytes) => Err(Failure::Usage(
                format!("--chunk-bytes {bytes}: an entry has 1 to {PAYLOAD_BYTES_MAX} bytes"),
            )),
            _ => Ok(()),
        }
    }

    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        let writer = client
            .create_ledger(CreateOptions {
                namespace: self.namespace.clone(),
                ..self.spread.options()?
            })
            .await?;
        say(format_args!("ledger {}", writer.id()))?;
        let input = match self.chunk_bytes {
            Some(bytes) => Entries::chunks(stdin(), bytes),
            // One byte more than an entry may have, so that a longer line is refused and not cut.
            None => Entries::lines(stdin(), PAYLOAD_BYTES_MAX + 1),
        };
        self.append_all(&writer, input).await?;
        if !self.leave_open {
            writer.close().await?;
        }
        Ok(())
    }

    /// Appends all input and returns when it is confirmed, or at once when an append fails.
    async fn append_all(
        &self,
        writer: &LedgerWriter,
        input: Entries<Stdin>,
    ) -> Result<(), Failure> {
        let mut appending = pin!(append_input(writer, input));
        let mut redraw = tokio::time::interval(PROGRESS_INTERVAL);
        let show_progress = std::io::stderr().is_terminal();
        let mut said = None;
        let ended = loop {
            tokio::select! {
                ended = &mut appending => break ended,
                // Appending may be waiting for input, and so not notice.
                failed = writer.failed() => break Err(failed.into()),
                Ok(confirmed) = writer.confirmed_beyond(said), if self.confirmations => {
                    say(format_args!("confirmed {confirmed}"))?;
                    said = Some(confirmed);
                }
                _ = redraw.tick(), if show_progress => draw(writer, ""),
            }
        };
        if show_progress {
            draw(writer, "\n");
        }
        match writer.last_add_confirmed() {
            Some(confirmed) if self.confirmations && said < Some(confirmed) => {
                say(format_args!("confirmed {confirmed}"))?;
            }
            _ => {}
        }
        ended
    }
}

/// Appends all input and waits until it is confirmed. What comes before an error of the input is
/// confirmed, too.
async fn append_input(writer: &LedgerWriter, mut input: Entries<Stdin>) -> Result<(), Failure> {
    let mut last = None;
    let end = loop {
        let entry = match input.next().await {
            Ok(Some(entry)) => entry,
            Ok(None) => break Ok(()),
            Err(error) => break Err(format!("cannot read standard input: {error}")),
        };
        match writer.append(entry).await {
            // The flush below waits for all confirmations.
            Ok(append) => last = Some(append.entry()),
            Err(Error::EntryTooLarge(_)) => {
                break Err(format!(
                    "entry {} would have more than {PAYLOAD_BYTES_MAX} bytes, the limit",
                    EntryId::after(last)
                ));
            }
            Err(error) => return Err(error.into()),
        }
    };
    writer.flush().await?;
    end.map_err(|why| {
        let id = writer.id();
        Failure::Failed(format!(
            "{why}; the entries before are confirmed, and ledger {id} stays open: end it with \
             `inkfast ledger recover {id}`"
        ))
    })
}

/// Draws the progress line.
fn draw(writer: &LedgerWriter, end: &str) {
    let entries = EntryId::after(writer.last_add_confirmed());
    // It is for whoever looks on; the ledger does not depend on it.
    let _ = write!(std::io::stderr(), "\rledger {}: {entries} entries confirmed{end}", writer.id());
}
