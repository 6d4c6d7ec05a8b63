"""Three servers, three clients and a store 30 ms away, each on a host of its own, with links of 1 Gbit/s: what clients that ask all the
time notice when a server is killed or stands still, the network splits, and all servers are restarted. Needs network namespaces, and is skipped without."""

import contextlib
import random
import signal
import time

import pyarrow as pa
import pytest
from conftest import BIN
from lab.cluster import Asker, Cluster, Store, until
from lab.hosts import CLIENTS, Hosts, missing

SERVERS = ("s1", "s2", "s3")
# Within this a crash is seen (`--detection-bound`); and what the rest of an answer may take beyond it, on a machine that is busy with other things:
# how long clients stand still is measured by benches/cluster.
BOUND_S, SLACK_S = 5.0, 20.0
# `LOAD_STALL` in server/src/scan/peers/pull.rs: the most, should nobody notice.
LOAD_STALL_S = 30.0

# Connections of clients that were cut off hold a server that ends up for as long as `drain`.
SETTINGS = ("--drain", "10s", "--log", "info,flightcache_server::flight=warn")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    reason = missing()
    if reason:
        pytest.skip(f"the laboratory cannot be built: {reason}")
    with Hosts() as hosts:
        store = Store(hosts, tmp_path_factory.mktemp("lab"))
        # 24 row groups, so that each server owns some: numbers, strings, and nulls.
        chance = random.Random(6)
        rows = range(24_000)
        store.put([
            pa.table({
                "id": pa.array([at * len(rows) + row for row in rows]),
                **{f"x{column}": pa.array([chance.random() for _ in rows]) for column in range(12)},
                "word": pa.array([chance.choice(["", "alpha", "épsilon", "a word that is no dictionary's"]) for _ in rows]),
                "some": pa.array([None if row % 7 == at else row for row in rows], pa.int32()),
            }) for at in range(8)
        ], row_group_size=8_000)
        yield store


class Load:
    """Three clients that ask for everything again and again. Each knows one server at first, and each server will be gone for a while."""

    def __init__(self, store):
        self.askers = [Asker(store, BIN, client, server, "--expect", store.expected) for client, server in zip(CLIENTS, ("s2", "s3", "s1"))]
        self.go_on(3)

    def go_on(self, answers):
        """Waits until each client has had answers to requests that began from now on."""
        now = time.time()
        until(lambda: all(len(asker.since(now)) >= answers or asker.process.poll() is not None for asker in self.askers), f"{answers} more answers")

    @contextlib.contextmanager
    def during(self, what, at_most_retried, bound_s=BOUND_S):
        """Something happens meanwhile, that costs time but no answer."""
        before = [len(asker.told) for asker in self.askers]
        yield
        self.go_on(2)
        for asker, at in zip(self.askers, before):
            told = asker.told[max(at - 1, 0):]
            wrong = [one for one in told if one["wrong"] or one["error"]]
            assert not wrong, f"{what}: {asker.host} was told {wrong}"
            retried = [one for last, one in zip(told, told[1:]) if one["failed_requests"] > last["failed_requests"]]
            stood_s = max(one["stood_ms"] for one in told[1:]) / 1e3
            print(f"{what}: {asker.host} had {len(told) - 1} answers, {len(retried)} after retries, stood still for {stood_s:.2f} s at most")
            assert stood_s < bound_s + SLACK_S, f"{what}: {asker.host} stood still for {stood_s} s"
            assert len(retried) <= at_most_retried, f"{what}: {asker.host} had to retry {retried}"

    def stop(self):
        for asker in self.askers:
            asker.stop()
        assert not [one for asker in self.askers for one in asker.told if one["wrong"] or one["error"]]


@pytest.mark.parametrize("replicas", [1, 2])
def test_clients_lose_nothing_but_time(store, replicas):
    cluster = Cluster(store, BIN, SERVERS, f"lab-{replicas}", ["--replicas", str(replicas), *SETTINGS])
    hosts, node = store.hosts, cluster.node
    # Of two owners the other may be asked as often as it likes.
    at_most_retried = {1: 1, 2: 1_000}[replicas]
    try:
        load = Load(store)
        name = node["s2"].nodes()[node["s2"].uri]["id"]
        with load.during("killed", at_most_retried):
            until(lambda: node["s2"].metrics()["flightcache_active_scans"] > 0, "s2 is in the middle of an answer")
            node["s2"].kill()
            cluster.settle("s1", "s3")
        with load.during("started again", at_most_retried):
            node["s2"].start()
            node["s2"].ready()
            cluster.settle(*SERVERS)
            assert node["s1"].nodes()[node["s2"].uri]["id"] == name, "it is the same node"

        # A second owner may have asked the one that stands still for chunks, and then waits for as long as a load may take to begin.
        with load.during("stopped", at_most_retried, bound_s={1: BOUND_S, 2: LOAD_STALL_S}[replicas]):
            node["s1"].process.send_signal(signal.SIGSTOP)
            cluster.settle("s2", "s3")
        with load.during("going on", at_most_retried):
            node["s1"].process.send_signal(signal.SIGCONT)
            cluster.settle(*SERVERS)

        with load.during("split", at_most_retried):
            hosts.split("s3", "c3")
            cluster.settle("s1", "s2")
            cluster.settle("s3")
        with load.during("healed", at_most_retried):
            hosts.heal()
            cluster.settle(*SERVERS)

        for host in SERVERS:
            with load.during(f"{host} restarted", at_most_retried):
                node[host].stop()
                node[host].start()
                node[host].ready()
                cluster.settle(*SERVERS)
        load.stop()
    finally:
        hosts.heal()
        cluster.stop()
