//! Becoming a member of a cluster, and staying known to the others.

use std::time::Duration;

use inkfast_metastore::{Error as MetastoreError, Metastore, RemoteMetastore};
use inkfast_wire::Endpoint;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::consensus::Consensus;
use crate::directory::LOG;
use crate::service::Me;
use crate::storage::{Beginning, Storage};
use crate::{Config, Error, rows};

/// How long a new member looks for the members that it is to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to learn the state before it votes.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(600);
/// The pause between two attempts to tell the others a new address.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one of these attempts may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Decides what an empty directory becomes. A member that is to join learns first what it joins.
pub(crate) async fn beginning(config: &Config) -> Result<Beginning, Error> {
    let dir = config.dir.clone();
    let known = spawn_blocking(move || Storage::member_of(&dir)).await;
    if known.map_err(rows::state_error)??.is_some() || config.join.is_empty() {
        return Ok(Beginning::Found);
    }
    let endpoint = Endpoint::client(&config.net, &config.identity, Uuid::new_v4(), None)?;
    let members = RemoteMetastore::new(&endpoint, config.join.clone(), JOIN_TIMEOUT);
    let cluster = members.cluster().await.map_err(|error| Error::Join(error.to_string()))?;
    endpoint.close("its cluster is known").await;
    Ok(Beginning::Join { cluster })
}

/// Lets the cluster of the members at these addresses, if there are any, make this member a voter,
/// unless it ever was one. Returns when it is.
pub(crate) async fn join(
    me: &Me,
    endpoint: &Endpoint,
    storage: &Storage,
    members: Vec<String>,
) -> Result<(), Error> {
    if members.is_empty() || !storage.joins() {
        return Ok(());
    }
    let members = RemoteMetastore::new(endpoint, members, JOIN_TIMEOUT);
    let late = Instant::now() + CATCH_UP_TIMEOUT;
    loop {
        match members.join(me.member.id, &me.address).await {
            Ok(()) => break,
            Err(error @ MetastoreError::TimedOut { .. }) if Instant::now() < late => {
                tracing::info!(%error, "not a voter yet, and goes on joining");
            }
            Err(error) => return Err(Error::Join(error.to_string())),
        }
    }
    storage.log.note_joined().await.map_err(|error| Error::database(LOG, error))
}

/// Tells the others where this member is now, if they know another address. Tries until it has
/// succeeded, for without it they cannot reach it, or they say that it is no member any more.
pub(crate) async fn announce(me: Me, endpoint: Endpoint, consensus: Consensus) {
    loop {
        let standing = consensus.standing();
        let (own, others): (Vec<_>, Vec<_>) =
            standing.members.into_iter().partition(|member| member.id == me.member.id);
        if own.iter().all(|own| own.address == me.address) {
            return;
        }
        let told = if consensus.leading_term().is_some() {
            consensus.move_member(me.member.id, &me.address).await
        } else {
            let others = others.into_iter().map(|member| member.address).collect();
            let members = RemoteMetastore::new(&endpoint, others, ATTEMPT_TIMEOUT);
            members.move_member(me.member.id, &me.address).await
        };
        match told {
            Err(error @ MetastoreError::BadRequest { .. }) => {
                tracing::error!(%error, "the others refuse this member's new address");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the others do not know this member's new address yet");
            }
            Ok(()) => {}
        }
        sleep(PAUSE).await;
    }
}
