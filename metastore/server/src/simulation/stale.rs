//! A client that asks any member for what it has, be it old.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use inkfast_metastore::messages::Request;
use inkfast_metastore::{Metastore, Page, Scan, Version};
use tokio::time::{Instant, sleep};

use super::client::SimClient;
use super::model::Model;
use super::net::{Place, Running, SimNet};

const PREFIX: &str = "key";
/// How long a member is waited for.
const PATIENCE: Duration = Duration::from_millis(300);
/// The longest pause between two reads, in milliseconds.
const THINK_MS: u64 = 100;

/// A page, and who had it.
pub(super) struct Seen {
    /// None for a read of the newest.
    life: Option<u64>,
    page: Page,
}

/// Reads pages at one member for a while, then at the next, and now and then the newest page.
pub(super) async fn read(
    net: SimNet,
    store: SimClient,
    end: Instant,
    mut random: Rng,
) -> Vec<Seen> {
    let (mut seen, mut member) = (Vec::new(), Place::Member(0).address());
    while Instant::now() < end {
        sleep(Duration::from_millis(random.u64(..THINK_MS))).await;
        let late = Instant::now() + PATIENCE;
        match random.u8(..16) {
            0..2 => {
                if let Ok(page) = store.scan(Scan::new(PREFIX)).await {
                    seen.push(Seen { life: None, page });
                }
                continue;
            }
            2..4 => member = net.next_member(&member),
            _ => {}
        }
        let ask = |running: Running| async move {
            let request = Request::Scan { scan: Scan::new(PREFIX), stale: true };
            (running.life, running.front.answer(Ok(request)).await)
        };
        if let Some((life, Ok(answer))) = net.ask(store.place(), &member, late, ask).await
            && let Ok(page) = answer.page()
        {
            seen.push(Seen { life: Some(life), page });
        }
    }
    seen
}

/// Checks that each page was once the newest, that none was newer than the newest that was read
/// after it, and that no member went back. Returns how many were stale.
pub(super) fn check(seen: &[Seen], model: &Model) -> Result<usize, String> {
    let (mut lives, mut newest, mut stale) = (BTreeMap::new(), Version::new(0), 0);
    for Seen { life, page } in seen {
        let revision = page.revision;
        let before =
            life.map_or(newest, |life| lives.insert(life, revision).unwrap_or(Version::new(0)));
        if revision < before {
            return Err(format!("a page at {revision} was read after one at {before}"));
        }
        if revision < newest {
            stale += 1;
        }
        newest = newest.max(revision);
        if page.entries != model.entries(PREFIX, revision) || revision > model.revision()? {
            return Err(format!("there never was {page:?}"));
        }
    }
    Ok(stale)
}
