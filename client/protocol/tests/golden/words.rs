//! How scripts name things: a bookie is `b0`, a refusal its own name, no entry `none`.

use std::str::FromStr;

use inkfast_protocol::{BookieId, EntryId, Fragment, LedgerMetadata, Refusal, State};

use crate::ledgers::bookie;

/// The bookies that a script may name.
const BOOKIES: usize = 16;

/// A bookie, `b0` and so on.
pub(crate) struct Name(pub(crate) BookieId);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('b').and_then(|number| number.parse().ok());
        let number = number.filter(|number| *number < BOOKIES).ok_or("a bookie is b0 to b15")?;
        Ok(Self(bookie(number)))
    }
}

/// What a bookie says instead of doing what it was asked.
pub(crate) struct Said(pub(crate) Refusal);

impl FromStr for Said {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "absent" => Refusal::Absent,
            "silent" => Refusal::Unknown("no answer".to_owned()),
            "unknown" => Refusal::Unknown("index being rebuilt".to_owned()),
            "corrupt" => Refusal::Corrupt("bad checksum".to_owned()),
            "fenced" => Refusal::Fenced,
            "deleted" => Refusal::Deleted,
            "other-writer" => Refusal::OtherWriter,
            "conflict" => Refusal::Conflict,
            "read-only" => Refusal::ReadOnly("disk full".to_owned()),
            "bad-request" => Refusal::BadRequest("nonsense".to_owned()),
            _ => return Err(format!("'{text}' is no refusal")),
        }))
    }
}

/// Puts the short names of bookies into a message.
pub(crate) fn short(message: &impl ToString) -> String {
    let numbered = |text: String, number| {
        let id = bookie(number);
        text.replace(&format!("bookie {id}"), &format!("b{number}"))
            .replace(&id.to_string(), &format!("b{number}"))
    };
    (0..BOOKIES).fold(message.to_string(), numbered)
}

/// Tells an entry that there may not be.
pub(crate) fn entry_or_none(entry: Option<EntryId>) -> String {
    entry.map_or_else(|| "none".to_owned(), |entry| entry.to_string())
}

/// Tells the state of a ledger, its fragments, and the note that somebody may have left.
pub(crate) fn describe(metadata: &LedgerMetadata) -> String {
    let state = match metadata.state {
        State::Open => "open".to_owned(),
        State::InRecovery => "in recovery".to_owned(),
        State::Closed { last, length } => {
            format!("closed (last {}, {length} bytes)", entry_or_none(last))
        }
    };
    let fragments: Vec<_> = metadata.fragments.iter().map(fragment).collect();
    let note = metadata.custom.get("note").map(|note| String::from_utf8_lossy(note));
    let note = note.map_or_else(String::new, |note| format!(", note \"{note}\""));
    format!("{state}, {}{note}", fragments.join(" "))
}

fn fragment(fragment: &Fragment) -> String {
    let ensemble: Vec<_> = fragment.ensemble.iter().map(short).collect();
    format!("{}:[{}]", fragment.first, ensemble.join(" "))
}
