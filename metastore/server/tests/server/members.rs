//! Several members.

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
