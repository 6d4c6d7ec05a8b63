//! What servers of a cluster answer to those who follow a map, and to each other.

use arrow::array::RecordBatch;
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use flightcache::{ErrorKind, ScanRequest};
use flightcache_proto::accept::ACCEPT_HEADER;
use flightcache_proto::route::{EPOCH_HEADER, PEER_HEADER};
use flightcache_proto::{ObjectShare, Part, Share, Slot};
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;
use tonic::transport::Endpoint;

use crate::cluster::client;
use crate::peers::{RESIDENCIES, ROWS, Three, URL, whole};
use crate::support::values;

/// What a `DoGet` with headers is answered, as another server or a client with a map sends it.
async fn get_as(server: &Server, ticket: Vec<u8>, headers: &[(&'static str, String)]) -> Result<Vec<RecordBatch>, ErrorKind> {
    let channel = Endpoint::from_shared(format!("http://{}", server.flight_addr())).unwrap().connect_lazy();
    let mut request = tonic::Request::new(Ticket { ticket: ticket.into() });
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    let kind = |status: &tonic::Status| {
        let stated = status.metadata().get(flightcache_proto::error::ERROR_KIND_METADATA).unwrap().to_str().unwrap().to_owned();
        ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == stated).unwrap()
    };
    let frames = FlightServiceClient::new(channel).do_get(request).await.map_err(|status| kind(&status))?.into_inner();
    let frames: Vec<_> = frames.try_collect().await.map_err(|status| kind(&status))?;
    let frames = futures::stream::iter(frames.into_iter().map(Ok));
    Ok(FlightRecordBatchStream::new_from_flight_data(frames).try_collect().await.unwrap())
}

/// The share of one row group.
fn share(version: &str, row_groups: &[u32]) -> Share {
    let object = ObjectShare { url: URL.to_owned(), version: Some(version.to_owned()), row_groups: Some(row_groups.to_vec()) };
    Share {
        scan: ScanRequest { columns: Some(vec!["c0".to_owned()]), ..ScanRequest::new(URL) },
        objects: vec![object],
        epoch: 0,
        schema: None,
        schema_hash: 0,
        asked_at_us: 0,
    }
}

fn encoded(share: Share) -> Vec<u8> {
    flightcache_proto::Ticket::Share(share).encode()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_by_an_old_map_is_sent_on() {
    let three = Three::start("moved", |settings| settings).await;
    let version = client(&three.servers[0]).await.info(URL).await.unwrap()[0].version.clone().unwrap();
    let map = three.servers[0].engine().slot_map();
    for row_group in 0..20_u32 {
        let slot = Slot::of(URL, Part::RowGroup(row_group));
        let rows = i64::from(row_group) * 10_000..i64::from(row_group + 1) * 10_000;
        let ticket = || encoded(share(&version, &[row_group]));
        for server in &three.servers {
            let is_owner = map.owner(slot).id == server.cluster().node_id();
            let epoch = |epoch: u64| [(EPOCH_HEADER, epoch.to_string())];
            // By this very map, by a newer one, or by none, whoever is asked answers.
            for headers in [&epoch(map.epoch())[..], &epoch(map.epoch() + 1), &[]] {
                let answer = get_as(server, ticket(), headers).await.unwrap();
                assert!(values(&answer).into_iter().eq(rows.clone()));
            }
            let older = get_as(server, ticket(), &epoch(map.epoch() - 1)).await;
            assert_eq!(older.as_ref().err(), (!is_owner).then_some(&ErrorKind::Moved), "row group {row_group}");
        }
    }
    // Whole scans belong to nobody.
    let scan = flightcache_proto::Ticket::Scan(ScanRequest::new(URL)).encode();
    assert!(get_as(&three.servers[0], scan, &[(EPOCH_HEADER, "1".to_owned())]).await.is_ok());
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_ask_each_other_for_one_row_group_of_its_owner() {
    let three = Three::start("asked", |settings| settings).await;
    let version = client(&three.servers[0]).await.info(URL).await.unwrap()[0].version.clone().unwrap();
    let map = three.servers[0].engine().slot_map();
    let slot = Slot::of(URL, Part::RowGroup(3));
    let (owners, others): (Vec<_>, Vec<_>) =
        three.servers.iter().partition(|server| map.owner(slot).id == server.cluster().node_id());
    let (owner, other) = (owners[0], others[0]);
    let as_peer = |ask: &str, accept: &str| [(PEER_HEADER, ask.to_owned()), (ACCEPT_HEADER, accept.to_owned())];
    let both = "parquet, dictionaries";
    let ask = async |server: &Server, share: Share, headers: &[_]| get_as(server, encoded(share), headers).await;
    let three_of = || share(&version, &[3]);

    assert_eq!(ask(owner, three_of(), &as_peer("resident", both)).await.err(), Some(ErrorKind::NotFound), "nothing is");
    assert_eq!(ask(other, three_of(), &as_peer("load", both)).await.err(), Some(ErrorKind::Moved));
    assert_eq!(ask(other, three_of(), &as_peer("warm", both)).await.err(), Some(ErrorKind::Moved));
    assert_eq!(three.sum(|stats| stats.resident_chunks), 0);
    assert!(ask(owner, three_of(), &as_peer("warm", "")).await.unwrap().is_empty());
    assert_eq!(owner.engine().stats().resident_chunks, 1);
    for kind in ["load", "resident"] {
        let rows = values(&ask(owner, three_of(), &as_peer(kind, both)).await.unwrap());
        assert!(rows.into_iter().eq(30_000..40_000), "{kind}");
        assert_eq!(ask(owner, three_of(), &as_peer(kind, "parquet")).await.err(), Some(ErrorKind::Unsupported), "{kind}");
    }

    let whole = ObjectShare { row_groups: None, ..three_of().objects[0].clone() };
    let scan = |scan: ScanRequest| Share { scan, ..three_of() };
    let c0 = three_of().scan;
    let asked = [
        share(&version, &[3, 4]),
        share(&version, &[]),
        Share { objects: vec![whole], ..three_of() },
        Share { objects: Vec::new(), ..three_of() },
        Share { objects: vec![three_of().objects[0].clone(); 2], ..three_of() },
        share(&version, &[20]),
        scan(ScanRequest::new(URL)),
        scan(ScanRequest { limit: Some(1), ..c0.clone() }),
        scan(ScanRequest { filter: Some("c0 > 3".to_owned()), ..c0.clone() }),
        scan(ScanRequest { rows: Some(vec![1]), ..c0 }),
    ];
    for asked in asked {
        let answer = ask(owner, asked.clone(), &as_peer("resident", both)).await;
        assert_eq!(answer.err(), Some(ErrorKind::InvalidRequest), "{asked:?}");
    }
    let scan = flightcache_proto::Ticket::Scan(ScanRequest::new(URL)).encode();
    assert_eq!(get_as(owner, scan, &as_peer("load", both)).await.err(), Some(ErrorKind::InvalidRequest));
    let mut unversioned = three_of();
    unversioned.objects[0].version = None;
    assert_eq!(ask(owner, unversioned, &as_peer("resident", both)).await.err(), Some(ErrorKind::InvalidRequest));
    let other_version = share("\"another\"", &[3]);
    assert_eq!(ask(owner, other_version, &as_peer("load", both)).await.err(), Some(ErrorKind::Changed));
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_as_resident_is_sent_whatever_is_evicted_meanwhile() {
    for residency in RESIDENCIES {
        let three = Three::start("pinned", |settings| Settings { residency, ..settings }).await;
        let server = &three.servers[0];
        assert!(whole(server).await.into_iter().eq(0..ROWS));
        let version = client(server).await.info(URL).await.unwrap()[0].version.clone().unwrap();
        three.store.take_reads();
        let channel = Endpoint::from_shared(format!("http://{}", server.flight_addr())).unwrap().connect_lazy();
        let mut request = tonic::Request::new(Ticket { ticket: encoded(share(&version, &[3])).into() });
        request.metadata_mut().insert(PEER_HEADER, "resident".parse().unwrap());
        request.metadata_mut().insert(ACCEPT_HEADER, "parquet, dictionaries".parse().unwrap());
        let mut frames = FlightServiceClient::new(channel).do_get(request).await.unwrap().into_inner();
        frames.message().await.unwrap().unwrap();
        client(server).await.evict(URL).await.unwrap();
        assert_eq!(three.sum(|stats| stats.resident_chunks), 0);
        let mut bytes = 0;
        while let Some(frame) = frames.message().await.unwrap() {
            bytes += frame.data_body.len();
        }
        assert!(bytes >= 10_000 * 8, "{residency:?}: {bytes} bytes");
        assert_eq!(three.store.take_reads(), [], "{residency:?}");
        three.stop().await;
    }
}
