//! Adds a scan's final figures to the trailers of its response.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use flightcache_proto::scan::SCAN_STATS_TRAILER;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use tonic::body::Body as TonicBody;

use crate::admin::ScanMeter;

/// Put into a response's extensions to have its scan's figures sent as a trailer.
#[derive(Clone)]
pub(super) struct MeteredResponse(pub(super) Arc<ScanMeter>);

/// Response mapper for the Flight service: see [`SCAN_STATS_TRAILER`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanTrailers;

impl ScanTrailers {
    /// Wraps the body of a metered response; passes others through.
    pub fn wrap(response: http::Response<TonicBody>) -> http::Response<TonicBody> {
        let Some(MeteredResponse(meter)) = response.extensions().get::<MeteredResponse>().cloned() else { return response };
        response.map(|body| TonicBody::new(MeteredBody { body, meter }))
    }
}

struct MeteredBody {
    body: TonicBody,
    meter: Arc<ScanMeter>,
}

impl Body for MeteredBody {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    let json = serde_json::to_string(&self.meter.snapshot()).ok();
                    if let Some(value) = json.and_then(|json| HeaderValue::from_str(&json).ok()) {
                        trailers.insert(SCAN_STATS_TRAILER, value);
                    }
                }
                frame
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
