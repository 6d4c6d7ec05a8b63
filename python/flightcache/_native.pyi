from collections.abc import Callable, Iterable, Iterator
from typing import final

import pandas
import pyarrow

from .answers import Evicted, ObjectInfo, Stats, WarmProgress

__all__ = ["Batches", "Cache", "Rows", "Table", "connect"]

def connect(location: str) -> Cache:
    """Connects to a server and learns where its data is.

    ``location`` is such as ``grpc://127.0.0.1:50051`` or ``grpc+unix:///run/flightcache.sock``.
    Raises :class:`flightcache.Unavailable` if nobody answers there.
    """

@final
class Cache:
    """A connection to a Flightcache.

    Threads may share it, and all of its methods release the GIL while they wait. A process that forked may not use it, and is told so;
    pickled, it connects anew. A URL is an object, a prefix ending in ``/``, or a glob.
    """

    @property
    def location(self) -> str:
        """Where it connects to."""

    def scan(
        self, url: str, *, columns: Iterable[str] | None = None, filter: str | None = None, limit: int | None = None
    ) -> Rows:
        """Rows of a URL, of these columns, in this order, for which the SQL expression is true, at most as many.

        Planned at once, read when the rows are asked for. Without columns all; ``[]`` leaves row counts only.
        """

    def sql(self, query: str) -> Rows:
        """The answer to a query, by the DataFusion in this package.

        Tables are those that were registered, and URLs in quotes: ``FROM 's3://lake/trips/*.parquet'``. Filters, those of joins and
        TopK included, run at the server. Planned at once, run when the rows are asked for. Nothing is written; ``CREATE VIEW`` and
        ``SET`` hold for this connection.
        """

    def register(self, name: str, url: str) -> None:
        """Gives a URL a name in queries, whatever had it before."""

    def deregister(self, name: str) -> bool:
        """Takes a name back. Whether it was one."""

    def table(self, url: str) -> Table:
        """A URL as a table for the ``datafusion`` package: ``ctx.register_table("trips", cache.table(url))``."""

    def warm(
        self,
        url: str,
        *,
        columns: Iterable[str] | None = None,
        filter: str | None = None,
        limit: int | None = None,
        progress: bool | Callable[[WarmProgress], object] | None = None,
    ) -> WarmProgress:
        """Loads what a scan reads into the cache.

        ``progress`` is a function that gets each step, or whether there is a bar (by tqdm); by default in terminals and notebooks.
        """

    def info(self, url: str) -> list[ObjectInfo]:
        """Schema, row groups, sizes and what is resident, by object."""

    def stats(self) -> Stats:
        """The server's figures: capacity, what is resident, hits and misses, requests to the store."""

    def evict(self, url: str) -> Evicted:
        """Forgets a URL."""

    def set_capacity(self, capacity_bytes: int) -> Stats:
        """Changes the capacity of the server's cache; its figures after that."""

@final
class Rows:
    """Rows of a scan or a query.

    Anything that takes Arrow streams reads them: ``pyarrow.table(rows)``, ``polars.DataFrame(rows)``, ``duckdb.sql("FROM rows")``. They
    are read as they are taken, and each reading asks the server anew. What fails while a stream is read is told to its reader as text;
    iterating, :meth:`to_arrow` and :meth:`to_pandas` raise the exceptions of this package.
    """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...
    def __iter__(self) -> Batches:
        """Reads them as ``pyarrow.RecordBatch``."""

    def to_arrow(self) -> pyarrow.Table:
        """Reads them all as a ``pyarrow.Table``."""

    def to_pandas(self) -> pandas.DataFrame:
        """Reads them all as a ``pandas.DataFrame``."""

@final
class Batches(Iterator[pyarrow.RecordBatch]):
    """One reading of rows."""

    def __iter__(self) -> Batches: ...
    def __next__(self) -> pyarrow.RecordBatch: ...
    def __arrow_c_schema__(self) -> object: ...
    def close(self) -> None:
        """Stops reading, and the work for it, on the server too."""

@final
class Table:
    """A URL as a table for the ``datafusion`` package.

    Filters that the server can evaluate run there; functions stay with DataFusion, since a session may have its own of the same name.
    """

    def __datafusion_table_provider__(self, session: object | None = None) -> object:
        """Raises :class:`flightcache.Unsupported` if the package's major version is another than this one's."""
