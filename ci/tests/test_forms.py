"""How chunks rest, and how answers travel: every form answers alike."""

import json
import subprocess
import urllib.request

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import BIN, DATA, Server
from test_parquet_testing import FILES, REFUSED, same
from test_scans import parquet

ROWS = 200_000


@pytest.fixture(scope="module", params=["arrow", "parquet", "auto"])
def cache(request):
    server = Server("--source", f"file://{DATA}/", "--residency", request.param, env={})
    server.residency = request.param
    yield server
    server.stop()


# Not the one row of a gigabyte, which takes its time in each form.
EVERY = [path for path in FILES if path.name not in REFUSED and not path.name.startswith("large_string_map")]


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
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


def get(server, url, transfer, tmp_path):
    """A scan by our own client, and the bytes that the server sent for it."""
    out = tmp_path / f"{transfer}.arrow"
    before = served_bytes(server)
    command = [BIN / "flightcache", "--server", server.uri, "get", url, "--transfer", transfer, "--format", "arrow", "-o", out]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        return done.stderr.decode(), None
    return pa.ipc.open_file(out).read_all(), served_bytes(server) - before


def served_bytes(server):
    metrics = urllib.request.urlopen(server.admin + "/metrics").read().decode()
    return int(next(line.split()[1] for line in metrics.splitlines() if line.startswith("flightcache_served_bytes_total ")))


# Strings folded and not, nested types, unusual encodings and codecs, no rows, corrupt bytes. Each is a process; what else may rest and
# travel so is compared in `server/tests/it/parquet_rows.rs`.
AS_PARQUET = [
    "alltypes_dictionary.parquet",
    "byte_stream_split.zstd.parquet",
    "column_chunk_key_value_metadata.parquet",
    "datapage_v1-corrupt-checksum.parquet",
    "delta_encoding_required_column.parquet",
    "nested_maps.snappy.parquet",
    "plain-dict-uncompressed-checksum.parquet",
]


@pytest.mark.parametrize("name", AS_PARQUET)
def test_files_are_the_same_as_parquet(cache, server, name, tmp_path):
    url = f"file://{DATA}/parquet-testing/data/{name}"
    try:
        expected = server.scan(url)
    except (flight.FlightError, pa.ArrowException):
        expected = None
    table, _ = get(cache, url, "parquet", tmp_path)
    if expected is None:
        assert isinstance(table, str) and name in table, table
    else:
        assert not isinstance(table, str) and same(table, expected), table
        assert table.schema.equals(expected.schema)


def test_parquet_is_smaller_where_its_bytes_rest(cache, tmp_path):
    url = f"file://{DATA}/parquet-testing/data/plain-dict-uncompressed-checksum.parquet"
    arrow, arrow_bytes = get(cache, url, "arrow", tmp_path)
    parquet, parquet_bytes = get(cache, url, "parquet", tmp_path)
    assert same(parquet, arrow)
    assert (parquet_bytes < arrow_bytes / 1.5) == (cache.residency != "arrow"), (parquet_bytes, arrow_bytes)
    assert get(cache, url, "auto", tmp_path)[1] == arrow_bytes, "within a host"


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
