//! The admin port: metrics, health, readiness. Apart from the data port, so that it answers when that is busy.

mod metrics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

pub(crate) use metrics::add_time;
pub use metrics::{Metrics, ScanMeter};

use crate::scan::Engine;

/// What the admin routes need.
#[derive(Clone)]
pub struct Admin {
    engine: Arc<Engine>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    /// Routes over an engine; `ready` is false until the data port listens and again while it drains.
    pub fn new(engine: Arc<Engine>, ready: Arc<AtomicBool>) -> Self {
        Self { engine, ready }
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(self)
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.engine.publish_gauges();
    match admin.engine.metrics().render() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error),
    }
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
