//! Many requests over one stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray as _, LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Int64Type};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::utils::flight_data_to_arrow_batch;
use arrow_flight::{FlightData, FlightDescriptor};
use bytes::Bytes;
use bytesize::ByteSize;
use flightcache::{ErrorKind, Exchange, ScanRequest};
use flightcache_proto::exchange::{Answers, Form, Requests};
use flightcache_server::Settings;
use flightcache_server::object::Freshness;
use futures::future::{join_all, try_join_all};
use futures::{FutureExt as _, StreamExt as _};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use tokio::sync::mpsc;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};

use crate::store::{Fate, TestStore};
use crate::support::{Cache, file, settings, until, values};

const URL: &str = "s3://lake/t.parquet";

fn template(exchange: &Exchange, url: &str, columns: &[&str]) -> flightcache::RowTemplate {
    let columns = Some(columns.iter().map(|&column| column.to_owned()).collect());
    exchange.template(ScanRequest { columns, ..ScanRequest::new(url) }).unwrap()
}

fn column(batch: &RecordBatch) -> Vec<i64> {
    values(std::slice::from_ref(batch))
}

/// A stream as a client writes it by hand.
struct Raw {
    requests: mpsc::Sender<FlightData>,
    answers: Streaming<FlightData>,
    form: Form,
}

impl Raw {
    async fn open(cache: &Cache, form: Form) -> Self {
        Self::begin(cache, form, FlightData::new().with_descriptor(FlightDescriptor::new_cmd(form.command()))).await
    }

    async fn begin(cache: &Cache, form: Form, first: FlightData) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", cache.server.flight_addr())).unwrap();
        let (requests, mut receiver) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let requested = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let answers = FlightServiceClient::new(endpoint.connect_lazy()).do_exchange(requested).await.unwrap().into_inner();
        Self { requests, answers, form }
    }

    async fn ask(&self, json: &str) {
        let metadata = Requests::parse(Form::Json, json.as_bytes()).unwrap().encode(self.form);
        self.requests.send(FlightData::new().with_app_metadata(metadata)).await.unwrap();
    }

    async fn next(&mut self) -> (FlightData, Answers) {
        let data = self.answers.message().await.unwrap().unwrap();
        let answers = Answers::parse(self.form, &data.app_metadata).unwrap();
        (data, answers)
    }

    async fn end(mut self) -> tonic::Status {
        drop(self.requests);
        loop {
            match self.answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_share_a_stream() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 100_000, 10_000, 3)).await;
    cache.store.put("u.parquet", file(7, 1_000, 100, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let (t, u) = (template(&exchange, URL, &["c0", "c2"]), template(&exchange, "s3://lake/u.parquet", &["c0"]));
    let reads = (0..2_000_u64).map(|i| {
        let (exchange, template) = (exchange.clone(), if i % 3 == 0 { u.clone() } else { t.clone() });
        tokio::spawn(async move {
            let rows: Vec<u64> =
                (0..i % 5).map(|k| (i * 7_919 + k * 31_337) % if i % 3 == 0 { 1_000 } else { 100_000 }).collect();
            let batch = exchange.rows(&template, rows.clone()).await.unwrap();
            let first = if i % 3 == 0 { 7 } else { 0 };
            assert_eq!(column(&batch), rows.iter().map(|&row| row as i64 + first).collect::<Vec<_>>());
            assert_eq!(batch.num_columns(), if i % 3 == 0 { 1 } else { 2 });
        })
    });
    let scans = (0..40).map(|i| {
        let exchange = exchange.clone();
        tokio::spawn(async move {
            let filter = Some(format!("c0 % 40 = {i}"));
            let answer = exchange.scan(ScanRequest { filter, ..ScanRequest::new(URL) }).await.unwrap();
            assert_eq!(answer.schema.fields().len(), 3);
            assert!(values(&answer.batches).into_iter().eq((0..2_500).map(|row| row * 40 + i)));
        })
    });
    for done in join_all(reads.chain(scans).collect::<Vec<_>>()).await {
        done.unwrap();
    }
    let whole = exchange.scan(ScanRequest::new(URL)).await.unwrap();
    assert!(values(&whole.batches).into_iter().eq(0..100_000));
    // What one call reads of a row group is looked up once.
    let before = cache.server.engine().stats();
    let all = try_join_all((0..64).map(|row| exchange.rows(&t, vec![row]))).await.unwrap();
    assert!(all.iter().flat_map(column).eq(0..64));
    let hits = cache.server.engine().stats().chunks_hit - before.chunks_hit;
    assert!(hits < 64, "{hits} look-ups for 64 reads of two columns");
    drop(exchange);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_as_a_scan_of_the_rows() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 50_000, 10_000, 4)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let large: Vec<u64> = (0..9_000).map(|i| i * 7_919 % 50_000).collect();
    for rows in [vec![], vec![49_999, 3, 3, 20_000], vec![5], large] {
        for columns in [&["c3", "c0", "c3"][..], &[], &["c1"]] {
            let template = template(&exchange, URL, columns);
            let batch = exchange.rows(&template, rows.clone()).await.unwrap();
            let scan = cache.client.scan(URL).columns(columns.iter().copied()).rows(rows.clone()).send().await.unwrap();
            let schema = scan.schema();
            let expected = arrow::compute::concat_batches(&schema, &scan.collect().await.unwrap()).unwrap();
            assert_eq!(batch, expected, "{columns:?}");
            assert_eq!(batch.num_rows(), rows.len());
        }
    }
    // Filters and limits are kept, row by row.
    let narrow = ScanRequest { filter: Some("c0 > 10".into()), limit: Some(2), ..ScanRequest::new(URL) };
    let narrow = exchange.template(narrow).unwrap();
    let batch = exchange.rows(&narrow, vec![5, 11, 12, 13]).await.unwrap();
    assert_eq!(column(&batch), [11, 12]);
    drop((exchange, narrow));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_its_requests_own() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let kind = |url: &'static str, column: &'static str, row: u64| {
        let (exchange, template) = (exchange.clone(), template(&exchange, url, &[column]));
        async move { exchange.rows(&template, vec![row]).await.map(|batch| column_of(&batch)).map_err(|e| (e.kind, e.message)) }
    };
    let (good, beyond, missing, unknown, denied) = tokio::join!(
        kind(URL, "c0", 999),
        kind(URL, "c0", 1_000),
        kind(URL, "nothing", 0),
        kind("s3://lake/missing.parquet", "c0", 0),
        kind("s3://other/t.parquet", "c0", 0)
    );
    assert_eq!(good.unwrap(), 999);
    let (kind, message) = beyond.unwrap_err();
    assert!(kind == ErrorKind::InvalidRequest && message.contains("no row 1000") && message.contains(URL), "{message}");
    assert_eq!(missing.unwrap_err().0, ErrorKind::NotFound);
    let (kind, message) = unknown.unwrap_err();
    assert!(kind == ErrorKind::NotFound && message.contains("missing.parquet"), "{message}");
    assert_eq!(denied.unwrap_err().0, ErrorKind::Denied);
    let error = exchange.scan(ScanRequest { filter: Some("c0 +".into()), ..ScanRequest::new(URL) }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    drop(exchange);
    cache.stop().await;
}

fn column_of(batch: &RecordBatch) -> i64 {
    batch.column(0).as_primitive::<Int64Type>().value(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_resident_does_not_wait_for_what_is_not() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    cache.store.put("cold.parquet", file(0, 1_000, 1_000, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let (warm, cold) = (template(&exchange, URL, &["c0"]), template(&exchange, "s3://lake/cold.parquet", &["c0"]));
    exchange.rows(&warm, vec![1]).await.unwrap();
    let permits = cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut waiting = Box::pin(exchange.rows(&cold, vec![2]));
    let mut scanning = Box::pin(exchange.scan(ScanRequest::new("s3://lake/cold.parquet")));
    assert!((&mut waiting).now_or_never().is_none() && (&mut scanning).now_or_never().is_none());
    for row in 0..10 {
        assert_eq!(column(&exchange.rows(&warm, vec![row]).await.unwrap()), [row as i64]);
    }
    assert!((&mut waiting).now_or_never().is_none() && (&mut scanning).now_or_never().is_none());
    cache.store.gate.add_permits(permits);
    assert_eq!(column(&waiting.await.unwrap()), [2]);
    assert_eq!(values(&scanning.await.unwrap().batches).len(), 1_000);
    drop(exchange);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_gives_a_stream_of_json_its_schema() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    cache.store.put("cold.parquet", file(0, 1_000, 1_000, 2)).await;
    assert_eq!(cache.values(URL, "c1").await.unwrap().len(), 1_000);
    let first = [
        r#""open": [{"template": 1, "scan": {"url": "s3://lake/cold.parquet", "columns": ["c0"]}}],
           "rows": [{"template": 1, "tags": [1], "rows": [4]}]"#,
        r#""scans": [{"tag": 1, "scan": {"url": "s3://lake/cold.parquet", "columns": ["c0"], "limit": 1}}]"#,
        // These rows have to be read as a scan.
        r#""open": [{"template": 1, "scan": {"url": "s3://lake/cold.parquet", "columns": ["c0"], "filter": "c0 >= 0"}},
                    {"template": 2, "scan": {"url": "s3://lake/t.parquet", "columns": ["c1"]}}],
           "rows": [{"template": 1, "tags": [1], "rows": [4]}, {"template": 2, "tags": [3], "rows": [4]}]"#,
    ];
    // It is read last: what is asked for beside it and after it is resident.
    for (first, is_cancelled, others) in [(first[0], false, 1), (first[1], false, 1), (first[1], true, 0), (first[2], false, 2)] {
        cache.client.evict("s3://lake/cold.parquet").await.unwrap();
        let permits = cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
        let mut raw = Raw::open(&cache, Form::Json).await;
        raw.ask(&format!("{{{first}}}")).await;
        raw.ask(r#"{"scans": [{"tag": 2, "scan": {"url": "s3://lake/t.parquet", "columns": ["c1"], "limit": 1}}]}"#).await;
        if is_cancelled {
            raw.ask(r#"{"cancel": [1]}"#).await;
            assert_eq!(raw.next().await.1.errors[0].tag, 1);
        }
        cache.store.gate.add_permits(permits);
        let (mut failed, mut done) = (Vec::new(), Vec::new());
        while failed.len() + done.len() < 1 + others {
            let (_, answers) = raw.next().await;
            failed.extend(answers.errors.into_iter().map(|failure| failure.tag));
            done.extend(if answers.more { Vec::new() } else { answers.tags });
        }
        failed.sort_unstable();
        assert_eq!(done, [if is_cancelled { 2 } else { 1 }]);
        assert_eq!(failed, [2, 3][..others]);
        assert_eq!(raw.end().await.code(), Code::Ok);
    }
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_that_is_dropped_gives_its_scan_up() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let permits = cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let active = || cache.server.engine().metrics().active_scans.get();
    let scans: Vec<_> = (0..20).map(|_| Box::pin(exchange.scan(ScanRequest::new(URL)))).collect();
    let mut scans = join_all(scans);
    assert!((&mut scans).now_or_never().is_none());
    until("scans are under way", || active() == 16).await;
    drop(scans);
    until("scans are given up", || active() == 0).await;
    cache.store.gate.add_permits(permits);
    assert_eq!(exchange.scan(ScanRequest::new(URL)).await.unwrap().batches.len(), 1);
    cache.settled().await;
    // So does a client that vanishes.
    cache.client.evict(URL).await.unwrap();
    let permits = cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let raw = Raw::open(&cache, Form::Protobuf).await;
    raw.ask(r#"{"scans": [{"tag": 1, "scan": {"url": "s3://lake/t.parquet"}}]}"#).await;
    until("the scan is under way", || active() == 1).await;
    drop(raw);
    until("the scan is given up", || active() == 0).await;
    cache.store.gate.add_permits(permits);
    drop(exchange);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_stops_the_work() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 20_000, 20_000, 8)).await;
    let mut raw = Raw::open(&cache, Form::Protobuf).await;
    raw.ask(r#"{"open": [{"template": 1, "scan": {"url": "s3://lake/t.parquet"}}]}"#).await;
    let asked = 400_u64;
    let requests = raw.requests.clone();
    let form = raw.form;
    // 400 messages, of which each is answered by half a MiB.
    let asking = tokio::spawn(async move {
        for i in 0..asked {
            let (tags, rows): (Vec<u64>, Vec<u64>) = ((i * 64..(i + 1) * 64).collect(), (0..8_192).collect());
            let json = serde_json::json!({"rows": [{"template": 1, "tags": tags, "counts": vec![128; 64], "rows": rows}]});
            let metadata = Requests::parse(Form::Json, json.to_string().as_bytes()).unwrap().encode(form);
            requests.send(FlightData::new().with_app_metadata(metadata)).await.unwrap();
        }
    });
    let served = || cache.server.engine().metrics().served_rows.get();
    until("answers are made", || served() > 0).await;
    let (mut before, mut same) = (0, 0);
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        same = if served() == before { same + 1 } else { 0 };
        before = served();
    }
    assert!(before < asked * 8_192 / 4, "{before} rows were made for a reader that takes none");
    assert!(!asking.is_finished(), "requests are taken though no answers are");
    assert!(cache.server.engine().stats().in_flight_bytes < 8 << 20);
    let mut answered = 0;
    let mut rows = 0;
    while answered < asked * 64 {
        let (_, answers) = raw.next().await;
        assert!(answers.errors.is_empty() && !answers.more);
        answered += answers.tags.len() as u64;
        rows += answers.counts.iter().map(|&count| u64::from(count)).sum::<u64>();
    }
    assert_eq!(rows, asked * 8_192);
    asking.await.unwrap();
    assert_eq!(raw.end().await.code(), Code::Ok);
    cache.settled().await;
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_object_is_seen_as_its_freshness_says() {
    for freshness in [Freshness::Always, Freshness::Immutable] {
        let cache = Cache::with(Settings { freshness, ..settings() }, TestStore::new()).await;
        cache.store.put("t.parquet", file(0, 1_000, 1_000, 1)).await;
        let exchange = cache.client.exchange().await.unwrap();
        let template = template(&exchange, URL, &["c0"]);
        assert_eq!(column(&exchange.rows(&template, vec![5]).await.unwrap()), [5]);
        cache.store.put("t.parquet", file(100, 2_000, 1_000, 2)).await;
        let now = column(&exchange.rows(&template, vec![5]).await.unwrap());
        assert_eq!(now, if freshness == Freshness::Always { [105] } else { [5] });
        if freshness == Freshness::Always {
            assert_eq!(column(&exchange.rows(&template, vec![1_999]).await.unwrap()), [2_099]);
        }
        drop((exchange, template));
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_overwritten_while_it_is_read_is_read_anew() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 400_000, 100_000, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let template = template(&exchange, URL, &["c0"]);
    exchange.rows(&template, vec![5]).await.unwrap();
    cache.store.script(|_, number| if number == 0 { Fate::Overwrite(file(100, 400_000, 100_000, 2)) } else { Fate::Serve });
    // One version: what was resident of the old one is not mixed with the new one.
    let rows = exchange.rows(&template, vec![5, 399_999]).await.unwrap();
    assert_eq!(column(&rows), [105, 400_099]);
    drop((exchange, template));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_ends_the_stream() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 1)).await;
    let first = |form: Form| FlightData::new().with_descriptor(FlightDescriptor::new_cmd(form.command()));
    for (form, bad) in [
        (Form::Json, &b"{"[..]),
        (Form::Json, b"\x0a"),
        (Form::Json, br#"{"rows": [{"template": 1, "tags": [1], "counts": [2], "rows": [1]}]}"#),
        (Form::Json, br#"{"scans": [{"tag": 1, "scan": {"url": "s3://lake/t.parquet"}}, {"tag": 1, "scan": {"url": "s3://lake/t.parquet"}}]}"#),
        (Form::Protobuf, b"\xff\xff"),
        (Form::Protobuf, b"{}"),
    ] {
        let raw = Raw::begin(&cache, form, first(form).with_app_metadata(bad.to_vec())).await;
        assert_eq!(raw.end().await.code(), Code::InvalidArgument, "{bad:?}");
    }
    let none = Raw::begin(&cache, Form::Json, FlightData::new().with_app_metadata("{}")).await;
    assert_eq!(none.end().await.code(), Code::InvalidArgument);
    let unknown = FlightData::new().with_descriptor(FlightDescriptor::new_cmd("another command"));
    let status = Raw::begin(&cache, Form::Json, unknown).await.end().await;
    assert!(status.code() == Code::InvalidArgument && status.message().contains("another command"), "{status}");
    let too_many: Vec<u64> = (0..5_000).collect();
    let json = serde_json::json!({"rows": [{"template": 1, "tags": too_many, "rows": too_many}]}).to_string();
    let raw = Raw::begin(&cache, Form::Json, first(Form::Json).with_app_metadata(json)).await;
    assert_eq!(raw.end().await.code(), Code::InvalidArgument);
    // The rest of the connection, and of the server, goes on.
    assert_eq!(cache.values(URL, "c0").await.unwrap().len(), 1_000);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_written_by_hand_are_answered() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    for form in [Form::Json, Form::Protobuf] {
        let mut raw = Raw::open(&cache, form).await;
        raw.ask(
            r#"{"open": [{"template": 1, "scan": {"url": "s3://lake/t.parquet", "columns": ["c0"]}}],
                "rows": [{"template": 1, "tags": [7, 8, 9], "counts": [2, 0, 1], "rows": [3, 4, 5]},
                         {"template": 2, "tags": [10], "rows": [1]}],
                "scans": [{"tag": 11, "scan": {"url": "s3://lake/t.parquet", "columns": ["c0"], "limit": 3}},
                          {"tag": 12, "scan": {"url": "s3://lake/t.parquet", "colums": ["c0"]}}],
                "close": [1]}"#,
        )
        .await;
        let mut answered: HashMap<u64, Vec<i64>> = HashMap::new();
        let mut failed = HashMap::new();
        let mut schemas = HashMap::new();
        let mut done = 0;
        let mut is_other_schema_asked = false;
        while done < 7 {
            // The first answer decides which schema a stream has that knows one.
            if done == 6 && !is_other_schema_asked {
                raw.ask(r#"{"scans": [{"tag": 13, "scan": {"url": "s3://lake/t.parquet", "columns": ["c1"]}}]}"#).await;
                is_other_schema_asked = true;
            }
            let (data, answers) = raw.next().await;
            if !data.data_header.is_empty() && answers.tags.is_empty() {
                schemas.insert(answers.schema, Arc::new(arrow::datatypes::Schema::try_from(&data).unwrap()));
                continue;
            }
            done += answers.errors.len() + if answers.more { 0 } else { answers.tags.len() };
            failed.extend(answers.errors.into_iter().map(|failure| (failure.tag, failure.kind)));
            let mut rows = Vec::new();
            if !data.data_header.is_empty() {
                let schema = Arc::clone(&schemas[&answers.schema]);
                rows = column(&flight_data_to_arrow_batch(&data, schema, &HashMap::new()).unwrap());
            }
            let mut rows = rows.into_iter();
            for (tag, count) in answers.tags.into_iter().zip(answers.counts) {
                answered.entry(tag).or_default().extend(rows.by_ref().take(count as usize));
            }
        }
        assert_eq!(
            (&*answered[&7], &*answered[&8], &*answered[&9], &*answered[&11]),
            (&[3, 4][..], &[][..], &[5][..], &[0, 1, 2][..])
        );
        assert_eq!((failed[&10], failed[&12]), (ErrorKind::InvalidRequest, ErrorKind::InvalidRequest));
        // Plain Flight clients know one schema a stream.
        assert_eq!(failed.contains_key(&13), form == Form::Json);
        assert_eq!(schemas.len(), if form == Form::Json { 1 } else { 2 });
        raw.ask(r#"{"rows": [{"template": 1, "tags": [14], "rows": [1]}]}"#).await;
        assert_eq!(raw.next().await.1.errors[0].tag, 14, "the template is closed");
        assert_eq!(raw.end().await.code(), Code::Ok);
    }
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_opened_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    let listen = Settings { listen_unix: Some(path.clone()), ..settings() };
    let cache = Cache::with(listen.clone(), TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 1)).await;
    let client = flightcache::Client::connect(&format!("grpc+unix://{}", path.display())).await.unwrap();
    let exchange = client.exchange().await.unwrap();
    let template = template(&exchange, URL, &["c0"]);
    assert_eq!(column(&exchange.rows(&template, vec![5]).await.unwrap()), [5]);
    let permits = cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    cache.client.evict(URL).await.unwrap();
    cache.store.take_reads();
    let waiting = tokio::spawn({
        let (exchange, template) = (exchange.clone(), template.clone());
        async move { exchange.rows(&template, vec![5]).await }
    });
    until("it waits for the store", || !cache.store.take_reads().is_empty()).await;
    // What is under way is answered before a server goes.
    let store = Arc::clone(&cache.store);
    let stopping = tokio::spawn(cache.stop());
    until("the server goes", || !path.exists()).await;
    store.gate.add_permits(permits);
    assert_eq!(column(&waiting.await.unwrap().unwrap()), [5]);
    stopping.await.unwrap();
    let error = exchange.rows(&template, vec![5]).await.unwrap_err();
    assert!(error.kind.is_retryable(), "{error}");
    let cache = Cache::with(listen, TestStore::new()).await;
    cache.store.put("t.parquet", file(100, 1_000, 1_000, 1)).await;
    assert_eq!(column(&exchange.rows(&template, vec![5]).await.unwrap()), [105]);
    drop((exchange, client));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_is_recorded_read_by_read() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.jsonl");
    let record = Some(trace.clone());
    let cache = Cache::with(Settings { record, ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let template = template(&exchange, URL, &["c0"]);
    let read = try_join_all((0..10).map(|row| exchange.rows(&template, vec![row]))).await.unwrap();
    assert!(read.iter().flat_map(column).eq(0..10));
    drop((exchange, template));
    cache.stop().await;
    let lines = std::fs::read_to_string(trace).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("t.parquet")).count(), 10, "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_come_and_go() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let reads = futures::stream::iter(0..6_000_u64).map(|i| {
        let template = template(&exchange, URL, &["c0"]);
        let exchange = &exchange;
        async move { column_of(&exchange.rows(&template, vec![i % 1_000]).await.unwrap()) == (i % 1_000) as i64 }
    });
    assert!(reads.buffer_unordered(64).all(std::future::ready).await);
    drop(exchange);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_many_columns_are_joined_as_far_as_is_good() {
    let cache = Cache::start().await;
    cache.store.put("wide.parquet", file(0, 5_000, 1_000, 60)).await;
    for form in [Form::Json, Form::Protobuf] {
        let mut raw = Raw::open(&cache, form).await;
        // More than is read together, which is not known before there is a plan.
        let (tags, rows): (Vec<u64>, Vec<u64>) = ((0..64).collect(), (0..64 * 60).map(|i| i * 7_919 % 5_000).collect());
        let open = serde_json::json!([{"template": 1, "scan": {"url": "s3://lake/wide.parquet"}}]);
        let reads = serde_json::json!([{"template": 1, "tags": tags, "counts": vec![60; 64], "rows": rows}]);
        raw.ask(&serde_json::json!({"open": open, "rows": reads}).to_string()).await;
        let (schema, _) = raw.next().await;
        let schema = Arc::new(arrow::datatypes::Schema::try_from(&schema).unwrap());
        let mut answered: HashMap<u64, Vec<i64>> = HashMap::new();
        let mut messages = 0;
        while answered.len() < 64 {
            let (data, answers) = raw.next().await;
            assert!(answers.errors.is_empty() && !answers.more);
            let batch = flight_data_to_arrow_batch(&data, Arc::clone(&schema), &HashMap::new()).unwrap();
            answered.extend(answers.tags.into_iter().zip(column(&batch).chunks(60).map(<[i64]>::to_vec)));
            messages += 1;
        }
        for (tag, rows) in rows.chunks(60).enumerate() {
            assert!(answered[&(tag as u64)].iter().map(|&row| row as u64).eq(rows.iter().copied()), "{tag}");
        }
        assert!((3..20).contains(&messages), "{messages}");
        assert_eq!(raw.end().await.code(), Code::Ok);
    }
    assert_eq!(cache.server.engine().stats().scans, 0, "no read had to be a scan");
    cache.stop().await;
}

/// A Parquet file of these columns without dictionaries, or with them.
fn parquet_of(columns: Vec<(&str, ArrayRef)>, group_rows: usize, dictionaries: bool) -> Bytes {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group_rows))
        .set_dictionary_enabled(dictionaries)
        .set_dictionary_page_size_limit(8 << 20)
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_value_that_is_asked_for_often_takes_no_more_than_there_is() {
    // Rows of 100 bytes on the average, of which one holds 1 MiB; and a value of 1 MiB that rests in a dictionary.
    let long = "x".repeat(1 << 20);
    let text = |row: usize| if row == 77 { long.clone() } else { format!("row {row}") };
    let texts = || (0..10_000).map(text);
    let folded = (0..10_000).map(|row| if row % 5_000 == 77 { long.as_str() } else { ["a", "b", "c"][row % 3] });
    let folded: ArrayRef = Arc::new(folded.map(Some).collect::<StringArray>());
    for (what, column, dictionaries) in [
        ("strings", Arc::new(StringArray::from_iter_values(texts())) as ArrayRef, false),
        ("large strings", Arc::new(LargeStringArray::from_iter_values(texts())), false),
        ("a list", list_of(&(Arc::new(StringArray::from_iter_values(texts())) as ArrayRef)), false),
        ("a dictionary", folded, true),
    ] {
        let memory = Settings { capacity: ByteSize::mib(8), reserve: Some(ByteSize::mib(24)), ..settings() };
        let cache = Cache::with(memory, TestStore::new()).await;
        cache.store.put("t.parquet", parquet_of(vec![("s", Arc::clone(&column))], 10_000, dictionaries)).await;
        let exchange = cache.client.exchange().await.unwrap();
        let template = template(&exchange, URL, &["s"]);
        exchange.rows(&template, vec![5]).await.unwrap();
        // Of one message, so that they are joined: 60 MiB, which the server may not hold.
        let reads = (0..60).map(|read| exchange.rows(&template, vec![if read % 10 == 9 { 5_000 } else { 77 }]));
        for (read, rows) in try_join_all(reads).await.expect(what).into_iter().enumerate() {
            let row = if read % 10 == 9 { 5_000 } else { 77 };
            assert_eq!(rows.column(0).as_ref(), column.slice(row, 1).as_ref(), "{what}");
        }
        drop(exchange);
        cache.stop().await;
    }
}

/// Each row as a list of one.
fn list_of(values: &ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    let lengths = OffsetBuffer::from_lengths(std::iter::repeat_n(1, values.len()));
    Arc::new(ListArray::new(field, lengths, Arc::clone(values), None))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_views_take_what_they_show() {
    // Ten row groups of 2 MB, of which memory holds a few.
    let views: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..20_000).map(|row| format!("{row:01000}"))));
    for (what, column) in [("views", Arc::clone(&views)), ("lists of views", list_of(&views))] {
        let memory = Settings { capacity: ByteSize::mib(4), reserve: Some(ByteSize::mib(12)), ..settings() };
        let cache = Cache::with(memory, TestStore::new()).await;
        cache.store.put("t.parquet", parquet_of(vec![("s", Arc::clone(&column))], 2_000, false)).await;
        let rows: Vec<u64> = (0..10).map(|group| group * 2_000 + 7).collect();
        let expected = arrow::compute::take(&column, &UInt64Array::from(rows.clone()), None).unwrap();
        let scan = cache.client.scan(URL).columns(["s"]).rows(rows.clone()).send().await.unwrap();
        assert_eq!(scan.collect().await.expect(what)[0].column(0), &expected, "{what}");
        let exchange = cache.client.exchange().await.unwrap();
        let template = template(&exchange, URL, &["s"]);
        // The first plan is made of one read.
        exchange.rows(&template, vec![0]).await.unwrap();
        assert_eq!(exchange.rows(&template, rows).await.expect(what).column(0), &expected, "{what}");
        assert_eq!(cache.server.engine().stats().scans, 1, "{what}: only the scan");
        drop(exchange);
        cache.stop().await;
    }
}

/// One task asks and drops, so that all of it is in one message.
#[tokio::test]
async fn no_message_is_more_than_the_server_takes() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 100_000, 100_000, 1)).await;
    let exchange = cache.client.exchange().await.unwrap();
    let template = template(&exchange, URL, &["c0"]);
    assert_eq!(column(&exchange.rows(&template, vec![5]).await.unwrap()), [5]);
    let bad_requests = || {
        let kind = ErrorKind::InvalidRequest.as_str();
        cache.server.engine().metrics().requests.with_label_values(&["do_exchange", kind]).get()
    };

    // 6 MB of row numbers: it is refused, and nobody else is.
    let far: Vec<u64> = (0..1_000_000).map(|row| (1 << 40) + row).collect();
    let long = ScanRequest { filter: Some(format!("c0 = {}", "1".repeat(5 << 20))), ..ScanRequest::new(URL) };
    let (refused, scan, read) =
        tokio::join!(exchange.rows(&template, far), exchange.scan(long.clone()), exchange.rows(&template, vec![6]));
    assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidRequest);
    assert_eq!(scan.unwrap_err().kind, ErrorKind::InvalidRequest);
    assert_eq!(column(&read.unwrap()), [6]);
    let long = exchange.template(long).unwrap();
    let (refused, read) = tokio::join!(exchange.rows(&long, vec![0]), exchange.rows(&template, vec![7]));
    assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidRequest);
    assert_eq!(column(&read.unwrap()), [7]);

    // 6 MB of them in requests that are small enough.
    let many: Vec<u64> = (0..80_000).map(|row| 20_000 + row).collect();
    let reads = try_join_all((0..25).map(|_| exchange.rows(&template, many.clone()))).await.unwrap();
    assert!(reads.iter().all(|read| column(read).into_iter().eq(20_000..100_000)));

    // More than 4,096 of them, and as many that are given up.
    exchange.set_max_batch(1 << 20);
    let reads = try_join_all((0..6_000).map(|row| exchange.rows(&template, vec![row]))).await.unwrap();
    assert!(reads.iter().flat_map(column).eq(0..6_000));
    let mut scans = join_all((0..6_000).map(|_| Box::pin(exchange.scan(ScanRequest::new(URL)))));
    assert!((&mut scans).now_or_never().is_none());
    drop(scans);
    assert_eq!(column(&exchange.rows(&template, vec![8]).await.unwrap()), [8]);

    // More templates than may be open.
    let templates: Vec<_> = (0..5_000).map(|_| exchange.template(template.scan().clone()).unwrap()).collect();
    let read = join_all(templates.iter().map(|template| exchange.rows(template, vec![9]))).await;
    let kinds = read.iter().map(|read| read.as_ref().map_or_else(|e| Some(e.kind), |_| None));
    assert!(kinds.clone().all(|kind| matches!(kind, None | Some(ErrorKind::ResourceExhausted))));
    assert_eq!(kinds.filter(Option::is_none).count(), 4_095, "one was open before");
    drop((templates, read));
    assert_eq!(column(&exchange.rows(&template, vec![10]).await.unwrap()), [10]);
    assert_eq!(bad_requests(), 0, "the server was never asked for what it refuses");
    drop((exchange, template, long));
    cache.stop().await;
}
