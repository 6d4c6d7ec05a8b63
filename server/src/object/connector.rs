//! Counts every HTTP request that reaches a store, retries included, and what makes a retry.

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService, ReqwestConnector,
};
use prometheus::IntCounter;

/// Connects as usual, and counts.
#[derive(Debug)]
pub(super) struct CountingConnector {
    pub(super) requests: IntCounter,
    pub(super) retried: IntCounter,
}

#[derive(Debug)]
struct CountingService {
    client: HttpClient,
    requests: IntCounter,
    retried: IntCounter,
}

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(CountingService { client, requests: self.requests.clone(), retried: self.retried.clone() }))
    }
}

#[async_trait]
impl HttpService for CountingService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.requests.inc();
        let response = self.client.execute(request).await;
        let is_retried = response.as_ref().map_or(true, |response| {
            let status = response.status();
            status.is_server_error() || matches!(status.as_u16(), 408 | 429)
        });
        if is_retried {
            self.retried.inc();
        }
        // A body that breaks off is read on by a request for the rest.
        let retried = self.retried.clone();
        Ok(response?.map(|body| {
            HttpResponseBody::new(body.map_err(move |error| {
                retried.inc();
                error
            }))
        }))
    }
}
