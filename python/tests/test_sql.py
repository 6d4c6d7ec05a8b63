"""The embedded engine and the `datafusion` package's, against the latter's over the file itself."""

import datafusion
import flightcache
import pyarrow as pa
import pytest
from conftest import ROWS, parquet, values

QUERIES = [
    "SELECT * FROM t WHERE id < 24",
    "SELECT id, text FROM t WHERE word = 'beta' AND small > 50 ORDER BY id LIMIT 20",
    "SELECT id FROM t WHERE word IN ('alpha', 'Delta') AND text LIKE '%7 x%' ORDER BY id",
    "SELECT id, upper(word) FROM t WHERE upper(word) = 'DELTA' AND f IS NOT NULL ORDER BY id",
    "SELECT id FROM t WHERE price BETWEEN 10.50 AND 11.25 ORDER BY id",
    "SELECT id FROM t WHERE day = date '2024-02-29' OR point['x'] = 4 ORDER BY id",
    "SELECT id, at FROM t WHERE at < timestamp '2023-11-14T23:00:00Z' ORDER BY id",
    "SELECT id FROM t WHERE isnan(f) AND NOT flag ORDER BY id",
    "SELECT id FROM t WHERE array_length(list) = 3 AND cast(small AS bigint) % 2 = 0 ORDER BY id",
    "SELECT word, count(*), sum(id), min(price), max(at), avg(small) FROM t GROUP BY word ORDER BY word",
    "SELECT count(*), min(id), max(id), min(price), max(day) FROM t",
    "SELECT count(*) FROM t WHERE small IS NULL",
    "SELECT id, text FROM t ORDER BY id DESC LIMIT 5",
    "SELECT a.id, b.text FROM t a JOIN t b ON a.id = b.id + 1 WHERE a.word = 'gamma' AND b.small = 7 ORDER BY a.id",
    "SELECT id FROM t WHERE id IN (SELECT max(id) FROM t GROUP BY day) ORDER BY id",
    "SELECT id FROM t WHERE id > (SELECT avg(id) FROM t) AND word IS NULL ORDER BY id",
    "SELECT id FROM t WHERE false",
]


@pytest.fixture(scope="module")
def plain(path):
    ctx = datafusion.SessionContext()
    ctx.register_parquet("t", path)
    return ctx


@pytest.fixture(scope="module")
def ours(cache, url):
    ctx = datafusion.SessionContext()
    ctx.register_table("t", cache.table(url))
    return ctx


def plan(ctx, query):
    return "\n".join(ctx.sql(f"EXPLAIN FORMAT INDENT {query}").to_pydict()["plan"])


@pytest.mark.parametrize("query", QUERIES)
def test_same_rows(cache, url, plain, ours, query):
    expected = values(plain.sql(query).to_arrow_table())
    assert values(ours.sql(query).to_arrow_table()) == expected
    cache.register("t", url)
    assert values(cache.sql(query).to_arrow()) == expected
    assert values(pa.table(cache.sql(f"WITH t AS (SELECT * FROM '{url}') {query}"))) == expected


def test_names(cache, url):
    cache.register("named", url)
    assert cache.sql("SELECT count(*) AS n FROM named").to_arrow().to_pydict() == {"n": [ROWS]}
    assert cache.sql("SELECT table_name FROM information_schema.tables WHERE table_name = 'named'").to_arrow().num_rows == 1
    assert cache.deregister("named") and not cache.deregister("named")
    with pytest.raises(flightcache.InvalidRequest, match="named"):
        cache.sql("SELECT * FROM named")


def test_views_yes_writing_no(cache, url, tmp_path):
    cache.sql(f"CREATE VIEW even AS SELECT id FROM '{url}' WHERE id % 2 = 0")
    assert cache.sql("SELECT count(*) AS n FROM even WHERE id < 100").to_arrow().to_pydict() == {"n": [50]}
    with pytest.raises(flightcache.InvalidRequest, match="DML"):
        cache.sql(f"COPY even TO '{tmp_path}/even.parquet'")
    assert not list(tmp_path.iterdir())


def test_globs_and_prefixes(s3, cache, table):
    for year, half in [(2023, table.slice(0, 20_000)), (2024, table.slice(20_000))]:
        s3.put(f"python/parts/year={year}/rows.parquet", parquet(half))
    expected = {"n": [20_000, 30_000]}
    for name in ["s3://lake/python/parts/", "s3://lake/python/parts/*/*.parquet"]:
        assert cache.sql(f"SELECT count(*) AS n FROM '{name}' GROUP BY year ORDER BY year").to_arrow().to_pydict() == expected
    ctx = datafusion.SessionContext()
    ctx.register_table("parts", cache.table("s3://lake/python/parts/"))
    assert ctx.sql("SELECT count(*) AS n FROM parts GROUP BY year ORDER BY year").to_pydict() == expected
    assert ctx.sql("SELECT count(*) AS n FROM parts WHERE year = 2024").to_pydict() == {"n": [30_000]}


def test_statistics_answer(cache, url, ours):
    cache.register("t", url)
    before = cache.stats()["scans"]
    for _ in range(2):
        assert ours.sql("SELECT count(*), min(id), max(id) FROM t").to_pydict() == {"count(*)": [ROWS], "min(t.id)": [0], "max(t.id)": [ROWS - 1]}
        assert cache.sql("SELECT count(*) AS n FROM t").to_arrow().to_pydict() == {"n": [ROWS]}
    assert cache.stats()["scans"] == before


def test_what_can_be_said_crosses_and_the_rest_stays(cache, url, ours):
    said = "SELECT id FROM t WHERE id < 24 AND word LIKE 'a%' AND price IN (0.01, 0.02)"
    assert "FilterExec" not in plan(ours, said)
    before = cache.stats()["served_bytes"]
    assert ours.sql("SELECT id, text FROM t WHERE id = 77").to_pydict()["id"] == [77]
    assert cache.stats()["served_bytes"] - before < 4_000
    partly = plan(ours, "SELECT id FROM t WHERE id < 24 AND upper(word) = 'BETA'")
    assert "FilterExec: upper(word" in partly and "id" not in partly.split("FilterExec:")[1].split(",")[0]


def test_filters_are_estimated(ours):
    ours.sql("SET datafusion.explain.show_statistics = true").collect()
    shown = plan(ours, "SELECT id FROM t WHERE id < 500")
    ours.sql("SET datafusion.explain.show_statistics = false").collect()
    assert "Rows=Inexact(500)" in shown or "Rows=Inexact(501)" in shown, shown


def test_a_sessions_own_function_stays_its_own(ours, plain):
    reverse = lambda words: pa.array([word and word.as_py() and word.as_py()[::-1] for word in words], pa.string())
    for ctx in (ours, plain):
        ctx.register_udf(datafusion.udf(reverse, [pa.string()], pa.string(), "immutable", name="upper"))
    query = "SELECT id FROM t WHERE upper(word) = 'ateb' ORDER BY id LIMIT 9"
    expected = plain.sql(query).to_pydict()
    assert len(expected["id"]) == 9 and ours.sql(query).to_pydict() == expected


def test_dynamic_filters_reach_the_server(s3, cache, url):
    few = s3.put("python/few.parquet", parquet(pa.table({"key": pa.array([77, 9_100], pa.int64())})))
    before = cache.stats()["served_bytes"]
    joined = cache.sql(f"SELECT b.id, b.text FROM '{few}' a JOIN '{url}' b ON a.key = b.id ORDER BY b.id").to_arrow()
    assert joined["id"].to_pylist() == [77, 9_100]
    assert cache.stats()["served_bytes"] - before < 20_000


def test_each_running_reads_anew(s3, cache):
    url = s3.put("python/counted.parquet", parquet(pa.table({"a": [1, 2]})))
    total = cache.sql(f"SELECT sum(a) AS a FROM '{url}'")
    assert total.to_arrow().to_pydict() == {"a": [3]}
    s3.put("python/counted.parquet", parquet(pa.table({"a": [10, 20]})))
    assert total.to_arrow().to_pydict() == {"a": [30]}


def test_another_major_version_is_refused(cache, url, monkeypatch):
    table = cache.table(url)
    monkeypatch.setattr(datafusion, "__version__", "54.1.0")
    with pytest.raises(flightcache.Unsupported, match=r"datafusion 55, not for 54\.1\.0: pip install 'datafusion==55\.\*'"):
        datafusion.SessionContext().register_table("t", table)


def test_errors_name_the_object_over_the_ffi_too(s3, cache):
    gone = s3.put("python/gone.parquet", parquet(pa.table({"a": [1]})))
    ctx = datafusion.SessionContext()
    ctx.register_table("t", cache.table(gone))
    s3.fs.delete_file("lake/python/gone.parquet")
    with pytest.raises(Exception, match="python/gone.parquet"):
        ctx.sql("SELECT * FROM t").collect()
