//! A Flight server that plays a script and counts what it is asked.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray as _, Int64Array, RecordBatch};
use arrow::datatypes::{Int64Type, Schema};
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, Result as ActionResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use flightcache::action::{Evicted, Stats};
use flightcache::{Client, ErrorKind, ScanRequest, ScanStats, SlotMap, action};
use flightcache_proto::error::ERROR_KIND_METADATA;
use flightcache_proto::route::{ANSWERS_HEADER, EPOCH_HEADER};
use flightcache_proto::slot_map::{Node, SlotRange};
use flightcache_proto::{Part, SLOT_COUNT, Slot};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Barrier, Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

/// The object of every test.
pub(crate) const URL: &str = "s3://lake/t.parquet";
/// A slot of the lower half, as is that of the footer of [`URL`].
pub(crate) const LOW: u16 = 0;
/// A slot of the upper half.
pub(crate) const HIGH: u16 = SLOT_COUNT - 1;

/// One thing a `DoGet` does.
#[derive(Clone)]
pub(crate) enum Step {
    /// As the first step: fails the call. Later: fails the stream.
    Fail(Status),
    Frame(FlightData),
    /// The same frame for as long as there is a reader.
    Endless(FlightData),
    /// Waits until all that are awaited are here.
    Meet(Arc<Barrier>),
    /// Waits for the test.
    Await(Arc<Notify>),
    Hang,
}

/// What a server was asked and did, so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: usize,
    pub(crate) maps: usize,
    pub(crate) plans: Vec<ScanRequest>,
    /// Tickets of the calls of `DoGet`, in the order of their arrival.
    pub(crate) gets: Vec<String>,
    /// The epoch that each of them named.
    pub(crate) epochs: Vec<Option<u64>>,
    pub(crate) exchanges: usize,
    /// Streams of `DoGet` that are open.
    pub(crate) open: usize,
    /// Streams that were dropped before their script's end.
    pub(crate) abandoned: usize,
    /// Streams whose script was played to its end.
    pub(crate) finished: usize,
    /// Frames given to the transport.
    pub(crate) frames: usize,
}

/// Answers in turn; the last is given again and again.
struct Script<T>(VecDeque<T>);

#[derive(Default)]
struct State {
    maps: Mutex<Script<Result<Option<Bytes>, Status>>>,
    plans: Mutex<Script<Result<FlightInfo, Status>>>,
    gets: Mutex<HashMap<String, Script<Vec<Step>>>>,
    counts: watch::Sender<Counts>,
    /// Other answers that it says it sends.
    answers_beside: Mutex<Option<u64>>,
    /// It answers nothing any more, as one that is stopped.
    stands_still: AtomicBool,
}

impl State {
    async fn answers(&self) {
        if self.stands_still.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

/// A scripted server on a port of its own.
pub(crate) struct Fake {
    address: SocketAddr,
    state: Arc<State>,
    _server: AbortOnDropHandle<()>,
}

/// Counts a stream of `DoGet` in and out.
struct Open {
    state: Arc<State>,
    is_finished: bool,
}

impl<T> Default for Script<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Clone> Script<T> {
    fn next(&mut self, what: &str) -> Result<T, Status> {
        let answer = if self.0.len() > 1 { self.0.pop_front() } else { self.0.front().cloned() };
        answer.ok_or_else(|| Status::unimplemented(format!("the test expects no {what}")))
    }
}

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.counts.send_modify(|counts| counts.open += 1);
        Self { state: Arc::clone(state), is_finished: false }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.state.counts.send_modify(|counts| {
            counts.open -= 1;
            if self.is_finished {
                counts.finished += 1;
            } else {
                counts.abandoned += 1;
            }
        });
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let counted = Arc::clone(&state);
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .inspect_ok(move |_| counted.counts.send_modify(|counts| counts.connections += 1));
        let service = FlightServiceServer::new(Service(Arc::clone(&state)));
        let serve = tonic::transport::Server::builder().serve_with_incoming(service, incoming);
        let server = AbortOnDropHandle::new(tokio::spawn(async move { serve.await.unwrap() }));
        Self { address, state, _server: server }
    }

    /// A server that owns every slot as of epoch 1, and a client of it.
    pub(crate) async fn alone() -> (Self, Client) {
        let fake = Self::start().await;
        fake.answer_map(&whole(1, &fake));
        let client = fake.connect().await;
        (fake, client)
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(&self.uri()).await.unwrap()
    }

    pub(crate) fn uri(&self) -> String {
        format!("grpc://{}", self.address)
    }

    pub(crate) fn answer_map(&self, map: &SlotMap) {
        self.answer_map_with(Ok(Some(serde_json::to_vec(map).unwrap().into())));
    }

    pub(crate) fn answer_map_with(&self, answer: Result<Option<Bytes>, Status>) {
        self.state.maps.lock().unwrap().0.push_back(answer);
    }

    pub(crate) fn answer_plan(&self, answer: Result<FlightInfo, Status>) {
        self.state.plans.lock().unwrap().0.push_back(answer);
    }

    pub(crate) fn answer_get(&self, ticket: &str, steps: Vec<Step>) {
        self.state.gets.lock().unwrap().entry(ticket.to_owned()).or_default().0.push_back(steps);
    }

    pub(crate) fn tell_answers_beside(&self, answers: u64) {
        *self.state.answers_beside.lock().unwrap() = Some(answers);
    }

    pub(crate) fn stand_still(&self) {
        self.state.stands_still.store(true, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.counts.borrow().clone()
    }

    /// Waits until the counts are as they should be; fails when they are not within a minute.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Counts) -> bool) {
        let mut counts = self.state.counts.subscribe();
        let reached = tokio::time::timeout(Duration::from_mins(1), counts.wait_for(|counts| condition(counts))).await.is_ok();
        assert!(reached, "{what}: not within a minute: {:?}", self.counts());
    }
}

/// A map in which one server owns all.
pub(crate) fn whole(epoch: u64, fake: &Fake) -> SlotMap {
    SlotMap::single(epoch, Node { id: "a".into(), uri: Some(fake.uri()), ..Node::default() })
}

/// A map of two owners, by their locations: of the lower half of the slots, where the footer is, and of the upper half.
pub(crate) fn halves(epoch: u64, low: Option<String>, high: Option<String>) -> SlotMap {
    owned(epoch, [low, high], vec![1])
}

/// The same, but that both own the upper half; rather the second.
pub(crate) fn shared(epoch: u64, low: Option<String>, high: Option<String>) -> SlotMap {
    owned(epoch, [low, high], vec![1, 0])
}

fn owned(epoch: u64, [low, high]: [Option<String>; 2], owners: Vec<u32>) -> SlotMap {
    let node = |id: &str, uri| Node { id: id.to_owned(), uri, ..Node::default() };
    let middle = SLOT_COUNT / 2;
    assert!(Slot::of(URL, Part::Footer).get() < middle);
    let ranges =
        vec![SlotRange { start: 0, end: middle - 1, owners: vec![0] }, SlotRange { start: middle, end: SLOT_COUNT - 1, owners }];
    SlotMap::new(epoch, vec![node("low", low), node("high", high)], ranges).unwrap()
}

pub(crate) fn endpoint(ticket: &str, slot: u16, epoch: u64) -> FlightEndpoint {
    FlightEndpoint {
        ticket: Some(Ticket { ticket: ticket.to_owned().into() }),
        app_metadata: serde_json::json!({"slot": slot, "epoch": epoch}).to_string().into(),
        ..FlightEndpoint::default()
    }
}

/// The answer to `GetFlightInfo` for a table like [`numbers`].
pub(crate) fn plan(endpoints: impl IntoIterator<Item = FlightEndpoint>) -> FlightInfo {
    plan_of(numbers([]).schema_ref(), endpoints)
}

pub(crate) fn plan_of(schema: &Schema, endpoints: impl IntoIterator<Item = FlightEndpoint>) -> FlightInfo {
    let info = FlightInfo::new().try_with_schema(schema).unwrap().with_ordered(true);
    endpoints.into_iter().fold(info, FlightInfo::with_endpoint)
}

pub(crate) fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let values: Int64Array = values.into_iter().collect();
    RecordBatch::try_from_iter_with_nullable([("n", Arc::new(values) as _, false)]).unwrap()
}

pub(crate) fn values(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// The frames of a stream: its schema, then each batch with the figures given so far.
pub(crate) fn frames(schema: &Schema, batches: &[(RecordBatch, ScanStats)]) -> Vec<FlightData> {
    let plain = batches.iter().map(|(batch, _)| batch.clone()).collect();
    let mut frames = arrow_flight::utils::batches_to_flight_data(schema, plain).unwrap();
    for (frame, (_, stats)) in frames.iter_mut().skip(1).zip(batches) {
        frame.app_metadata = serde_json::to_vec(stats).unwrap().into();
    }
    frames
}

/// A stream of one batch of one number each.
pub(crate) fn rows(values: impl IntoIterator<Item = i64>) -> Vec<Step> {
    let batches: Vec<_> = values.into_iter().map(|value| (numbers([value]), ScanStats::default())).collect();
    frames(numbers([]).schema_ref(), &batches).into_iter().map(Step::Frame).collect()
}

/// The same, of objects of these versions.
pub(crate) fn versioned(versions: u64, values: impl IntoIterator<Item = i64>) -> Vec<Step> {
    let stats = ScanStats { versions, ..ScanStats::default() };
    let batches: Vec<_> = values.into_iter().map(|value| (numbers([value]), stats)).collect();
    frames(numbers([]).schema_ref(), &batches).into_iter().map(Step::Frame).collect()
}

/// Those steps, and then this one.
pub(crate) fn then(mut steps: Vec<Step>, last: Step) -> Vec<Step> {
    steps.push(last);
    steps
}

/// An error as the true server sends it.
pub(crate) fn failure(kind: ErrorKind, message: &str) -> Status {
    let mut status = Status::new(Code::from_i32(kind.grpc_code()), message);
    status.metadata_mut().insert(ERROR_KIND_METADATA, kind.as_str().parse().unwrap());
    status
}

/// The end of a connection, as it looks here: nobody states anything.
pub(crate) fn gone(message: &str) -> Status {
    Status::new(Code::Unavailable, message)
}

struct Service(Arc<State>);

type Answer<T> = Result<Response<T>, Status>;
type Frames<T> = BoxStream<'static, Result<T, Status>>;

fn unexpected<T>() -> Answer<T> {
    Err(Status::unimplemented("no test asks this"))
}

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Frames<HandshakeResponse>;
    type ListFlightsStream = Frames<FlightInfo>;
    type DoGetStream = Frames<FlightData>;
    type DoPutStream = Frames<PutResult>;
    type DoActionStream = Frames<ActionResult>;
    type ListActionsStream = Frames<ActionType>;
    type DoExchangeStream = Frames<FlightData>;

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        self.0.answers().await;
        // A statement is none.
        let request = ScanRequest::parse(&request.into_inner().cmd).unwrap_or_default();
        self.0.counts.send_modify(|counts| counts.plans.push(request));
        self.0.plans.lock().unwrap().next("plan")?.map(Response::new)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        self.0.answers().await;
        let epoch = request.metadata().get(EPOCH_HEADER).map(|epoch| epoch.to_str().unwrap().parse().unwrap());
        let ticket = String::from_utf8(request.into_inner().ticket.into()).unwrap();
        let steps = self.0.gets.lock().unwrap().entry(ticket.clone()).or_default().next(&format!("DoGet of {ticket:?}"));
        self.0.counts.send_modify(|counts| {
            counts.gets.push(ticket);
            counts.epochs.push(epoch);
        });
        let steps = steps?;
        if let Some(Step::Fail(status)) = steps.first() {
            return Err(status.clone());
        }
        let open = Open::new(&self.0);
        let frames = async_stream::stream! {
            // Moved in whole: its drop is what counts.
            let mut open = open;
            let counts = open.state.counts.clone();
            for step in steps {
                match step {
                    Step::Frame(frame) => {
                        counts.send_modify(|counts| counts.frames += 1);
                        yield Ok(frame);
                    }
                    Step::Endless(frame) => loop {
                        counts.send_modify(|counts| counts.frames += 1);
                        yield Ok(frame.clone());
                    },
                    Step::Fail(status) => {
                        open.is_finished = true;
                        yield Err(status);
                        return;
                    }
                    Step::Meet(barrier) => {
                        barrier.wait().await;
                    }
                    Step::Await(notify) => notify.notified().await,
                    Step::Hang => std::future::pending().await,
                }
            }
            open.is_finished = true;
        };
        let mut response = Response::new(frames.boxed());
        if let Some(beside) = *self.0.answers_beside.lock().unwrap() {
            response.metadata_mut().insert(ANSWERS_HEADER, beside.into());
        }
        Ok(response)
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        self.0.answers().await;
        let body = match &*request.get_ref().r#type {
            action::SLOT_MAP => {
                self.0.counts.send_modify(|counts| counts.maps += 1);
                self.0.maps.lock().unwrap().next("slot map")??
            }
            action::STATS => Some(serde_json::to_vec(&Stats::default()).unwrap().into()),
            action::EVICT => Some(serde_json::to_vec(&Evicted::default()).unwrap().into()),
            _ => return unexpected(),
        };
        Ok(Response::new(futures::stream::iter(body.map(|body| Ok(ActionResult { body }))).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        self.0.answers().await;
        Ok(Response::new(futures::stream::empty().boxed()))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        unexpected()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        unexpected()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        unexpected()
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        unexpected()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        unexpected()
    }

    /// Begins, and answers nothing.
    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        self.0.answers().await;
        self.0.counts.send_modify(|counts| counts.exchanges += 1);
        Ok(Response::new(futures::stream::pending().boxed()))
    }
}
