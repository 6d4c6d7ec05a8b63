//! Tables for the `datafusion` package, which is another build of `DataFusion`: they go over its FFI.

use std::sync::Arc;

use datafusion_ffi::proto::logical_extension_codec::FFI_LogicalExtensionCodec;
use datafusion_ffi::table_provider::FFI_TableProvider;
use flightcache::{Error, ErrorKind};
use flightcache_datafusion::CachedTable;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::exception;
use crate::exact::ExactTable;
use crate::runtime::Home;

/// An object, a prefix or a glob as a table: `ctx.register_table("trips", cache.table(url))`.
#[pyclass(frozen, module = "flightcache")]
pub(crate) struct Table {
    pub(crate) home: Home,
    pub(crate) url: String,
    pub(crate) provider: Arc<CachedTable>,
}

#[pymethods]
impl Table {
    /// Its provider for a session of the `datafusion` package.
    #[pyo3(signature = (session = None))]
    fn __datafusion_table_provider__<'py>(
        &self,
        py: Python<'py>,
        session: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        check_package(py)?;
        let session = session.ok_or_else(|| mismatch(py, "one that names no session"))?;
        let codec = codec(&session)?;
        let runtime = self.home.runtime()?.handle().clone();
        let table = Arc::new(ExactTable::new(Arc::clone(&self.provider), runtime.clone()));
        let provider = FFI_TableProvider::new_with_ffi_codec(table, true, Some(runtime), codec);
        PyCapsule::new_with_value(py, provider, c"datafusion_table_provider")
    }

    fn __repr__(&self) -> String {
        format!("<flightcache.Table {}>", self.url)
    }
}

fn mismatch(py: Python<'_>, found: &str) -> PyErr {
    let ours = datafusion_ffi::version();
    let message =
        format!("tables of this package are for datafusion {ours}, not for {found}: pip install 'datafusion=={ours}.*'");
    exception(py, &Error::new(ErrorKind::Unsupported, message))
}

/// Structures of another major version are laid out otherwise: look at the package's version before at any of them.
fn check_package(py: Python<'_>) -> PyResult<()> {
    let Ok(package) = py.import("sys")?.getattr("modules")?.get_item("datafusion") else { return Ok(()) };
    let version: String = package.getattr("__version__")?.extract()?;
    let is_ours = version.split('.').next() == Some(datafusion_ffi::version().to_string().as_str());
    if is_ours { Ok(()) } else { Err(mismatch(py, &version)) }
}

/// How a session's expressions travel: functions keep meaning what they mean there. Given as a session, or as its codec's capsule.
#[allow(unsafe_code)]
fn codec(session: &Bound<'_, PyAny>) -> PyResult<FFI_LogicalExtensionCodec> {
    let getter = session.getattr_opt("__datafusion_logical_extension_codec__")?;
    let capsule = getter.map_or_else(|| Ok(session.clone()), |getter| getter.call0())?;
    let codec = capsule.cast::<PyCapsule>()?.pointer_checked(Some(c"datafusion_logical_extension_codec"))?;
    // SAFETY: capsules of this name hold that structure, which lives as long as the capsule does; its name was checked.
    let (codec, version) = unsafe {
        let codec = codec.cast::<FFI_LogicalExtensionCodec>().as_ref();
        (codec, (codec.version)())
    };
    if version != datafusion_ffi::version() {
        return Err(mismatch(session.py(), &version.to_string()));
    }
    Ok(codec.clone())
}
