"""The queries of TPC-H and ClickBench: each door of the cache answers them as plain DataFusion does that reads the same Parquet."""

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


def ask(suite, data, capacity):
    """Cold, then warm; the program fails where answers differ."""
    command = [BIN / "flightcache-bench", "sql", "--suite", suite, "--data", data, "--doors", DOORS, "--capacity", capacity, "--rounds", "1", "--latency", "0ms"]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert "every side answered" in asked.stdout


# A cache of everything, and of about a tenth of it.
@pytest.mark.parametrize("capacity", ["1GiB", "16MiB"])
def test_tpch(tpch, capacity):
    ask("tpch", tpch, capacity)


@pytest.mark.parametrize("capacity", ["1GiB", "2MiB"])
def test_clickbench(clickbench, capacity):
    ask("clickbench", clickbench, capacity)
