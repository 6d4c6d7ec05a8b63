"""Scans, and who reads them."""

import asyncio
import concurrent.futures
import pickle
import re

import duckdb
import flightcache
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import ROWS, parquet, servers, values
from flightcache import answers


def test_types(cache, url, table):
    read = pa.table(cache.scan(url))
    assert read.schema.names == table.schema.names and values(read) == values(table)
    assert pa.schema(cache.scan(url)) == read.schema
    strings = {pa.string(), pa.string_view()}
    assert all(a.type == b.type or {a.type, b.type} <= strings for a, b in zip(read.schema, table.schema) if not pa.types.is_nested(a.type))


FILTERS = {
    "id < 24": lambda t: pc.less(t["id"], 24),
    "word = 'beta' and id % 2 = 0": lambda t: pc.and_kleene(pc.equal(t["word"], "beta"), pc.equal(pc.bit_wise_and(t["id"], 1), 0)),
    "word is null": lambda t: pc.is_null(t["word"]),
    "text like 'row 77%'": lambda t: pc.starts_with(t["text"], "row 77"),
    "isnan(f)": lambda t: pc.is_nan(t["f"]),
    "id < 0": lambda t: pc.less(t["id"], 0),
}


@pytest.mark.parametrize("sql", FILTERS)
def test_filter_projection_limit(cache, url, table, sql):
    expected = table.filter(FILTERS[sql](table))
    assert values(cache.scan(url, filter=sql).to_arrow()) == values(expected)
    few = cache.scan(url, filter=sql, columns=["text", "word"], limit=7)
    assert values(few.to_arrow()) == values(expected.select(["text", "word"]).slice(0, 7))


def test_no_columns_and_no_rows(cache, url):
    counted = cache.scan(url, columns=[]).to_arrow()
    assert (counted.num_columns, counted.num_rows) == (0, ROWS)
    assert sum(batch.num_rows for batch in cache.scan(url, columns=[])) == ROWS
    assert cache.scan(url, limit=0).to_arrow().num_rows == 0


def test_readers(cache, url, table):
    plain = table.select(["id", "small", "f", "word", "text", "price", "at", "day", "flag"])
    rows = cache.scan(url, columns=plain.schema.names)
    assert polars.DataFrame(rows).equals(polars.from_arrow(plain), null_equal=True)
    ours = duckdb.sql("SELECT word, count(*), sum(id), max(price), min(day) FROM rows GROUP BY word ORDER BY word").fetchall()
    assert ours == duckdb.sql("SELECT word, count(*), sum(id), max(price), min(day) FROM plain GROUP BY word ORDER BY word").fetchall()
    assert rows.to_pandas().equals(pa.table(rows).to_pandas())
    assert list(rows.to_pandas()["text"]) == plain["text"].to_pylist()
    read = pa.RecordBatchReader.from_stream(rows).read_all()
    assert values(read) == values(plain)


def test_each_reading_asks_anew(s3, cache):
    old, new = pa.table({"a": [1, 2]}), pa.table({"a": [3, 4, 5]})
    url = s3.put("python/again.parquet", parquet(old))
    rows = cache.scan(url)
    assert rows.to_arrow() == old and pa.table(rows) == old
    s3.put("python/again.parquet", parquet(new))
    assert rows.to_arrow() == new
    # Planned while there was the old one, read when there is a new one.
    planned = cache.scan(url)
    s3.put("python/again.parquet", parquet(old))
    assert planned.to_arrow() == old


def test_rows_are_read_as_they_are_taken(s3, server, cache):
    table = pa.table({"n": pa.array(range(8_000_000), pa.int64())})
    url = s3.put("python/long.parquet", parquet(table, row_group_size=250_000))
    pa.table(cache.scan(url))
    before = cache.stats()
    cache.scan(url)
    assert cache.stats()["scans"] == before["scans"]
    batches = iter(cache.scan(url))
    assert next(batches)["n"].to_pylist()[:3] == [0, 1, 2]
    batches.close()
    assert list(batches) == []
    assert cache.stats()["served_bytes"] - before["served_bytes"] < table.nbytes // 2


def test_threads_and_tasks(cache, url, table):
    def count(word):
        rows = cache.scan(url, columns=["id"], filter=f"word = '{word}'")
        return rows.to_arrow().num_rows + pa.table(rows).num_rows

    words = ["alpha", "beta", "gamma", "Delta"] * 4
    expected = [2 * pc.sum(pc.equal(table["word"], word)).as_py() for word in words]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count, words)) == expected

    async def gathered():
        return await asyncio.gather(*(asyncio.to_thread(count, word) for word in words))

    assert asyncio.run(gathered()) == expected


def test_pickled_it_connects_anew(cache, url):
    again = pickle.loads(pickle.dumps(cache))
    assert again.location == cache.location and again.scan(url, limit=1).to_arrow().num_rows == 1


def test_mistakes_are_typed_and_name_the_object(cache, url):
    missing = url.replace("table.parquet", "missing.parquet")
    for kind, text, ask in [
        (flightcache.NotFound, "missing.parquet", lambda: cache.scan(missing)),
        (flightcache.NotFound, "missing.parquet", lambda: cache.table(missing)),
        (flightcache.NotFound, "missing.parquet", lambda: cache.register("t", missing)),
        (flightcache.NotFound, "missing.parquet", lambda: cache.sql(f"SELECT * FROM '{missing}'")),
        (flightcache.NotFound, "missing.parquet", lambda: cache.warm(missing)),
        (flightcache.NotFound, "missing.parquet", lambda: cache.info(missing)),
        (flightcache.NotFound, '"b"', lambda: cache.scan(url, columns=["b"])),
        (flightcache.NotFound, "nope", lambda: cache.sql(f"SELECT nope FROM '{url}'")),
        (flightcache.InvalidRequest, "id +", lambda: cache.scan(url, filter="id +")),
        (flightcache.InvalidRequest, "SELEC", lambda: cache.sql("SELEC 1")),
        (flightcache.InvalidRequest, "unregistered", lambda: cache.sql("SELECT * FROM unregistered")),
        (flightcache.InvalidRequest, "zero", lambda: cache.sql(f"SELECT id / (id - id) FROM '{url}'").to_arrow()),
        (flightcache.Denied, "s3://other", lambda: cache.scan("s3://other/t.parquet")),
        (flightcache.Denied, "s3://other", lambda: cache.sql("SELECT * FROM 's3://other/t.parquet'")),
        (flightcache.Unavailable, "127.0.0.1:1", lambda: flightcache.connect("grpc://127.0.0.1:1")),
        (flightcache.InvalidRequest, "nonsense", lambda: flightcache.connect("nonsense")),
    ]:
        with pytest.raises(kind, match=re.escape(text)) as error:
            ask()
        assert isinstance(error.value, flightcache.Error) and error.value.kind == kind.kind


def test_there_is_a_class_for_each_kind():
    kinds = re.search(r"ALL: \[Self; (\d+)\]", (servers.ROOT / "flight-proto/src/error.rs").read_text()).group(1)
    assert len(flightcache.errors.BY_KIND) == int(kinds)
    assert flightcache.Unavailable.is_retryable and not flightcache.NotFound.is_retryable


def test_errors_amid_rows(s3, server, cache, table):
    body = bytearray(parquet(table.select(["id"]), row_group_size=5_000, use_dictionary=False, compression="snappy"))
    chunk = pq.ParquetFile(pa.BufferReader(bytes(body))).metadata.row_group(7).column(0)
    body[chunk.data_page_offset:chunk.data_page_offset + 40] = bytes(40)
    url = s3.put("python/corrupt.parquet", bytes(body))
    read = []
    with pytest.raises(flightcache.Corrupt, match="corrupt.parquet"):
        read.extend(cache.scan(url))
    assert sum(batch.num_rows for batch in read) == 7 * 5_000
    with pytest.raises(flightcache.Corrupt, match="corrupt.parquet"):
        cache.scan(url).to_arrow()
    with pytest.raises(flightcache.Corrupt, match="corrupt.parquet"):
        cache.sql(f"SELECT sum(id + 0) FROM '{url}'").to_arrow()
    with pytest.raises(OSError, match="corrupt: .*corrupt.parquet"):
        pa.table(cache.scan(url))


def test_looking_after_it(s3, cache, table, capsys):
    url = s3.put("python/warm.parquet", parquet(table, row_group_size=10_000))
    steps = []
    done = cache.warm(url, columns=["id", "word"], progress=steps.append)
    assert (done["row_groups_done"], done["row_groups_total"], done["chunks_missed"]) == (5, 5, 10)
    assert steps[-1] == done and [step["row_groups_done"] for step in steps] == sorted(step["row_groups_done"] for step in steps)
    capsys.readouterr()
    assert cache.warm(url, columns=["id"])["chunks_hit"] == 5
    assert capsys.readouterr().err == ""
    cache.warm(url, columns=["id"], progress=True)
    assert "5/5" in capsys.readouterr().err
    [held] = cache.info(url)
    assert held["rows"] == ROWS and len(held["row_groups"]) == 5
    assert [column["resident_chunks"] for column in held["columns"][:4]] == [5, 0, 0, 5]
    evicted = cache.evict(url)
    assert evicted["chunks"] == 10 and set(answers.Evicted.__annotations__) == set(evicted)
    stats = cache.stats()
    assert stats["capacity_bytes"] == 256 << 20
    column, group = held["columns"][0], held["row_groups"][0]
    for answer, told in [(answers.WarmProgress, done), (answers.ObjectInfo, held), (answers.ColumnInfo, column), (answers.RowGroupInfo, group), (answers.Stats, stats)]:
        assert set(answer.__annotations__) == set(told)
    assert cache.set_capacity(200 << 20)["capacity_bytes"] == 200 << 20
    cache.set_capacity(256 << 20)


def test_what_a_bar_raises_ends_the_work(cache, url):
    def fail(step):
        raise LookupError("as asked")

    with pytest.raises(LookupError, match="as asked"):
        cache.warm(url, progress=fail)
