//! Several members.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt};
use inkfast_metastore::{LeaseId, MemberStatus};

use super::*;

/// Three members, each in a place of its own, with one authority.
async fn three() -> (Vec<Place>, Vec<MetastoreServer>) {
    let mut places = vec![Place::new()];
    let mut servers = vec![places[0].start().await];
    for _ in 0..2 {
        let place = Place { certs: places[0].certs.clone(), ..Place::new() };
        servers.push(place.join(&servers[0]).await);
        places.push(place);
    }
    (places, servers)
}

async fn stop_all(servers: Vec<MetastoreServer>) {
    for server in servers {
        server.stop().await;
    }
}

fn client(places: &[Place], servers: &[MetastoreServer]) -> RemoteMetastore {
    let addresses = servers.iter().map(|server| server.address().to_string()).collect();
    RemoteMetastore::new(&places[0].endpoint(), addresses, DEADLINE)
}

#[tokio::test]
async fn three_conform() {
    let (places, servers) = three().await;
    conformance::run(&client(&places, &servers)).await;
    stop_all(servers).await;
}

/// Neither by its `join` nor by a new address.
#[tokio::test]
async fn who_was_removed_does_not_come_back_by_itself() {
    let (places, mut servers) = three().await;
    let store = client(&places, &servers);
    let gone = servers.remove(2);
    let id = gone.id();
    gone.stop().await;
    store.remove_member(id).await.unwrap();
    let gone = places[2].join(&servers[0]).await;
    assert_eq!(gone.id(), id);
    let refused = store.move_member(id, &gone.address().to_string()).await.unwrap_err();
    assert!(refused.to_string().contains("was removed"), "{refused}");
    let members =
        store.status().await.into_iter().find_map(|(_, status)| Some(status.ok()?.members));
    assert!(members.unwrap().iter().all(|member| member.id != id));
    servers.push(gone);
    stop_all(servers).await;
}

#[tokio::test]
async fn who_advertises_the_address_of_another_does_not_join() {
    let place = Place::new();
    let server = place.start().await;
    let other = Place { certs: place.certs.clone(), ..Place::new() };
    let address = server.address().to_string();
    let join = vec![address.clone()];
    let config = Config { join, advertise: Some(address), ..other.config() };
    let refused = MetastoreServer::start(config).await.err().unwrap();
    assert!(refused.to_string().contains("--advertise"), "{refused}");

    let joined = timeout(DEADLINE, async {
        loop {
            let join = vec![server.address().to_string()];
            match MetastoreServer::start(Config { join, ..other.config() }).await {
                Ok(joined) => return joined,
                // The one before may still be ending.
                Err(ServerError::InUse { .. }) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let joined = joined.await.unwrap();
    let mut status = place.client(&server).status().await.into_iter().map(|(_, it)| it.unwrap());
    let members = status.next().unwrap().members;
    assert!(members.iter().any(|member| member.id == joined.id() && member.voter), "{members:?}");
    stop_all(vec![joined, server]).await;
}

/// As many leases and watches as there may be in one process, over a change of the leader.
#[tokio::test(flavor = "multi_thread")]
async fn leases_and_watches_survive_the_leader() {
    let many = if std::env::var_os("INKFAST_LONG").is_some() { 10_000 } else { 500 };
    let (places, mut servers) = three().await;
    let store = client(&places, &servers);
    let begun = store.scan(Scan::new("")).await.unwrap().revision;
    let numbers = || stream::iter(0..many);
    let ttl = Duration::from_secs(30);
    let leases = numbers().map(|_| store.grant_lease(ttl)).buffer_unordered(UNDER_WAY);
    let leases: Vec<_> = leases.map(Result::unwrap).collect().await;
    let prefixes: Vec<_> = (0..many).map(|number| format!("watched/{number}/")).collect();
    let watches = stream::iter(&prefixes).map(|prefix| store.watch(prefix, begun));
    let watches = watches.buffer_unordered(UNDER_WAY).map(Result::unwrap);
    let mut watches: Vec<_> = watches.collect().await;

    let asked = Instant::now();
    let before = log_end(&store).await;
    keep_alive(&store, &leases).await;
    assert_eq!(log_end(&store).await, before, "a keep-alive costs no entry of the log");
    eprintln!("{many} keep-alives took {:?}", asked.elapsed());
    // The first member has founded the cluster, and leads.
    servers.remove(0).stop().await;
    let asked = Instant::now();
    keep_alive(&store, &leases).await;
    eprintln!("and over the change of the leader {:?}", asked.elapsed());

    for prefixes in prefixes.chunks(500) {
        let put = |all: Transaction, prefix| all.put(format!("{prefix}key"), "value");
        store.commit(prefixes.iter().fold(Transaction::new(), put)).await.unwrap();
    }
    let next = stream::iter(&mut watches).map(|watch| timeout(DEADLINE, watch.next()));
    let told: Vec<_> =
        next.buffer_unordered(many).map(|told| told.unwrap().unwrap()).collect().await;
    let told: BTreeSet<_> = told.into_iter().flatten().map(|change| change.key).collect();
    assert_eq!(told.len(), many, "each watch is told of its own key");
    keep_alive(&store, &leases).await;
    stop_all(servers).await;
}

/// Where the leader's log ends.
async fn log_end(store: &RemoteMetastore) -> Option<u64> {
    let leads = |status: &MemberStatus| status.leader == Some(status.id);
    let statuses = store.status().await.into_iter().map(|(_, status)| status.unwrap());
    statuses.filter(leads).map(|status| status.log).next().unwrap()
}

/// How many requests are under way at a time.
const UNDER_WAY: usize = 256;

async fn keep_alive(store: &RemoteMetastore, leases: &[LeaseId]) {
    let kept = stream::iter(leases).map(|lease| store.keep_alive(*lease));
    let kept: Vec<_> = kept.buffer_unordered(UNDER_WAY).collect().await;
    assert!(kept.iter().all(Result::is_ok), "{:?}", kept.iter().find(|kept| kept.is_err()));
}
