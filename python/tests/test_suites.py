"""TPC-H (of scale factor FLIGHTCACHE_TEST_SCALE) and ClickBench (over FLIGHTCACHE_TEST_HITS, or a table made up) through both engines, cold and
warm, with a cache of FLIGHTCACHE_TEST_CAPACITY, against the `datafusion` package's over the files themselves."""

import os
import pathlib
import re
import subprocess
import sys
from collections import Counter

import datafusion
import flightcache
import pytest
from conftest import ROOT, load, servers

hits = load("hits", "ci/tests/hits.py")


def queries(suite):
    text = re.sub(r"(?m)^--.*\n", "", (ROOT / f"benches/src/sql/{suite}.sql").read_text())
    return [query for query in map(str.strip, text.split(";\n")) if query]


def close(rows):
    """Rows with numbers to nine digits: sums depend on the order of their terms."""
    shown = lambda value: f"{value:.9g}" if isinstance(value, float) else value
    return [repr([shown(value) for value in row.values()]) for row in rows]


def rows(table):
    """Rows whatever their order."""
    return Counter(close(table.to_pylist()))


def sorted_by(query, table):
    """The answer's rows in turn, of each what it is sorted by, as far as the answer has it."""
    found = re.search(r"(?is).*\border by\s([^()]*(\(\*\))?[^()]*)$", query)
    names = {name.lower(): name for name in table.column_names}
    keys = []
    for key in re.split(r"\s*,\s*", re.sub(r"(?is)\s(limit|offset)\s.*", "", found[1])) if found else []:
        name = re.sub(r'(?is)\s+(desc|asc)\s*$|"', "", key).strip().lower()
        if name not in names:
            break
        keys.append(names[name])
    return table.select(keys).to_pylist()


def unlimited(query):
    """The query without a limit of its own, which may leave open which rows it keeps."""
    return re.sub(r"(?is)\slimit\s[^()]*$", "", query)


@pytest.fixture
def server(s3):
    server = servers.Server("--source", "s3://lake/", "--capacity", os.environ.get("FLIGHTCACHE_TEST_CAPACITY", "256MiB"), env=s3.env)
    yield server
    server.stop()


def joins(engine, query):
    """The joins of a query's plan, from the top, each with what it joins on: build side first."""
    explained = engine.sql(f"EXPLAIN FORMAT INDENT {query}")
    table = explained.to_arrow() if hasattr(explained, "to_arrow") else explained.to_arrow_table()
    [plan] = [row["plan"] for row in table.to_pylist() if row["plan_type"] == "physical_plan"]
    return re.findall(r"Join(?:Exec)?:.*?join_type=(\w+)(?:, on=\[(.*?)\])?", re.sub(r"@\d+", "", plan))


def check(suite, count, files, server, urls):
    cache = flightcache.connect(server.uri)
    plain, ours = datafusion.SessionContext(), datafusion.SessionContext()
    for name, path in files.items():
        plain.register_parquet(name, path)
        ours.register_table(name, cache.table(urls[name]))
        cache.register(name, urls[name])
    asked, compared = queries(suite), 0
    assert len(asked) == count
    for number, query in enumerate(asked, 1):
        table = plain.sql(query).to_arrow_table()
        expected, order = rows(table), close(sorted_by(query, table))
        compared += bool(order) and order[0] != "[]"
        assert joins(cache, query) == joins(plain, query), f"{number}: order of joins"
        for door in (lambda: cache.sql(query).to_arrow(), lambda: ours.sql(query).to_arrow_table()):
            for url in urls.values():
                cache.evict(url)
            for turn in ("cold", "warm"):
                table = door()
                answer = rows(table)
                assert close(sorted_by(query, table)) == order, f"{number}, {turn}: order"
                if answer != expected and unlimited(query) != query:
                    assert answer.total() == expected.total() and answer <= rows(plain.sql(unlimited(query)).to_arrow_table()), f"{number}, {turn}"
                else:
                    assert answer == expected, f"{number}, {turn}"
    assert cache.stats()["chunks_hit"] > 0 and compared > count // 2


def test_tpch(s3, server, tmp_path):
    subprocess.run([pathlib.Path(sys.executable).parent / "tpchgen-cli", "parquet", "-s", os.environ.get("FLIGHTCACHE_TEST_SCALE", "0.01"), "-o", tmp_path], check=True, capture_output=True)
    files = {path.stem: path for path in sorted(tmp_path.glob("*.parquet"))}
    urls = {name: s3.put(f"tpch/{path.name}", path.read_bytes()) for name, path in files.items()}
    check("tpch", 22, files, server, urls)


def test_clickbench(s3, server, tmp_path):
    path = pathlib.Path(os.environ.get("FLIGHTCACHE_TEST_HITS", tmp_path / "hits.parquet"))
    if not path.exists():
        hits.write(path)
    urls = {"hits": s3.put("hits/hits.parquet", path.read_bytes())}
    check("clickbench", 43, {"hits": path}, server, urls)


def test_the_bench_asks_through_this_package(tmp_path):
    hits.write(tmp_path / "hits.parquet")
    command = [servers.BIN / "flightcache-bench", "sql", "--suite", "clickbench", "--data", tmp_path, "--doors", "python", "--queries", "4,8,20,34"]
    asked = subprocess.run([*command, "--rounds", "1", "--latency", "0ms", "--python", sys.executable], capture_output=True, text=True)
    assert asked.returncode == 0 and "every side answered the 4 queries" in asked.stdout, asked.stderr[-3000:]
