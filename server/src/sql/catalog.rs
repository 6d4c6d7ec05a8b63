//! What the names in one statement stand for: URLs as they are, and the names that the server or the statement's handle knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::catalog::information_schema::{INFORMATION_SCHEMA, InformationSchemaProvider};
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::logical_expr::TableType;
use flightcache_datafusion::CachedTable;

use super::local::LocalCache;
use super::tables::{CATALOG, Named, SCHEMA, Tables};

/// Tells `DataFusion`'s settings, which are the operator's business: directories, for instance.
const SETTINGS_TABLE: &str = "df_settings";

/// The names of one statement.
pub(super) struct Names {
    cache: LocalCache,
    tables: Arc<Tables>,
    /// Names that came with the statement; they win.
    given: BTreeMap<String, String>,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    by_url: HashMap<String, Arc<CachedTable>>,
    /// The names that were made at run time, with their URLs.
    created: BTreeMap<String, String>,
}

impl Names {
    pub(super) fn new(cache: LocalCache, tables: Arc<Tables>, given: BTreeMap<String, String>) -> Self {
        Self { cache, tables, given, opened: Mutex::default() }
    }

    /// The tables that were named and made at run time, with their URLs.
    pub(super) fn created(&self) -> BTreeMap<String, String> {
        self.lock().created.clone()
    }

    /// Forgets what was read of the statement's tables: some of it turned out overwritten.
    pub(super) fn forget(&self) {
        self.cache.forget();
    }

    /// An object, a prefix or a glob.
    pub(super) async fn open(&self, url: &str) -> PlanResult<Arc<CachedTable>> {
        if let Some(table) = self.lock().by_url.get(url) {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(CachedTable::open(Arc::new(self.cache.clone()), url).await?);
        Ok(Arc::clone(self.lock().by_url.entry(url.to_owned()).or_insert(table)))
    }

    fn named(&self, name: &str) -> Option<Named> {
        if is_url(name) {
            return Some(Named { url: name.to_owned(), is_created: false });
        }
        let given = self.given.get(name).map(|url| Named { url: url.clone(), is_created: true });
        given.or_else(|| self.tables.get(name))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_url(name: &str) -> bool {
    name.contains("://")
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("given", &self.given).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for Names {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.tables.names();
        names.extend(self.given.keys().cloned());
        names.sort_unstable();
        names.dedup();
        names
    }

    async fn table(&self, name: &str) -> PlanResult<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(Named { url, is_created }) = self.named(name) else { return Ok(None) };
        let table = self.open(&url).await?;
        if is_created {
            self.lock().created.insert(name.to_owned(), url);
        }
        Ok(Some(table))
    }

    async fn table_type(&self, name: &str) -> PlanResult<Option<TableType>> {
        // Without looking at it.
        Ok(self.named(name).map(|_| TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.named(name).is_some()
    }
}

/// The one catalog, of one schema and what tells of it.
#[derive(Clone, Debug)]
pub(super) struct Catalogs {
    names: Arc<Names>,
    /// Made to be listed: a table that cannot be read has no columns, and is no error.
    is_listing: bool,
}

impl Catalogs {
    pub(super) fn new(names: Arc<Names>) -> Self {
        Self { names, is_listing: false }
    }
}

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(self.clone()) as Arc<dyn CatalogProvider>)
    }
}

impl CatalogProvider for Catalogs {
    fn schema_names(&self) -> Vec<String> {
        vec![SCHEMA.to_owned()]
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let names = Arc::clone(&self.names);
        match name {
            SCHEMA if self.is_listing => Some(Arc::new(Readable(names))),
            SCHEMA => Some(names),
            INFORMATION_SCHEMA => {
                let listing = Arc::new(Self { names, is_listing: true });
                Some(Arc::new(Told(InformationSchemaProvider::new(listing))))
            }
            _ => None,
        }
    }
}

/// `DataFusion`'s information schema, but for its settings.
#[derive(Debug)]
struct Told(InformationSchemaProvider);

#[async_trait]
impl SchemaProvider for Told {
    fn table_names(&self) -> Vec<String> {
        self.0.table_names().into_iter().filter(|name| name != SETTINGS_TABLE).collect()
    }

    async fn table(&self, name: &str) -> PlanResult<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if name.eq_ignore_ascii_case(SETTINGS_TABLE) { Ok(None) } else { self.0.table(name).await }
    }

    fn table_exist(&self, name: &str) -> bool {
        !name.eq_ignore_ascii_case(SETTINGS_TABLE) && self.0.table_exist(name)
    }
}

/// The same names, without the tables that cannot be read.
#[derive(Debug)]
struct Readable(Arc<Names>);

#[async_trait]
impl SchemaProvider for Readable {
    fn table_names(&self) -> Vec<String> {
        self.0.table_names()
    }

    async fn table(&self, name: &str) -> PlanResult<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self.0.table(name).await.unwrap_or_else(|error| {
            tracing::warn!(name, cause = %error.strip_backtrace(), "a table cannot be read");
            None
        }))
    }

    async fn table_type(&self, name: &str) -> PlanResult<Option<TableType>> {
        self.0.table_type(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.table_exist(name)
    }
}
