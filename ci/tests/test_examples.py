"""The Rust example, over a small table of trips."""

import subprocess

import pyarrow as pa
from conftest import BIN
from test_scans import parquet


def test_tables(s3, server):
    trips = {"payer": ["card", "cash", "card", "voucher"] * 100, "fare": [30.0, 10.0, 25.5, 199.0] * 100}
    s3.put("examples/trips.parquet", parquet(pa.table(trips)))
    done = subprocess.run([BIN / "examples/tables", server.uri, "s3://lake/examples/"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| 400   |" in done.stdout and "| card    | 27.75 |" in done.stdout and done.stdout.count("| voucher | 199.0 |") == 6
