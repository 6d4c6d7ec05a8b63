//! The Unix socket.

use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use flightcache::{Client, ErrorKind};
use flightcache_server::admin::Metrics;
use flightcache_server::object::Sources;
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;

use crate::store::TestStore;
use crate::support::{Cache, file, settings, values};

const URL: &str = "s3://lake/t.parquet";

fn over(path: &std::path::Path) -> Settings {
    Settings { listen_unix: Some(path.to_owned()), ..settings() }
}

async fn refused(settings: &Settings) -> flightcache::Error {
    let metrics = Arc::new(Metrics::new().unwrap());
    match Server::start_with(settings, Sources::default(), metrics).await {
        Ok(_) => panic!("the socket was taken"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_go_over_the_socket_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    // What the slot map says leads nowhere: who follows it fails.
    let settings = Settings { advertise: Some("grpc://192.0.2.1:1".to_owned()), ..over(&path) };
    let store = TestStore::new();
    store.put("t.parquet", file(0, 40_000, 10_000, 2)).await;
    let store = Arc::new(store);
    let sources = Sources::default().with_store("s3://lake/", crate::store::shared(&store), settings.freshness).unwrap();
    let server = Server::start_with(&settings, sources, Arc::new(Metrics::new().unwrap())).await.unwrap();
    assert_eq!(server.unix_path(), Some(&*path));
    let location = format!("grpc+unix://{}", path.display());
    let connected = Client::connect(&location).await.unwrap();
    for client in [connected, Client::lazy(&location).unwrap()] {
        for _ in 0..2 {
            let scans = [client.scan(URL), client.scan(URL).in_one_request()];
            for scan in scans {
                let batches: Vec<_> = scan.columns(["c0"]).send().await.unwrap().try_collect().await.unwrap();
                assert!(values(&batches).into_iter().eq(0..40_000));
            }
        }
        assert_eq!(client.info(URL).await.unwrap()[0].rows, 40_000);
        assert_eq!(client.list("").await.unwrap().len(), 1);
    }
    assert!(server.shutdown().await);
    assert!(!path.exists(), "the socket's file goes with its server");
    let error = Client::connect(&location).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_under_way_outlives_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    let patient = Settings { drain: std::time::Duration::from_mins(1), ..over(&path) };
    let cache = Cache::with(patient, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 2_000_000, 100_000, 2)).await;
    let client = Client::connect(&format!("grpc+unix://{}", path.display())).await.unwrap();
    // In one request: shares that are to be asked for later would find the server gone.
    let mut scan = client.scan(URL).columns(["c0"]).in_one_request().send().await.unwrap();
    let first = scan.try_next().await.unwrap().unwrap();
    let stopping = tokio::spawn(cache.stop());
    crate::support::until("the socket is closed", || !path.exists()).await;
    let mut batches = vec![first];
    batches.extend(scan.collect().await.unwrap());
    assert!(values(&batches).into_iter().eq(0..2_000_000));
    drop(client);
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_keeps_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    let patient = Settings { drain: std::time::Duration::from_mins(2), ..over(&path) };
    let cache = Cache::with(patient, TestStore::new()).await;
    let mute_outside = tokio::net::TcpStream::connect(cache.server.flight_addr()).await.unwrap();
    let mute_here = tokio::net::UnixStream::connect(&path).await.unwrap();
    // They are taken in turn: by the time that this one is answered, so were those.
    for location in [format!("grpc://{}", cache.server.flight_addr()), format!("grpc+unix://{}", path.display())] {
        Client::connect(&location).await.unwrap().stats().await.unwrap();
    }
    let began = std::time::Instant::now();
    cache.stop().await;
    assert!(began.elapsed() < std::time::Duration::from_mins(1), "{:?}", began.elapsed());
    drop((mute_outside, mute_here));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_dead_servers_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    // Dropping a listener leaves its file.
    drop(UnixListener::bind(&path).unwrap());
    assert!(std::fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    let cache = Cache::with(over(&path), TestStore::new()).await;
    let location = format!("grpc+unix://{}", path.display());
    Client::connect(&location).await.unwrap().stats().await.unwrap();

    let error = refused(&over(&path)).await;
    assert!(error.message.contains("another server answers") && error.message.contains("cache.sock"), "{error}");
    Client::connect(&location).await.unwrap().stats().await.unwrap();
    cache.stop().await;

    std::fs::write(&path, "of somebody else").unwrap();
    let error = refused(&over(&path)).await;
    assert!(error.message.contains("no socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"of somebody else");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_taken_the_sockets_place_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    let cache = Cache::with(over(&path), TestStore::new()).await;
    // Keeps the inode from being used again.
    std::fs::rename(&path, directory.path().join("moved")).unwrap();
    std::fs::write(&path, "of somebody else").unwrap();
    cache.stop().await;
    assert_eq!(std::fs::read(&path).unwrap(), b"of somebody else");
}

#[tokio::test]
async fn locations_that_name_no_path_are_refused() {
    for bad in ["grpc+unix://", "grpc+unix://relative.sock", "unix:///a.sock", "grpc:///a.sock"] {
        assert_eq!(Client::lazy(bad).unwrap_err().kind, ErrorKind::InvalidRequest, "{bad}");
    }
}
