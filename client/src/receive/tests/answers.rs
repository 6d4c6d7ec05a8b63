//! Whole answers: statuses, ends, figures.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow_flight::Ticket;
use bytes::Bytes;
use flightcache_proto::error::ERROR_KIND_METADATA;
use flightcache_proto::scan::SCAN_STATS_TRAILER;
use flightcache_proto::{Error, ErrorKind, Result, ScanStats};
use futures::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;

use super::super::{Payload, do_get};
use super::{data, numbers, prefixed, wire};

pub(super) type Piece = Result<Frame<Bytes>, Status>;

/// Answers once, keeping the request.
pub(super) struct Canned {
    answer: Option<Response<Body>>,
    pub(super) asked: Arc<Mutex<Option<Request<Body>>>>,
}

impl tower::Service<Request<Body>> for Canned {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        *self.asked.lock().unwrap() = Some(request);
        ready(Ok(self.answer.take().unwrap()))
    }
}

pub(super) fn canned(
    status: StatusCode,
    headers: HeaderMap,
    pieces: impl IntoIterator<Item = Piece, IntoIter: Send + 'static>,
) -> Canned {
    canned_stream(status, headers, futures::stream::iter(pieces))
}

pub(super) fn canned_stream(
    status: StatusCode,
    headers: HeaderMap,
    pieces: impl Stream<Item = Piece> + Send + 'static,
) -> Canned {
    let mut answer = Response::new(Body::new(StreamBody::new(pieces)));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Canned { answer: Some(answer), asked: Arc::default() }
}

pub(super) fn headers<const N: usize>(headers: [(&'static str, &str); N]) -> HeaderMap {
    let header = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    headers.into_iter().map(header).collect()
}

pub(super) fn piece(bytes: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(bytes.into())
}

pub(super) fn trailers<const N: usize>(trailers: [(&'static str, &str); N]) -> Frame<Bytes> {
    Frame::trailers(headers(trailers))
}

async fn read(service: Canned) -> (Vec<RecordBatch>, Result<ScanStats>) {
    let mut batches = Vec::new();
    let mut figures = ScanStats::default();
    let mut answer = match do_get(service, Bytes::new()).await {
        Ok(answer) => answer,
        Err(error) => return (batches, Err(error)),
    };
    loop {
        match answer.next().await {
            Ok(Some(frame)) => {
                figures = frame.stats.unwrap_or(figures);
                if let Payload::Batch(batch) = frame.payload {
                    batches.push(batch);
                }
            }
            Ok(None) => return (batches, Ok(figures)),
            Err(error) => {
                assert_eq!(answer.next().await, Ok(None), "an error ends the answer");
                return (batches, Err(error));
            }
        }
    }
}

async fn outcome(pieces: Vec<Frame<Bytes>>) -> (Vec<RecordBatch>, Result<ScanStats>) {
    read(canned(StatusCode::OK, HeaderMap::new(), pieces.into_iter().map(Ok))).await
}

pub(super) const OK: (&str, &str) = ("grpc-status", "0");

fn good() -> Vec<u8> {
    wire(&data(&[numbers([1, 2])]))
}

#[tokio::test]
async fn the_request_is_one_message_of_grpc() {
    let service = canned(StatusCode::OK, headers([OK]), vec![]);
    let asked = Arc::clone(&service.asked);
    do_get(service, Bytes::from_static(b"ticket")).await.unwrap();
    let (head, body) = asked.lock().unwrap().take().unwrap().into_parts();
    assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/arrow.flight.protocol.FlightService/DoGet"));
    let expected = [("te", "trailers"), ("content-type", "application/grpc"), ("flightcache-accept", "dictionaries")];
    assert_eq!(head.headers, headers(expected));
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(&*body, prefixed(&Ticket { ticket: Bytes::from_static(b"ticket") }.encode_to_vec()));
}

#[tokio::test]
async fn the_figures_are_the_last_that_were_told() {
    let mut frames = data(&[numbers([1, 2])]);
    let told = |rows| ScanStats { rows, ..ScanStats::default() };
    frames[1].app_metadata = serde_json::to_vec(&told(1)).unwrap().into();
    let at_the_end = serde_json::to_string(&told(2)).unwrap();
    for (last, expected) in [
        (trailers([OK]), told(1)),
        (trailers([OK, (SCAN_STATS_TRAILER, &at_the_end)]), told(2)),
        // Figures are no part of the answer.
        (trailers([OK, (SCAN_STATS_TRAILER, "{")]), told(1)),
    ] {
        assert_eq!(outcome(vec![piece(wire(&frames)), last]).await, (vec![numbers([1, 2])], Ok(expected)));
    }
}

#[tokio::test]
async fn an_end_without_a_status_or_within_a_message_is_never_whole() {
    let rows = || vec![numbers([1, 2])];
    let (batches, error) = outcome(vec![piece(good())]).await;
    assert_eq!((batches, error.unwrap_err().kind), (rows(), ErrorKind::Unavailable));
    let (batches, error) = outcome(vec![piece(good()), trailers([("x", "y")])]).await;
    assert_eq!((batches, error.unwrap_err().kind), (rows(), ErrorKind::Unavailable));
    assert_eq!(outcome(vec![]).await.1.unwrap_err().kind, ErrorKind::Unavailable);

    let whole = good();
    let first = wire(&data(&[numbers([1, 2])])[..1]).len();
    for at in 1..whole.len() {
        for last in [Some(trailers([OK])), None] {
            let kind = if last.is_some() && at != first { ErrorKind::Internal } else { ErrorKind::Unavailable };
            let is_fine = last.is_some() && at == first;
            let pieces = [piece(whole[..at].to_vec())].into_iter().chain(last).collect();
            let (batches, end) = outcome(pieces).await;
            assert_eq!(batches, []);
            assert_eq!(end.map_err(|e| e.kind), if is_fine { Ok(ScanStats::default()) } else { Err(kind) }, "{at}");
        }
    }
}

#[tokio::test]
async fn a_status_ends_the_answer_wherever_it_comes() {
    let refused = [("grpc-status", "9"), ("grpc-message", "not%20here"), (ERROR_KIND_METADATA, "moved")];
    let expected = Error::new(ErrorKind::Moved, "not here");
    assert_eq!(read(canned(StatusCode::OK, headers(refused), vec![])).await, (vec![], Err(expected.clone())));
    assert_eq!(outcome(vec![piece(good()), trailers(refused)]).await, (vec![numbers([1, 2])], Err(expected.clone())));
    // It explains a message that was cut off.
    assert_eq!(outcome(vec![piece(good()[..20].to_vec()), trailers(refused)]).await, (vec![], Err(expected)));
    // Details that are not base64.
    let odd = [("grpc-status", "5"), ("grpc-status-details-bin", "?")];
    assert_eq!(outcome(vec![trailers(odd)]).await.1.unwrap_err().kind, ErrorKind::NotFound);
    // A good one before messages.
    assert_eq!(read(canned(StatusCode::OK, headers([OK]), vec![])).await, (vec![], Ok(ScanStats::default())));
    let (batches, end) = read(canned(StatusCode::OK, headers([OK]), vec![Ok(piece(good()))])).await;
    assert_eq!((batches, end.unwrap_err().kind), (vec![], ErrorKind::Internal));
    // A connection that breaks.
    let broken = Err(Status::from_error(std::io::Error::other("reset").into()));
    let (batches, end) = read(canned(StatusCode::OK, HeaderMap::new(), vec![Ok(piece(good())), broken])).await;
    assert_eq!((batches, end.unwrap_err().kind), (vec![numbers([1, 2])], ErrorKind::Unavailable));
}

#[tokio::test]
async fn an_answer_that_is_not_grpc_is_a_typed_error() {
    for (status, kind) in [
        (400, ErrorKind::Internal),
        (401, ErrorKind::Denied),
        (403, ErrorKind::Denied),
        (404, ErrorKind::Unsupported),
        (429, ErrorKind::Unavailable),
        (500, ErrorKind::Internal),
        (502, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (504, ErrorKind::Unavailable),
    ] {
        for headers in [headers([]), headers([OK])] {
            let service = canned(StatusCode::from_u16(status).unwrap(), headers, vec![Ok(piece("<html>"))]);
            assert_eq!(read(service).await.1.unwrap_err().kind, kind, "{status}");
        }
    }
    assert_eq!(outcome(vec![piece("<html>"), trailers([OK])]).await.1.unwrap_err().kind, ErrorKind::Internal);
    let mut compressed = good();
    compressed[0] = 1;
    assert_eq!(outcome(vec![piece(compressed), trailers([OK])]).await.1.unwrap_err().kind, ErrorKind::Unsupported);
}
