//! How a ledger is shown.

use std::fmt;
use std::time::{Duration, SystemTime};

use inkfast::{EntryId, LedgerMetadata, State};
use serde::Serialize;

/// A ledger as it is printed: as JSON by its fields, otherwise one of them a line.
#[derive(Serialize)]
pub(super) struct View<'a> {
    ledger: u64,
    state: &'static str,
    /// Null unless it is closed, or when it is empty.
    last_entry: Option<u64>,
    /// Null unless it is closed.
    length_bytes: Option<u64>,
    namespace: &'a str,
    owner: &'a str,
    ensemble: usize,
    write_quorum: usize,
    ack_quorum: usize,
    created_at_ms: u64,
    fragments: Vec<FragmentView>,
}

#[derive(Serialize)]
struct FragmentView {
    first_entry: u64,
    bookies: Vec<String>,
}

/// The head of the columns of [`View::row`].
pub(super) const ROW_HEAD: &str =
    "  LEDGER  STATE        LAST ENTRY         BYTES  NAMESPACE         OWNER";

impl<'a> View<'a> {
    pub(super) fn new(metadata: &'a LedgerMetadata) -> Self {
        let (state, last, length_bytes) = match metadata.state {
            State::Open => ("open", None, None),
            State::InRecovery => ("in recovery", None, None),
            State::Closed { last, length } => ("closed", last, Some(length)),
        };
        let fragments = metadata.fragments.iter().map(|fragment| FragmentView {
            first_entry: fragment.first.get(),
            bookies: fragment.ensemble.iter().map(ToString::to_string).collect(),
        });
        Self {
            ledger: metadata.ledger.get(),
            state,
            last_entry: last.map(EntryId::get),
            length_bytes,
            namespace: &metadata.namespace,
            owner: &metadata.owner,
            ensemble: metadata.replication.ensemble(),
            write_quorum: metadata.replication.write_quorum(),
            ack_quorum: metadata.replication.ack_quorum(),
            created_at_ms: metadata.created_at_ms,
            fragments: fragments.collect(),
        }
    }

    /// Says in one line where the ledger ends.
    pub(super) fn end(&self) -> String {
        let Self { ledger, state, .. } = self;
        match (self.last_entry, self.length_bytes) {
            (Some(last), Some(length)) => {
                format!("ledger {ledger} {state}, last entry {last}, {length} bytes")
            }
            (None, Some(_)) => format!("ledger {ledger} {state}, no entries"),
            _ => format!("ledger {ledger} {state}"),
        }
    }

    /// Returns the ledger as one line of a table.
    pub(super) fn row(&self) -> String {
        let Self { ledger, state, namespace, owner, .. } = self;
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let (last, length) = (number(self.last_entry), number(self.length_bytes));
        format!("{ledger:>8}  {state:<11}  {last:>10}  {length:>12}  {namespace:<16}  {owner}")
    }
}

impl fmt::Display for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.end())?;
        writeln!(f, "namespace     {}", self.namespace)?;
        writeln!(f, "owner         {}", self.owner)?;
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(self.created_at_ms);
        let age = created.elapsed().unwrap_or_default();
        writeln!(f, "created       {} s ago", age.as_secs())?;
        writeln!(f, "ensemble      {}", self.ensemble)?;
        writeln!(f, "write quorum  {}", self.write_quorum)?;
        write!(f, "ack quorum    {}", self.ack_quorum)?;
        for FragmentView { first_entry, bookies } in &self.fragments {
            write!(f, "\nfrom entry {first_entry} on bookies")?;
            bookies.iter().try_for_each(|bookie| write!(f, "\n  {bookie}"))?;
        }
        Ok(())
    }
}
