"""The servers of the other tests, a table of many types, and this package on it."""

import datetime
import decimal
import importlib.util
import io
import pathlib
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(name, path):
    """A module of the other tests, whose `conftest` is not this one."""
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = load("servers", "ci/tests/conftest.py")
proxy = load("proxy", "ci/tests/proxy.py")
s3, server = servers.s3, servers.server

import flightcache  # noqa: E402

ROWS = 50_000


def parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def values(table):
    """What a table holds, whichever of Arrow's types for it: NaN equals NaN, time zones count, strings are strings."""
    return repr(table.to_pylist())


@pytest.fixture(scope="session")
def table():
    rng = np.random.default_rng(7)
    null = rng.random(ROWS) < 0.1
    words = np.array(["alpha", "beta", "gamma", "Delta", "épsilon", ""])
    floats = np.where(rng.random(ROWS) < 0.05, np.nan, rng.normal(size=ROWS))
    day = datetime.date(2024, 1, 1)
    return pa.table({
        "id": pa.array(range(ROWS), pa.int64()),
        "small": pa.array(rng.integers(-100, 100, ROWS), pa.int8(), mask=null),
        "f": pa.array(floats, pa.float64(), mask=null, from_pandas=False),
        "word": pa.array(words[rng.integers(0, 6, ROWS)], mask=null),
        "text": pa.array([f"row {i} {'x' * (i % 60)}" for i in range(ROWS)]),
        "price": pa.array([decimal.Decimal(i) / 100 for i in range(ROWS)], pa.decimal128(12, 2)),
        "at": pa.array([1_700_000_000_000_000 + i * 60_000_000 for i in range(ROWS)], pa.timestamp("us", "Europe/Zurich")),
        "day": pa.array([day + datetime.timedelta(days=i % 700) for i in range(ROWS)]),
        "list": pa.array([list(range(i % 5)) if i % 7 else None for i in range(ROWS)], pa.list_(pa.int32())),
        "point": pa.array([{"x": i % 10, "y": str(i)} if i % 3 else None for i in range(ROWS)]),
        "flag": pa.array(rng.random(ROWS) < 0.5, mask=null),
    })


@pytest.fixture(scope="session")
def path(table, tmp_path_factory):
    """The table as a file, for readers that know no cache."""
    path = tmp_path_factory.mktemp("data") / "table.parquet"
    path.write_bytes(parquet(table, row_group_size=9_000))
    return path


@pytest.fixture(scope="session")
def url(s3, path):
    return s3.put("python/table.parquet", path.read_bytes())


@pytest.fixture(scope="session")
def cache(server):
    return flightcache.connect(server.uri)
