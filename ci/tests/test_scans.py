"""Scans by a plain pyarrow client, against the same done by pyarrow."""

import datetime
import decimal
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight
import pyarrow.parquet as pq
import pytest
from test_parquet_testing import same

ROWS = 50_000


def parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(7)
    null = rng.random(ROWS) < 0.1
    words = np.array(["alpha", "beta", "gamma", "Delta", "épsilon", ""])
    zone = pa.timestamp("us", "Europe/Zurich")
    floats = np.where(rng.random(ROWS) < 0.05, np.nan, rng.normal(size=ROWS))
    return pa.table({
        "id": pa.array(range(ROWS), pa.int64()),
        "small": pa.array(rng.integers(-100, 100, ROWS), pa.int8(), mask=null),
        "f": pa.array(floats, pa.float64(), mask=null, from_pandas=False),
        "word": pa.array(words[rng.integers(0, 6, ROWS)], mask=null),
        "text": pa.array([f"row {i} {'x' * (i % 60)}" for i in range(ROWS)]),
        "price": pa.array([decimal.Decimal(i) / 100 for i in range(ROWS)], pa.decimal128(12, 2)),
        "at": pa.array([1_700_000_000_000_000 + i * 60_000_000 for i in range(ROWS)], zone),
        "day": pa.array([datetime.date(2024, 1, 1) + datetime.timedelta(days=i % 700) for i in range(ROWS)]),
        "list": pa.array([list(range(i % 5)) if i % 7 else None for i in range(ROWS)], pa.list_(pa.int32())),
        "point": pa.array([{"x": i % 10, "y": str(i)} if i % 3 else None for i in range(ROWS)]),
        "flag": pa.array(rng.random(ROWS) < 0.5, mask=null),
    })


@pytest.fixture(scope="module")
def url(s3, table):
    return s3.put("scans/table.parquet", parquet(table, row_group_size=9_000))


def test_whole_projected_and_reordered(server, url, table):
    assert same(server.scan(url), table)
    assert same(server.scan(url, columns=["word", "id"]), table.select(["word", "id"]))
    counted = server.scan(url, columns=[])
    assert (counted.num_columns, counted.num_rows) == (0, ROWS)


FILTERS = {
    "id < 24": lambda t: pc.less(t["id"], 24),
    "id >= 8999 and id <= 9001": lambda t: pc.and_(pc.greater_equal(t["id"], 8999), pc.less_equal(t["id"], 9001)),
    "word = 'beta'": lambda t: pc.equal(t["word"], "beta"),
    "word <> 'beta'": lambda t: pc.not_equal(t["word"], "beta"),
    "word in ('alpha', 'Delta')": lambda t: pc.and_kleene(pc.is_in(t["word"], pa.array(["alpha", "Delta"])), pc.is_valid(t["word"])),
    "word is null": lambda t: pc.is_null(t["word"]),
    "word like '%a'": lambda t: pc.ends_with(t["word"], "a"),
    "text like 'row 77%'": lambda t: pc.starts_with(t["text"], "row 77"),
    "small > 50 or small is null": lambda t: pc.or_kleene(pc.greater(t["small"], 50), pc.is_null(t["small"])),
    "isnan(f)": lambda t: pc.is_nan(t["f"]),
    "price between 10.50 and 11.25": lambda t: pc.and_(pc.greater_equal(t["price"], decimal.Decimal("10.50")), pc.less_equal(t["price"], decimal.Decimal("11.25"))),
    "at < arrow_cast('2023-11-14T23:00:00Z', 'Timestamp(Microsecond, Some(\"UTC\"))')": lambda t: pc.less(t["at"], pa.scalar(datetime.datetime(2023, 11, 14, 23, tzinfo=datetime.timezone.utc), pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "Europe/Zurich"))),
    "day = date '2024-02-29'": lambda t: pc.equal(t["day"], datetime.date(2024, 2, 29)),
    "point['x'] = 4": lambda t: pc.equal(pc.struct_field(t["point"], "x"), 4),
    "flag": lambda t: t["flag"],
    "not flag and id % 2 = 0": lambda t: pc.and_kleene(pc.invert(t["flag"]), pc.equal(pc.bit_wise_and(t["id"], 1), 0)),
    "id < 0": lambda t: pc.less(t["id"], 0),
}


@pytest.mark.parametrize("sql", FILTERS)
def test_filter(server, url, table, sql):
    expected = table.filter(FILTERS[sql](table))
    assert same(server.scan(url, filter=sql), expected)
    assert same(server.scan(url, filter=sql, columns=["text", "word"], limit=7), expected.select(["text", "word"]).slice(0, 7))


def test_limit_and_rows(server, url, table):
    assert same(server.scan(url, limit=9_001), table.slice(0, 9_001))
    assert server.scan(url, limit=0).num_rows == 0
    rows = [49_999, 0, 9_000, 8_999, 0, 31_337]
    assert same(server.scan(url, rows=rows), table.take(rows))
    assert same(server.scan(url, rows=rows, filter="id > 0", columns=["text"]), table.take([49_999, 9_000, 8_999, 31_337]).select(["text"]))
    with pytest.raises(pa.ArrowInvalid, match="no row 50000"):
        server.scan(url, rows=[ROWS])


def test_second_read_hits(server, url):
    server.act("evict", {"url": url})

    def stats():
        reader = server.client.do_get(flight.Ticket(json.dumps({"url": url, "columns": ["id", "word"]}).encode()))
        last = None
        for chunk in reader:
            last = json.loads(chunk.app_metadata.to_pybytes())
        return last

    cold, warm = stats(), stats()
    assert cold["chunks_missed"] == 12 and cold["chunks_hit"] == 0
    assert warm["chunks_hit"] == 12 and warm["chunks_missed"] == 0 and warm["store_bytes"] == 0
    assert cold["rows"] == ROWS
    assert {"bytes", "fetch_us", "decode_us", "filter_us", "encode_us"} <= warm.keys()


def test_prefix_glob_and_hive(server, s3, table):
    for year in (2023, 2024):
        for region in ("eu", "us"):
            part = table.slice((year - 2023) * 1_000 + (500 if region == "us" else 0), 500)
            s3.put(f"hive/year={year}/region={region}/part.parquet", parquet(part))
    whole = server.scan("s3://lake/hive/")
    assert whole.num_rows == 2_000
    assert whole.schema.field("year").type == pa.int64() and whole.schema.field("region").type == pa.string()
    some = server.scan("s3://lake/hive/", filter="year = 2024 and region = 'eu' and id < 1100", columns=["id", "region"])
    assert some.column("id").to_pylist() == list(range(1_000, 1_100)) and set(some.column("region").to_pylist()) == {"eu"}
    assert server.scan("s3://lake/hive/year=2023/**/*.parquet", columns=[]).num_rows == 1_000
    info = server.client.get_flight_info(flight.FlightDescriptor.for_command(json.dumps({"url": "s3://lake/hive/", "filter": "year = 2023"})))
    shares = pa.concat_tables(server.client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints)
    assert shares.num_rows == 1_000 and shares.schema.names == whole.schema.names


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
def test_codecs_and_pages(server, s3, table, codec, page):
    url = s3.put(f"codecs/{codec}-{page}.parquet", parquet(table.slice(0, 5_000), compression=codec, data_page_version=page))
    assert same(server.scan(url), table.slice(0, 5_000))


def test_shapes(server, s3):
    shapes = {
        "empty": pa.table({"a": pa.array([], pa.int64()), "s": pa.array([], pa.string())}),
        "wide": pa.table({f"c{i}": [i, None] for i in range(2_000)}),
        "long": pa.table({"s": ["x" * 1_000_000, None, "y" * 900_000] * 10}),
        "nulls": pa.table({"n": pa.nulls(1_000), "i": pa.nulls(1_000, pa.int32())}),
        "categories": pa.table({"k": pa.array(["a", "b", None] * 10_000).dictionary_encode()}),
        "large": pa.table({"s": pa.array(["a", None, "b" * 50], pa.large_string()), "b": pa.array([b"\0", b"", None], pa.large_binary())}),
        "views": pa.table({"s": pa.array(["short", None, "a long string beyond twelve bytes"] * 5_000, pa.string_view())}),
        "times": pa.table({unit: pa.array([1, None, -1], pa.timestamp(unit, "Asia/Kolkata")) for unit in ("ms", "us", "ns")} | {"d": pa.array([1, 2, None], pa.duration("us")), "t": pa.array([1, None, 3], pa.time64("ns"))}),
        "decimals": pa.table({"small": pa.array([decimal.Decimal("1.5"), None], pa.decimal128(3, 1)), "big": pa.array([None, decimal.Decimal("-9" * 1)], pa.decimal256(60, 3))}),
        "fixed": pa.table({"b": pa.array([b"abc", None], pa.binary(3)), "l": pa.array([[1, 2], None], pa.list_(pa.int16(), 2)), "h": pa.array(np.array([1.5, -0.0], np.float16))}),
        "maps": pa.table({"m": pa.array([[("a", [1, None])], None, []], pa.map_(pa.string(), pa.list_(pa.int64())))}),
    }
    for name, table in shapes.items():
        url = s3.put(f"shapes/{name}.parquet", parquet(table))
        assert same(server.scan(url), table), name


def test_frames_stay_within_the_default_grpc_limit(server, s3, table):
    import grpc
    big = pa.table({"text": ["x" * (i % 2_000_000) for i in range(0, 30_000_000, 400_009)]})
    s3.put("frames/a.parquet", parquet(table))
    s3.put("frames/b.parquet", parquet(big))
    channel = grpc.insecure_channel(server.uri.removeprefix("grpc+tcp://"))
    do_get = channel.unary_stream("/arrow.flight.protocol.FlightService/DoGet")
    for name in "ab":
        ticket = json.dumps({"url": f"s3://lake/frames/{name}.parquet"}).encode()
        length = bytes([len(ticket)])
        call = do_get(b"\x0a" + length + ticket)
        sizes = [len(message) for message in call]
        assert len(sizes) > 1 and max(sizes) <= 2 << 20, (name, max(sizes))
        trailers = dict(call.trailing_metadata())
        assert json.loads(trailers["flightcache-scan-stats"])["rows"] == {"a": ROWS, "b": big.num_rows}[name]


def test_an_overwrite_is_seen_at_once(server, s3):
    for value in (1, 2):
        url = s3.put("fresh/t.parquet", parquet(pa.table({"v": [value] * 1_000})))
        assert set(server.scan(url).column("v").to_pylist()) == {value}
    s3.fs.delete_file("lake/fresh/t.parquet")
    with pytest.raises(pa.lib.ArrowKeyError, match="fresh/t.parquet"):
        server.scan(url)
