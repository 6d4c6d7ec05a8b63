"""The queries of TPC-H and ClickBench: each door of the cache answers them as plain DataFusion does that reads the same Parquet."""

import json
import os
import pathlib
import subprocess

import hits
import pytest
from conftest import BIN

DOORS = "provider,rule,flight-sql"


@pytest.fixture(scope="module")
def tpch(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tpch")
    generator = pathlib.Path(os.environ["FLIGHTCACHE_VENV"]) / "bin/tpchgen-cli"
    subprocess.run([generator, "parquet", "-s", "0.1", "-o", directory], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def clickbench(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clickbench")
    hits.write(directory / "hits.parquet")
    return directory


def ask(suite, data, capacity, tmp_path):
    """Cold, then warm; the program fails where answers differ. The bytes that moved to the provider, warm, query by query."""
    figures = tmp_path / "figures.json"
    command = [BIN / "flightcache-bench", "sql", "--suite", suite, "--data", data, "--doors", DOORS, "--capacity", capacity, "--rounds", "1", "--latency", "0ms", "--json", figures]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert "every side answered" in asked.stdout
    [suite] = json.loads(figures.read_text())["sql"]
    [provider] = [side for side in suite["sides"] if side["name"] == "provider"]
    return [query["warm_bytes"] for query in provider["queries"]]


# A cache of everything, and of about a tenth of it.
@pytest.mark.parametrize("capacity", ["1GiB", "16MiB"])
def test_tpch(tpch, capacity, tmp_path):
    moved = ask("tpch", tpch, capacity, tmp_path)
    # What is aggregated at the data comes as a few states, however many rows there are: of query 1 four groups, of query 6 a sum.
    assert 0 < moved[0] < 20_000 and 0 < moved[5] < 2_000, moved


@pytest.mark.parametrize("capacity", ["1GiB", "2MiB"])
def test_clickbench(clickbench, capacity, tmp_path):
    ask("clickbench", clickbench, capacity, tmp_path)
