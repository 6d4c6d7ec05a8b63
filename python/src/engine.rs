//! The engine behind `Cache.sql`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{DynamicFileCatalog, TableProvider, UrlTableFactory};
use datafusion::common::Result;
use datafusion::prelude::{SessionConfig, SessionContext};
use flightcache::Client;

/// A session whose tables are those that are registered, and any URL: `FROM 's3://lake/trips/*.parquet'`.
pub(crate) fn session(client: &Client) -> SessionContext {
    let session = SessionContext::new_with_config(SessionConfig::new().with_information_schema(true));
    let registered = Arc::clone(session.state_ref().read().catalog_list());
    let catalogs = DynamicFileCatalog::new(registered, Arc::new(Urls(client.clone())));
    let session = session.into_state_builder().with_catalog_list(Arc::new(catalogs));
    flightcache::datafusion::with_rules(session, None).build().into()
}

/// Tables by their URL.
#[derive(Debug)]
struct Urls(Client);

#[async_trait]
impl UrlTableFactory for Urls {
    async fn try_new(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !name.contains("://") {
            return Ok(None);
        }
        Ok(Some(self.0.table(name).await?))
    }
}
