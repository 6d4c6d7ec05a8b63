"""The examples and the commands of the pages, as they stand there, over a small table of trips."""

import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, parquet

TRIPS = "s3://lake/trips/"


@pytest.fixture(scope="module")
def trips(s3):
    rng = np.random.default_rng(3)
    for year in (2023, 2024):
        fare = rng.gamma(2.0, 12.0, 5_000).round(2) + 1
        s3.put(f"trips/{year}-01.parquet", parquet(pa.table({
            "payer": pa.array(rng.choice(["card", "cash", "voucher"], 5_000)),
            "fare": fare,
            "tip": (fare * rng.random(5_000) / 4).round(2),
        }), row_group_size=1_000))
    return TRIPS


@pytest.mark.parametrize("name, shows", [
    ("notebook", ["5000 rows", "30 chunks loaded", "in fares", "voucher", "not found:", "hits"]),
    ("with_polars", ["voucher", "shape: (3, 3)"]),
    ("with_duckdb", ["voucher", "tip"]),
    ("with_adbc", ["voucher", "trips"]),
])
def test_example(server, trips, name, shows):
    server.act("evict", {"url": trips})
    done = subprocess.run([sys.executable, ROOT / f"examples/{name}.py", server.uri, trips], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(shown in done.stdout for shown in shows), done.stdout


@pytest.mark.parametrize("page", ["README.md", "python/README.md"])
def test_pages(server, trips, page):
    blocks = [block for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL) if "import flightcache" in block]
    assert blocks
    for block in blocks:
        script = "import datafusion, duckdb, polars, pyarrow\n" + block.replace("grpc://127.0.0.1:50051", server.uri)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
