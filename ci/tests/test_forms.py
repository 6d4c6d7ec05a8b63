"""How chunks rest, and how answers travel: every form answers alike."""

import json

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import DATA, Server
from test_parquet_testing import FILES, REFUSED, same
from test_scans import parquet

ROWS = 200_000


@pytest.fixture(scope="module", params=["arrow", "parquet", "auto"])
def cache(request):
    server = Server("--source", f"file://{DATA}/", "--residency", request.param, env={})
    server.residency = request.param
    yield server
    server.stop()


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in REFUSED], ids=lambda path: path.name)
def test_every_file_is_the_same_in_every_form(cache, server, path):
    url = f"file://{path}"
    try:
        expected = server.scan(url)
    except (flight.FlightError, pa.ArrowException) as error:
        with pytest.raises(type(error)):
            cache.scan(url)
        return
    for _ in range(3):
        assert same(cache.scan(url), expected)
    if expected.num_rows > 2 and expected.num_columns:
        rows = [expected.num_rows - 1, 0, 1, 0]
        assert same(cache.scan(url, rows=rows), expected.take(rows))


def test_what_rests_is_told(cache):
    url = f"file://{DATA}/parquet-testing/data/alltypes_plain.snappy.parquet"
    cache.scan(url)
    [stats] = cache.act("stats")
    assert (stats["resident_arrow_bytes"] > 0) == (cache.residency != "parquet")
    assert (stats["resident_parquet_bytes"] > 0) == (cache.residency != "arrow")
    [before] = cache.act("stats")
    cache.scan(url)
    [after] = cache.act("stats")
    assert after["chunks_missed"] == before["chunks_missed"] and after["store_bytes"] == before["store_bytes"]


def test_compressed_answers_are_smaller_and_the_same(server, s3):
    table = pa.table({"id": pa.array(range(ROWS)), "s": [f"station-{i % 40}" for i in range(ROWS)]})
    url = s3.put("forms/t.parquet", parquet(table))
    sizes = {}
    for codec in (None, "lz4", "zstd"):
        scan = {"url": url} | ({"compression": codec} if codec else {})
        reader = server.client.do_get(flight.Ticket(json.dumps(scan).encode()))
        batches, figures = [], None
        for chunk in reader:
            batches.append(chunk.data)
            figures = json.loads(chunk.app_metadata.to_pybytes())
        assert pa.Table.from_batches(batches) == table
        sizes[codec] = figures["bytes"]
    assert sizes["zstd"] < sizes["lz4"] < sizes[None] / 1.5, sizes


def test_an_unknown_compression_is_refused(server, s3):
    with pytest.raises((flight.FlightError, pa.ArrowInvalid), match="compression|brotli"):
        server.scan("s3://lake/none.parquet", compression="brotli")
