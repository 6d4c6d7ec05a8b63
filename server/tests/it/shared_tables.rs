//! Tables that are made and dropped at run time, which all servers of a cluster know.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use arrow_flight::error::FlightError;
use flightcache::ErrorKind;
use flightcache_server::Settings;

use crate::cluster::{converged, node, start};
use crate::peers::{ROWS, Three};
use crate::sql;
use crate::store::TestStore;
use crate::support::file;

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_made_and_dropped_on_one_node_are_so_on_all() {
    let mut three = Three::start("tables", |settings| settings).await;
    three.store.put("other.parquet", file(0, 10, 10, 4)).await;
    let clients = |three: &Three| three.servers.iter().map(sql::client).collect::<Vec<_>>();
    let count = async |client: &mut sql::Sql, name: &str| {
        let batches = sql::ask(client, &format!("SELECT count(*) FROM {name}")).await?;
        Ok::<_, FlightError>(batches[0].column(0).as_primitive::<Int64Type>().value(0))
    };
    let create = |name: &str, object: &str| {
        format!("CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION 's3://lake/{object}.parquet'")
    };
    let soon = async |client: &mut sql::Sql, name: &str, expected: Option<i64>| {
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        while count(client, name).await.ok() != expected {
            assert!(tokio::time::Instant::now() < deadline, "{name} is not told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut asked = clients(&three);
    // A change is known everywhere when it is answered, unless somebody takes seconds to be told.
    let mut prompt = 0;
    for at in 0..6 {
        let name = format!("n{at}");
        let began = tokio::time::Instant::now();
        sql::ask(&mut asked[at % 3], &create(&name, "other")).await.unwrap();
        let knows_all = three.servers.iter().all(|server| server.engine().slot_map().nodes().len() == 3);
        if knows_all && began.elapsed() < Duration::from_secs(2) {
            assert_eq!(count(&mut asked[(at + 1) % 3], &name).await.unwrap(), 10);
            prompt += 1;
        }
    }
    assert!(prompt > 0);
    sql::ask(&mut asked[0], &create("t", "t")).await.unwrap();
    sql::ask(&mut asked[1], &create("u", "other")).await.unwrap();
    for client in &mut asked {
        soon(client, "t", Some(ROWS)).await;
        soon(client, "u", Some(10)).await;
        let error = sql::ask(client, &create("t", "other")).await.unwrap_err();
        sql::assert_kind(&error, ErrorKind::InvalidRequest, "it is another table");
    }
    sql::ask(&mut asked[2], "DROP TABLE t").await.unwrap();
    for client in &mut asked {
        soon(client, "t", None).await;
        sql::assert_kind(&count(client, "t").await.unwrap_err(), ErrorKind::NotFound, "it is dropped");
    }
    sql::ask(&mut asked[0], &create("t", "other")).await.unwrap();
    soon(&mut asked[2], "t", Some(10)).await;
    sql::ask(&mut asked[1], "DROP TABLE u").await.unwrap();
    soon(&mut asked[2], "u", None).await;
    // Who made it may go, and who comes later is told.
    drop(asked);
    assert!(three.servers.remove(0).shutdown().await);
    three.join("tables", |settings| settings).await;
    let mut asked = clients(&three);
    for client in &mut asked {
        soon(client, "t", Some(10)).await;
        sql::assert_kind(&count(client, "u").await.unwrap_err(), ErrorKind::NotFound, "it stays dropped");
    }
    drop(asked);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_made_though_some_are_not_reached_and_they_hear_of_it() {
    let store = Arc::new(TestStore::new());
    store.put("t.parquet", file(0, 10, 10, 1)).await;
    let first = start(&node("tables-some", &[]), &store).await;
    // It is reached through a door, which nobody opens yet.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    let astray = Settings { advertise: Some(format!("grpc+tcp://{door}")), ..node("tables-some", &[&first]) };
    let second = start(&astray, &store).await;
    converged(&[&first, &second]).await;
    let create = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 's3://lake/t.parquet'";
    sql::ask(&mut sql::client(&first), create).await.unwrap();
    let mut other = sql::client(&second);
    let error = sql::ask(&mut other, "SELECT * FROM t").await.unwrap_err();
    sql::assert_kind(&error, ErrorKind::NotFound, "not told");
    let behind = second.flight_addr();
    let doorman = tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut inside = tokio::net::TcpStream::connect(behind).await.unwrap();
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    while sql::ask(&mut other, "SELECT * FROM t").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "it is not told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    doorman.abort();
    drop(other);
    for server in [second, first] {
        assert!(server.shutdown().await);
    }
}
