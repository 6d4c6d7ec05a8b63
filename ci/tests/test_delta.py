"""The example of Delta tables: what delta-rs has written is answered as delta-rs itself answers it, from the cache."""

import os
import subprocess

import datafusion
import pyarrow as pa
import pytest
from conftest import BIN
from deltalake import DeltaTable, write_deltalake

PAYERS = ["card", "cash", "on account: Möbius 100%"]


def trips(first, count, **more):
    ids = range(first, first + count)
    columns = {"id": ids, "payer": [PAYERS[k % 3] for k in ids], "fare": [None if k % 7 == 3 else k / 4 for k in ids]}
    return pa.table(columns | {name: [of(k) for k in ids] for name, of in more.items()})


@pytest.fixture(scope="module")
def store(s3):
    store = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": s3.endpoint}
    return store | {"AWS_ALLOW_HTTP": "true", "AWS_S3_ALLOW_UNSAFE_RENAME": "true"}


@pytest.fixture(scope="module")
def table(store):
    url = "s3://lake/delta/trips"
    for part, how in [(trips(0, 3_000), {}), (trips(3_000, 2_000, zone=lambda k: k % 5), {"schema_mode": "merge"})]:
        write_deltalake(url, part, mode="append", partition_by=["payer"], storage_options=store, **how)
    table = DeltaTable(url, storage_options=store)
    # Files without these rows take the place of others, whose names stay in the store.
    table.delete("id >= 100 AND id < 200")
    table.update(updates={"fare": "1000.0"}, predicate="id = 4000")
    return table


def ask(server, store, table, sql):
    command = [BIN / "flightcache-delta-example", server.uri, table.table_uri, sql]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **store})
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[3:] if line.startswith("|")]


def expected(table, sql):
    context = datafusion.SessionContext()
    context.from_arrow(table.to_pyarrow_table(), name="trips")
    rows = [row.values() for row in context.sql(sql).to_arrow_table().to_pylist()]
    return [["" if value is None else str(value) for value in row] for row in rows]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*), count(fare), sum(id), min(payer) FROM trips",
        "SELECT id, payer, fare, zone FROM trips WHERE id IN (99, 100, 200, 2999, 3000, 4000) ORDER BY id",
        "SELECT payer, zone, count(*), sum(fare) FROM trips WHERE fare > 20 GROUP BY payer, zone ORDER BY payer, zone",
        "SELECT id, fare FROM trips WHERE payer LIKE 'on acc%' AND zone = 2 ORDER BY fare DESC NULLS LAST, id LIMIT 5",
        "SELECT count(*) FROM trips a JOIN trips b ON a.id = b.zone WHERE b.id > 3500",
    ],
)
def test_a_delta_table_is_read_through_the_cache(server, store, table, sql):
    assert ask(server, store, table, sql) == expected(table, sql)
    plan = str(ask(server, store, table, f"EXPLAIN FORMAT INDENT {sql}"))
    assert "file_type=flightcache" in plan and "file_type=parquet" not in plan


def test_what_the_cache_cannot_be_asked_for_is_read_from_the_store(server, store):
    """A partition's value with a separator is part of a name that servers refuse."""
    url = "s3://lake/delta/odd/trips"
    write_deltalake(url, pa.table({"id": range(5), "k": ["a/b", "c"] * 2 + ["c"]}), partition_by=["k"], storage_options=store)
    table, sql = DeltaTable(url, storage_options=store), "SELECT k, sum(id) FROM trips GROUP BY k ORDER BY k"
    assert ask(server, store, table, sql) == expected(table, sql)
    assert "file_type=parquet" in str(ask(server, store, table, f"EXPLAIN FORMAT INDENT {sql}"))
