"""Flightcache: a shared columnar cache in front of Parquet on S3.

>>> import flightcache
>>> cache = flightcache.connect("grpc://127.0.0.1:50051")
>>> fares = cache.scan("s3://lake/trips/", columns=["fare"], filter="fare > 100")
>>> pyarrow.table(fares), polars.DataFrame(fares), duckdb.sql("FROM fares")
>>> cache.sql("SELECT payer, avg(fare) FROM 's3://lake/trips/*.parquet' GROUP BY payer").to_pandas()

Nobody but the server needs access to the store.
"""

from ._native import Batches, Cache, Rows, Table, connect
from .errors import (
    Cancelled,
    Changed,
    Corrupt,
    Denied,
    Error,
    Internal,
    InvalidRequest,
    Moved,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)

__all__ = [
    "Batches",
    "Cache",
    "Cancelled",
    "Changed",
    "Corrupt",
    "Denied",
    "Error",
    "Internal",
    "InvalidRequest",
    "Moved",
    "NotFound",
    "ResourceExhausted",
    "Rows",
    "Table",
    "Unavailable",
    "Unsupported",
    "connect",
]
