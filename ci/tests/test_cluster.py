"""Two servers of a cluster, each a process, from the command line."""

import json
import os
import signal
import socket
import subprocess
import time

import pyarrow as pa
import pytest
from conftest import BIN, Server
from test_scans import parquet


def cli(server, *args, check=True):
    result = subprocess.run([BIN / "flightcache", "--server", server.uri, *args], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def free_udp(count):
    """Gossip addresses nobody listens on."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def nodes(server):
    return {node["uri"]: node for node in json.loads(cli(server, "nodes", "--json").stdout)}


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def pair(s3, tmp_path):
    addresses = free_udp(2)
    started = []
    for at in range(2):
        gossip = ("--gossip", addresses[at], "--seed", *addresses)
        weight = ("--weight", str(1 + 2 * at), "--data-directory", tmp_path / str(at))
        server = Server("--source", "s3://lake/", "--cluster", "test", *gossip, *weight, env=s3.env)
        server.gossip = gossip[1]
        started.append(server)
    yield started
    for server in started:
        if server.process.poll() is None:
            server.stop()


def test_nodes_slots_drain(pair, s3):
    first, second = pair
    both = {first.uri, second.uri}
    is_whole = lambda server: {uri for uri, node in nodes(server).items() if node["slots_owned"] > 0 and node["state"] == "active"} == both
    until(lambda: is_whole(first) and is_whole(second))
    seen = nodes(first)
    assert [node["state"] for node in seen.values()] == ["active", "active"]
    assert sum(node["slots_preferred"] for node in seen.values()) == 16_384
    assert 0.9 < seen[second.uri]["slots_preferred"] / (0.75 * 16_384) < 1.1
    table = cli(second, "nodes").stdout
    for text in (first.uri, second.uri, "active", "share", seen[first.uri]["id"]):
        assert text in table, table
    slots = cli(first, "slots").stdout
    assert all(node["id"] in slots for node in seen.values()) and "epoch" in slots
    epoch = json.loads(cli(first, "slots", "--json").stdout)["epoch"]

    url = s3.put("cluster/t.parquet", parquet(pa.table({"v": range(1_000)})))
    drained = seen[second.uri]["id"]
    assert cli(first, "drain", drained[:13]).stdout == f"{drained} is draining\n"
    until(lambda: nodes(first)[first.uri]["slots_owned"] == 16_384)
    assert nodes(first)[second.uri]["state"] == "draining" and nodes(first)[second.uri]["slots_owned"] == 0
    assert json.loads(cli(first, "slots", "--json").stdout)["epoch"] > epoch
    for server in pair:
        assert server.scan(url).column("v").to_pylist() == list(range(1_000))
    failed = cli(first, "drain", "nobody", check=False)
    assert failed.returncode == 1 and "nobody" in failed.stderr
    again = json.loads(cli(second, "drain", drained, "--json").stdout)
    assert again["state"] == "draining"
    # It leaves with a farewell, long before its silence would tell.
    second.stop()
    began = time.monotonic()
    until(lambda: set(nodes(first)) == {first.uri})
    assert time.monotonic() - began < 2


def test_a_killed_node_is_gone_within_the_bound_and_comes_back(pair, s3, tmp_path):
    first, second = pair
    until(lambda: all(node["state"] == "active" for node in nodes(first).values()) and len(nodes(first)) == 2)
    name = nodes(first)[second.uri]["id"]
    time.sleep(2)
    second.process.send_signal(signal.SIGKILL)
    second.process.wait()
    began = time.monotonic()
    until(lambda: set(nodes(first)) == {first.uri})
    # The bound is 5 s; the rest is the command line's own.
    assert time.monotonic() - began < 7
    [gossip] = free_udp(1)
    again = Server("--source", "s3://lake/", "--cluster", "test", "--gossip", gossip, "--seed", first.gossip,
                   "--data-directory", tmp_path / "1", env=s3.env)
    until(lambda: {node["id"] for node in nodes(first).values() if node["slots_owned"] > 0} >= {name} and len(nodes(first)) == 2)
    assert nodes(first)[again.uri]["id"] == name
    again.stop()


def test_a_node_that_stands_still_holds_nobody_for_long(pair, s3):
    first, second = pair
    until(lambda: all(node["state"] == "active" for node in nodes(first).values()) and len(nodes(first)) == 2)
    name = nodes(first)[second.uri]["id"]
    second.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        # Both begin while the first still believes in the second.
        evicted = subprocess.Popen([BIN / "flightcache", "--server", first.uri, "evict", "s3://lake/cluster/"], stderr=subprocess.PIPE, text=True)
        stats = json.loads(cli(first, "stats", "--cluster", "--json").stdout)
        assert "uptime_s" in json.dumps(stats) and name in json.dumps(stats)
        # Once it is lost, there is nobody left to be told.
        error = evicted.communicate()[1]
        assert evicted.returncode == 0, error
        # The bound is 5 s; a client asks who is lost every 3 s.
        assert time.monotonic() - began < 15
    finally:
        second.process.send_signal(signal.SIGCONT)


def test_mistakes_are_refused(s3, tmp_path):
    run = lambda *args: subprocess.run(
        [BIN / "flightcache-server", "--admin", "127.0.0.1:0", "--source", "s3://lake/", *args],
        capture_output=True, text=True, env={**os.environ, **s3.env})
    for args, named in [(("--seed", "a:1"), "--cluster"), (("--cluster", "c", "--seed", "a"), "seed"), (("--cluster", "c", "--weight", "0"), "weight"),
                        (("--cluster", "c", "--listen", "0.0.0.0:0"), "--advertise")]:
        failed = run(*args)
        assert failed.returncode == 2 and named in failed.stderr, (args, failed.stderr)


def test_a_server_alone_has_one_node(server):
    [node] = json.loads(cli(server, "nodes", "--json").stdout)
    assert node["uri"] == server.uri and node["state"] == "active" and node["slots_owned"] == 16_384
    assert "100.0 %" in cli(server, "nodes").stdout
    assert "no cluster" in cli(server, "drain", node["id"], check=False).stderr
