//! The client library of Inkfast: create, append to, read and recover replicated ledgers.
//!
//! A *ledger* is an append-only sequence of entries with one writer, kept on several *bookies*.
//! It is what a program writes its log or journal to when that log must outlive the machine.
//!
//! # Write
//! [`Client::create_ledger`] gives the one [`LedgerWriter`]. [`LedgerWriter::append`] numbers an
//! entry and sends it; the [`Append`] that it returns is a future that ends when the entry is
//! confirmed. A program that needs throughput keeps many under way; one that needs each entry
//! safe before the next awaits each.
//!
//! # Read
//! [`Client::open_ledger`] reads a ledger without disturbing its writer, up to the last add
//! confirmed; [`LedgerReader::tail`] follows it as it is written, until it is closed.
//! [`Client::recover_ledger`] is for the ledger of a writer that died: it fences the writer,
//! settles where the ledger ends, and closes it. What was confirmed is in it.
//!
//! # When bookies fail
//! A writer replaces a bookie that fails, hangs or takes no writes by another, or takes it back
//! when it answers again, and goes on with an ack quorum meanwhile. Nothing has to be done about
//! it. Only when nothing could be confirmed for 30 s do its appends fail, with the bookies' words.
//! Readers and tails find the new places of the entries by themselves. A metastore that is away
//! stops what needs it: to create, close, recover or delete a ledger, and to replace a bookie.
//!
//! # One writer
//! No lock and no clock decides who may write. Whoever wants to take over a log recovers its
//! ledger: from then on the old writer's appends cannot be confirmed, even if it was only slow,
//! and it is told [`Error::Fenced`]. Then the new writer creates a ledger of its own.
//!
//! # How it is built
//! The rules are the state machines of [`inkfast_protocol`]; here they are driven. An append goes
//! through `append` (`room`, turn), `driver` (the writer's machine under one lock), `outbox`
//! (frames that all places share), `bell` (whose turn it is) and `adds` (one stream to each bookie,
//! which all ledgers share), and comes back through `confirmations`. When a bookie fails, `driver/tend` chooses another among those that `registry`
//! knows, by the rules of `placement`. A recovery goes through `recover` (its machine in one loop),
//! `reads` and `adds`. A tail goes through `tail` (its machine in one loop), `pushes` (a stream
//! from a bookie) and `follow` (the metadata). [`catalog`] maps ledgers and bookies to keys of the
//! metastore.
//!
//! # Not here
//! No transactions, no order across ledgers. Nothing copies entries to new bookies when old ones
//! are lost for good.

pub use append::{Append, LedgerWriter};
pub use client::{Client, CreateOptions};
pub use config::{Config, Deadlines};
pub use error::Error;
pub use inkfast_protocol::reader::Lost;
pub use inkfast_protocol::recovery::RecoveryError;
pub use inkfast_protocol::{
    BookieId, Entry, EntryId, Fragment, LedgerId, LedgerMetadata, PAYLOAD_BYTES_MAX, Refusal,
    Replication, State,
};
pub use read::LedgerReader;

mod adds;
mod append;
mod bell;
mod bookies;
pub mod catalog;
mod client;
mod config;
mod confirmations;
mod driver;
mod error;
mod follow;
mod outbox;
mod placement;
mod pushes;
mod read;
mod reads;
mod recover;
mod registry;
mod room;
mod tail;
