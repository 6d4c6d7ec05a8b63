//! The Flight port: HTTP/2 connections, with `DoGet` answered here and everything else by tonic's services.
//!
//! Served by hyper itself, because tonic's transport fixes the type of bodies' data to one piece of contiguous memory.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::serve::Listener;
use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;

use super::do_get;
use super::exchange;
use super::gather::Gathered;
use super::message::Message;
use crate::scan::Engine;
use crate::sql::Sql;

const DO_GET_PATH: &str = "/arrow.flight.protocol.FlightService/DoGet";
const DO_EXCHANGE_PATH: &str = "/arrow.flight.protocol.FlightService/DoExchange";
/// A peer that does not answer a ping within twice this is taken for gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Requests of one connection under way at a time: many a client sends all of its own over one.
const MAX_CONCURRENT_STREAMS: u32 = 1024;

type AnyBody = UnsyncBoxBody<Message, Box<dyn std::error::Error + Send + Sync>>;

/// What answers the requests of a connection.
#[derive(Clone)]
pub struct FlightPort {
    engine: Arc<Engine>,
    sql: Arc<Sql>,
    routes: Routes,
    is_local: bool,
    stopped: watch::Receiver<bool>,
}

/// Marks a request that came over a Unix socket.
#[derive(Clone, Copy)]
pub(super) struct OverUnixSocket;

impl FlightPort {
    /// `routes` answer everything but `DoGet` and `DoExchange`. Exchanges end when told to stop.
    pub fn new(sql: Arc<Sql>, routes: Routes, stopped: watch::Receiver<bool>) -> Self {
        Self { engine: Arc::clone(sql.engine()), sql, routes, is_local: false, stopped }
    }

    /// The same for connections over a Unix socket.
    #[must_use]
    pub fn over_unix_socket(self) -> Self {
        Self { is_local: true, ..self }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<AnyBody> {
        let timeout = request.headers().get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
        let answer = self.route(request);
        match timeout {
            None => answer.await,
            Some(timeout) => tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| {
                let late = Status::new(Code::DeadlineExceeded, "the caller's time is over");
                late.into_http::<tonic::body::Body>().map(any)
            }),
        }
    }

    async fn route(mut self, mut request: Request<Incoming>) -> Response<AnyBody> {
        if self.is_local {
            request.extensions_mut().insert(OverUnixSocket);
        }
        match request.uri().path() {
            DO_GET_PATH if request.method() == http::Method::POST => {
                return do_get::respond(&self.engine, &self.sql, request)
                    .await
                    .map(|body| AnyBody::new(body.map_err(|never| match never {})));
            }
            DO_EXCHANGE_PATH if request.method() == http::Method::POST => {
                let response = exchange::respond(&self.engine, request, self.stopped);
                return response.map(|body| AnyBody::new(body.map_err(|never| match never {})));
            }
            _ => {}
        }
        let response = self.routes.call(request).unwrap_or_else(|never: Infallible| match never {}).await;
        response.map(any)
    }
}

fn any(body: tonic::body::Body) -> AnyBody {
    AnyBody::new(body.map_frame(|frame| frame.map_data(Message::from)).map_err(Into::into))
}

impl hyper::service::Service<Request<Incoming>> for FlightPort {
    type Response = Response<AnyBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.clone().answer(request).map(Ok).boxed()
    }
}

/// Runs requests at once, in the task of their connection, as far as they go without waiting; then in tasks of their own. What
/// is resident and small is answered without another thread, and leaves in one write.
#[derive(Clone, Copy)]
struct AtOnce;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for AtOnce {
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        let mut poll = || future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match std::panic::catch_unwind(AssertUnwindSafe(&mut poll)) {
            // Polled again there, which tells it whom to wake.
            Ok(Poll::Pending) => drop(tokio::spawn(future)),
            Ok(Poll::Ready(())) => {}
            // As in a task of its own, it is this request's end and not its connection's.
            Err(_) => tracing::error!("a request gave up"),
        }
    }
}

/// How long a client may take to read what was sent last, and to hang up.
const LINGER: Duration = Duration::from_secs(5);

/// A `grpc-timeout`: at most eight digits and a unit.
fn timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_hours(number)),
        "M" => Some(Duration::from_mins(number)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Answers connections until told to stop; then lets requests under way end. Dropping it ends them.
pub async fn serve(mut listener: impl Listener, port: FlightPort) {
    let stopped = port.stopped.clone();
    let mut connections = JoinSet::new();
    let mut stop = pin!(until(stopped));
    loop {
        tokio::select! {
            (stream, _) = listener.accept() => {
                connections.spawn(connection(stream, port.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = &mut stop => break,
        }
    }
    // No one connects from here on.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection<S>(stream: S, port: FlightPort)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stopped = port.stopped.clone();
    let mut http = http2::Builder::new(AtOnce);
    http.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE_INTERVAL).keep_alive_timeout(KEEP_ALIVE_INTERVAL);
    http.max_concurrent_streams(MAX_CONCURRENT_STREAMS);
    let stream = Gathered::new(stream);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream.share()), port));
    let ended = tokio::select! {
        ended = poll_fn(|cx| turn(serving.as_mut(), &stream, cx)) => ended,
        () = until(stopped) => {
            // Who has said nothing yet asks for nothing, and may say nothing for ever.
            if !stream.has_heard() {
                return;
            }
            serving.as_mut().graceful_shutdown();
            poll_fn(|cx| turn(serving.as_mut(), &stream, cx)).await
        }
    };
    match ended {
        Ok(()) => linger(stream).await,
        Err(error) => tracing::debug!(%error, "a connection ended"),
    }
}

/// Takes what the client still says, after all was said to it, until it hangs up. Were it closed at once, what the client writes, of
/// windows for instance, would fail, and with it what it has not read yet.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: Gathered<S>) {
    let mut ignored = [0; 1 << 10];
    let until_closed = async {
        if stream.shutdown().await.is_ok() {
            while stream.read(&mut ignored).await.is_ok_and(|len| len > 0) {}
        }
    };
    // Whoever neither hangs up nor falls silent is left.
    let _ = tokio::time::timeout(LINGER, until_closed).await;
}

/// What a connection can do now; what it wrote leaves at the end.
fn turn<S: AsyncWrite + Unpin>(
    serving: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    stream: &Gathered<S>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Box<dyn std::error::Error + Send + Sync>>> {
    if let Poll::Ready(ended) = serving.poll(cx) {
        // Nothing is kept any more: it was shut down, or it failed.
        return Poll::Ready(ended.map_err(Into::into));
    }
    match stream.poll_drain(cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
        // Whichever waits, wakes.
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
    }
}

pub(crate) async fn until(mut stopped: watch::Receiver<bool>) {
    // The server being gone means to stop as well.
    let _ = stopped.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_yields_goes_on_in_a_task_of_its_own() {
        use hyper::rt::Executor as _;
        let (told, told_of) = tokio::sync::oneshot::channel();
        let connection = tokio::spawn(async move {
            AtOnce.execute(async move {
                let first = tokio::task::id();
                tokio::task::yield_now().await;
                told.send((first, tokio::task::id())).unwrap();
            });
            tokio::task::id()
        });
        let (first, second) = told_of.await.unwrap();
        let connection = connection.await.unwrap();
        assert!(first == connection && second != connection);
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "5", "5X", "123456789S", "-1S", "é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
