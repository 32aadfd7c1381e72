//! A client that watches all keys, at whoever leads.

use std::time::Duration;

use inkfast_metastore::{Change, Error, Metastore, Scan, Version};
use tokio::time::{Instant, sleep};

use super::client::SimClient;
use super::model::Model;
use super::net::{Place, Running, SimNet};
use super::record::Record;

/// How long a member may have nothing to tell: there is always something.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(30);

/// What was told without a gap.
pub(super) struct Part {
    after: Version,
    seen: Version,
    changes: Vec<Change>,
}

/// Watches at one member after the other, each from where the one before has ended. Where that is
/// not remembered any more a new part begins.
pub(super) async fn follow(
    net: SimNet,
    record: Record,
    store: SimClient,
    end: Instant,
) -> Vec<Part> {
    let (mut parts, mut member) = (Vec::new(), Place::Member(0).address());
    while Instant::now() < end {
        let Ok(page) = store.scan(Scan::new("key")).await else { continue };
        let mut part = Part { after: page.revision, seen: page.revision, changes: Vec::new() };
        while Instant::now() < end {
            let told = part.changes.len();
            match tell(&net, &store, &member, &mut part, end).await {
                Some(Error::Compacted) => break,
                Some(Error::NotLeader { leader: Some(leader) }) => member = leader,
                None | Some(Error::NotLeader { .. } | Error::Unavailable { .. }) => {
                    member = net.next_member(&member);
                }
                Some(error) => record.violation(format!("a watch has ended: {error}")),
            }
            if told > 0 && part.changes.len() > told {
                record.count("watches resumed", 1);
            }
            sleep(PAUSE).await;
        }
        record.note(|| format!("{} was told {:?}", store.place(), part.changes));
        record.count("changes told", part.changes.len());
        parts.push(part);
    }
    parts
}

/// Lets a member tell as long as it does, and returns why it does not; none if it is silent.
async fn tell(
    net: &SimNet,
    store: &SimClient,
    member: &str,
    part: &mut Part,
    end: Instant,
) -> Option<Error> {
    let (place, after) = (store.place(), part.seen);
    let late = || Instant::now() + PATIENCE;
    let begin = move |running: Running| async move {
        let watcher = running.front.begin_watch("", after).await?;
        Ok((running.life, watcher))
    };
    let (life, mut watcher) = match net.ask(place, member, late(), begin).await? {
        Ok(begun) => begun,
        Err(error) => return Some(error),
    };
    while Instant::now() < end {
        let more = move |running: Running| async move {
            if running.life != life {
                return Err(Error::unavailable("it does not know the watch"));
            }
            let told = running.front.more(&mut watcher).await?;
            Ok((told, watcher))
        };
        match net.ask(place, member, late(), more).await? {
            Ok((told, same)) => {
                (part.seen, watcher) = (told.seen, same);
                part.changes.extend(told.changes);
            }
            Err(error) => return Some(error),
        }
    }
    None
}

/// Checks that everything was told once, in its order.
pub(super) fn check(parts: &[Part], model: &Model) -> Result<(), String> {
    for Part { after, seen, changes } in parts {
        let happened = model.changes(*after, *seen);
        if changes != happened {
            let same = changes.iter().zip(happened).take_while(|(told, is)| told == is).count();
            let (told, is) = (changes.get(same), happened.get(same));
            return Err(format!("a watch from {after} to {seen} was told {told:?}, not {is:?}"));
        }
    }
    Ok(())
}
