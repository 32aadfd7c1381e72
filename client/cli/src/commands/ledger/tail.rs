//! `inkfast ledger tail`: a ledger as it is written.

use std::io::{self, BufWriter, Write as _};

use futures::{FutureExt, StreamExt};
use inkfast::{Client, EntryId, LedgerId};

use crate::Failure;

#[derive(clap::Args)]
pub(crate) struct Tail {
    /// The ledger's id
    id: LedgerId,
    /// The first entry to print
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
}

impl Tail {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        let reader = client.open_ledger(self.id).await?;
        let mut entries = Box::pin(reader.tail(EntryId::new(self.from)));
        let mut stdout = BufWriter::new(io::stdout().lock());
        loop {
            let entry = match entries.next().now_or_never() {
                Some(entry) => entry,
                None => {
                    // Nothing more for the moment: show what there is.
                    stdout.flush()?;
                    entries.next().await
                }
            };
            match entry {
                Some(entry) => stdout.write_all(&entry?.payload())?,
                None => return Ok(stdout.flush()?),
            }
        }
    }
}
