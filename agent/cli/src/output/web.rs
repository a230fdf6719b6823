//! The HTTP side of the daemon: `/report.json`, `/metrics`, `/healthz`, `/readyz`. GET only; every answer is made once per
//! report, requests only copy it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use headroom_core::report::Report;
use tokio::sync::watch;

use crate::output::metrics;

/// A report, rendered for every path.
#[derive(Debug, Clone)]
pub struct Published {
    at: Instant,
    json: Bytes,
    metrics: Bytes,
}

impl Published {
    /// Renders a report.
    pub fn new(report: Report) -> Self {
        let json = serde_json::to_vec(&report).unwrap_or_else(|error| {
            tracing::error!(%error, "a report could not be serialised");
            Vec::new()
        });
        Self { at: Instant::now(), json: json.into(), metrics: metrics::render(&report).into() }
    }
}

#[derive(Debug, Clone)]
struct Shared {
    published: watch::Receiver<Option<Published>>,
    /// A report older than this means that the owner of the ledger is stuck.
    stale: Duration,
    started: Instant,
}

/// All paths.
pub fn router(published: watch::Receiver<Option<Published>>, tick: Duration) -> Router {
    let shared = Shared { published, stale: tick * 3 + Duration::from_secs(10), started: Instant::now() };
    Router::new()
        .route("/report.json", get(report))
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /report.json /metrics /healthz /readyz\n") })
        .with_state(Arc::new(shared))
}

fn latest(shared: &Shared) -> Option<Published> {
    shared.published.borrow().clone()
}

fn no_report() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "no report yet: the first takes a few seconds\n").into_response()
}

async fn report(State(shared): State<Arc<Shared>>) -> Response {
    match latest(&shared) {
        Some(published) => ([(header::CONTENT_TYPE, "application/json")], published.json).into_response(),
        None => no_report(),
    }
}

async fn metrics_page(State(shared): State<Arc<Shared>>) -> Response {
    match latest(&shared) {
        Some(published) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], published.metrics).into_response(),
        None => no_report(),
    }
}

/// Alive: reports keep coming.
async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    let since = latest(&shared).map_or(shared.started, |published| published.at);
    if since.elapsed() <= shared.stale {
        "ok\n".into_response()
    } else {
        let age = since.elapsed().as_secs();
        (StatusCode::SERVICE_UNAVAILABLE, format!("no report for {age} s\n")).into_response()
    }
}

/// Ready: there is a report.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    if latest(&shared).is_some() { "ready\n".into_response() } else { no_report() }
}
