"""Between the server and a real S3: how often it asks, and what it does when the store fails."""

import concurrent.futures
import random
import re
import time
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import Server
from proxy import Proxy
from test_scans import parquet

ROWS = 40_000


@pytest.fixture(scope="module")
def proxy(s3):
    proxy = Proxy(s3.endpoint)
    yield proxy
    proxy.shutdown()


@pytest.fixture
def start(s3, proxy):
    """Starts servers behind the proxy; what they asked while starting is not counted."""
    servers = []

    def start(*args):
        proxy.fate = lambda *_: None
        servers.append(Server("--source", "s3://lake/", "--freshness", "immutable", *args, env={**s3.env, "AWS_ENDPOINT_URL": proxy.endpoint}))
        proxy.take()
        return servers[-1]

    yield start
    proxy.fate = lambda *_: None
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    return pa.table({"c0": np.arange(ROWS), **{f"c{i}": rng.random(ROWS) for i in range(1, 20)}})


@pytest.fixture(scope="module")
def url(s3, table):
    return s3.put("store/t.parquet", parquet(table, row_group_size=10_000, use_dictionary=False, compression="none"))


def metric(server, name):
    text = urllib.request.urlopen(server.admin + "/metrics").read().decode()
    return float(re.search(rf"^flightcache_{name} (\S+)", text, re.M)[1])


def data_bytes(requests):
    """Bytes asked for by ranges that are not suffixes."""
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", r) for _, _, r in requests if r]
    return sum(int(m[2]) - int(m[1]) + 1 for m in ranges if m)


def test_two_hundred_clients_of_a_cold_object(start, proxy, url, table):
    server = start()
    server.scan(url)
    alone = sorted(proxy.take())
    server.act("evict", {"url": url})
    clients = [flight.connect(server.uri) for _ in range(200)]
    ticket = flight.Ticket(b'{"url": "%s"}' % url.encode())
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda client: client.do_get(ticket).read_all(), clients))
    assert all(answer.equals(table) for answer in answers)
    together = sorted(proxy.take())
    print("requests of one client", len(alone), "of two hundred", len(together))
    assert together == alone


def test_two_of_twenty_columns(start, proxy, url, table):
    server = start()
    assert server.scan(url, columns=["c3", "c17"]).equals(table.select(["c3", "c17"]))
    requests = proxy.take()
    print("requests", len(requests), "bytes", data_bytes(requests), "of", table.nbytes)
    assert len(requests) == 1 + 2 * 4 and requests[0][2].startswith("bytes=-")
    assert data_bytes(requests) < 1.05 * 2 * 8 * ROWS


def test_a_point_filter_on_a_sorted_column(start, proxy, url):
    server = start()
    assert server.scan(url, columns=["c0", "c9"], filter="c0 = 23456")["c0"].to_pylist() == [23_456]
    requests = proxy.take()
    print("requests", len(requests), "bytes", data_bytes(requests))
    assert len(requests) == 3 and data_bytes(requests) < 1.05 * 2 * 8 * 10_000


def test_a_second_scan(start, proxy, url, table):
    server = start()
    server.scan(url)
    proxy.take()
    assert server.scan(url).equals(table)
    assert server.scan(url, filter="c1 < 0.5", columns=["c2"]).num_rows > 0
    assert proxy.take() == []


def test_bloom_filters_skip_row_groups(start, proxy, s3):
    rng = np.random.default_rng(5)
    # Every row group spans the same range, so that statistics cannot tell.
    keys = rng.permutation(np.arange(0, 2 * ROWS, 2))
    table = pa.table({"key": keys, "s": [f"k{k}" for k in keys], "v": np.arange(ROWS)})
    url = s3.put("store/bloom.parquet", parquet(table, row_group_size=4_000, bloom_filter_options={"key": True, "s": True}))
    server = start()
    wanted = int(keys[23_456])
    assert server.scan(url, filter=f"key = {wanted}")["v"].to_pylist() == [23_456]
    cold = data_bytes(proxy.take())
    assert server.act("stats")[0]["resident_chunks"] == 3, "the columns of one row group of ten"
    assert server.scan(url, filter=f"s IN ('k{wanted}', 'none')")["v"].to_pylist() == [23_456]
    proxy.take()
    # No row group can hold it: its data is not read, and the filters are known by now.
    for nothing in (f"key = {wanted + 1}", "s = 'k1'"):
        assert server.scan(url, filter=nothing).num_rows == 0
    assert proxy.take() == []
    print("bytes read for one key", cold)


@pytest.mark.parametrize("fate", [503, "reset", "reset-body", "short-body"])
def test_failures_that_pass_are_retried(start, proxy, url, table, fate):
    server = start()
    dice = random.Random(11)
    before = proxy.failed
    proxy.fate = lambda *_: fate if dice.random() < 0.3 else None
    for _ in range(3):
        assert server.scan(url).equals(table)
        server.act("evict", {"url": url})
    failures = proxy.failed - before
    print(fate, failures, "failures, retries", metric(server, "store_retries_total"))
    assert failures >= 2 and metric(server, "store_retries_total") == failures


def test_a_store_that_stays_down_is_unavailable(start, proxy, url, table):
    server = start("--store-retries", "2")
    proxy.fate = lambda *_: 503
    with pytest.raises(flight.FlightUnavailableError, match=re.escape(url)):
        server.scan(url)
    assert len(proxy.take()) == 3
    proxy.fate = lambda *_: None
    assert server.scan(url).equals(table)
    # Data may fail after the footer was read, and after rows have been sent: an error, never a short answer.
    server.act("evict", {"url": url})
    proxy.fate = lambda number, *_: "reset" if number > 3 else None
    proxy.take()
    with pytest.raises(flight.FlightUnavailableError):
        server.scan(url)
    stats = server.act("stats")[0]
    assert stats["in_flight_bytes"] == 0


def test_a_store_that_stalls_is_given_up(start, proxy, url, table):
    server = start("--store-timeout", "300ms", "--store-retries", "2")
    proxy.fate = lambda number, *_: "stall" if number == 2 else None
    assert server.scan(url).equals(table)
    server.act("evict", {"url": url})
    proxy.fate = lambda *_: "stall"
    started = time.monotonic()
    with pytest.raises(flight.FlightUnavailableError, match=re.escape(url)):
        server.scan(url)
    assert time.monotonic() - started < 20
    proxy.fate = lambda *_: None
    assert server.scan(url).equals(table)
