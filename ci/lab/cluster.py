"""A cluster on the laboratory's hosts: a store with data, servers, and clients that ask all the time."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq

from lab.hosts import address_of
from lab.seaweed import SeaweedFS

FLIGHT, ADMIN, GOSSIP, S3 = 50051, 50052, 50053, 8333
URL = "s3://lake/table/"
# Run on the store's host, where it is quick.
UPLOAD = """
import os, sys
from pyarrow import fs
s3 = fs.S3FileSystem(access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
                     endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True)
s3.create_dir("lake")
fs.copy_files(sys.argv[1], "lake/table", source_filesystem=fs.LocalFileSystem(), destination_filesystem=s3)
"""


def until(condition, what, timeout=180.0):
    """Waits for a condition, and tells how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"after {timeout} s still not: {what}"
        # What is waited for is measured at times, and must not be disturbed.
        time.sleep(0.1)
    return time.monotonic() - began


class Store:
    """SeaweedFS on the host `store`, with tables that make up one, under [`URL`]."""

    def __init__(self, hosts, directory):
        self.hosts, self.directory = hosts, pathlib.Path(directory)
        (self.directory / "store").mkdir()
        popen = lambda command, **options: hosts.popen("store", command, **options)
        page = lambda _, port, path: hosts.http("store", port, path)
        self.server = SeaweedFS(self.directory / "store", address_of("store"), S3, popen, page)
        self.env = {**os.environ, **self.server.env}

    def put(self, tables, row_group_size):
        """Writes each as an object, and all, as pyarrow reads them back, to a file for clients to compare with."""
        objects = self.directory / "objects"
        objects.mkdir()
        for at, table in enumerate(tables):
            pq.write_table(table, objects / f"{at:03}.parquet", row_group_size=row_group_size)
        self.hosts.run("store", [sys.executable, "-c", UPLOAD, objects], env=self.env)
        self.expected = self.directory / "expected.arrow"
        with pa.OSFile(str(self.expected), "wb") as file:
            read = [pq.read_table(path) for path in sorted(objects.iterdir())]
            with pa.ipc.new_file(file, read[0].schema) as writer:
                for table in read:
                    writer.write_table(table)
        return sum(table.nbytes for table in read)


class Node:
    """A server of a cluster, on a host of its own. It may be started again, with the same data directory."""

    def __init__(self, store, binaries, host, name, settings=()):
        self.hosts, self.host, self.binaries, self.env = store.hosts, host, pathlib.Path(binaries), store.env
        directory = store.directory / f"{name}-{host}"
        directory.mkdir()
        self.uri = f"grpc+tcp://{address_of(host)}:{FLIGHT}"
        self.log = open(directory / "log", "ab")
        self.command = [
            self.binaries / "flightcache-server", "--listen", f"{address_of(host)}:{FLIGHT}", "--admin", f"{address_of(host)}:{ADMIN}",
            "--cluster", name, "--gossip", f"{address_of(host)}:{GOSSIP}", "--data-directory", directory, "--source", "s3://lake/",
            *(word for seed in ("s1", "s2", "s3") for word in ("--seed", f"{address_of(seed)}:{GOSSIP}")), *settings]

    def start(self):
        self.process = self.hosts.popen(self.host, self.command, env=self.env, stdout=subprocess.PIPE, stderr=self.log)

    def ready(self):
        line = self.process.stdout.readline()
        assert b" ready " in line, f"{self.host} ended with {self.process.wait()}: {pathlib.Path(self.log.name).read_text()[-2000:]}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=90)
        assert code == 0, f"{self.host} ended with {code}"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def metrics(self):
        lines = self.hosts.http(self.host, ADMIN, "/metrics").splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}

    def nodes(self):
        """The nodes as this one sees them, by URI."""
        told = self.hosts.run(self.host, [self.binaries / "flightcache", "--server", self.uri, "nodes", "--json"])
        return {node["uri"]: node for node in json.loads(told)}

    def slots(self):
        """The slot map as this one sees it."""
        return json.loads(self.hosts.run(self.host, [self.binaries / "flightcache", "--server", self.uri, "slots", "--json"]))


class Cluster:
    """Servers that know each other."""

    def __init__(self, store, binaries, hosts, name, settings=()):
        self.make = lambda host: Node(store, binaries, host, name, settings)
        self.node = {host: self.make(host) for host in hosts}
        for node in self.node.values():
            node.start()
        for node in self.node.values():
            node.ready()
        self.settle(*hosts)

    def add(self, host):
        self.node[host] = self.make(host)
        self.node[host].start()
        self.node[host].ready()

    def settle(self, *hosts):
        """Waits until these see that they are all there is, and each owns slots. Tells how long that took."""
        all_there_is = {self.node[host].uri for host in hosts}
        def sees_all(host):
            seen = {uri for uri, node in self.node[host].nodes().items() if node["state"] == "active" and node["slots_owned"] > 0}
            return seen == all_there_is

        def agree():
            # What is cheap first: it is asked often.
            metrics = [self.node[host].metrics() for host in hosts]
            counts = {told.get('flightcache_cluster_nodes{state="active"}') for told in metrics}
            epochs = {told["flightcache_cluster_epoch"] for told in metrics}
            return counts == {len(hosts)} and len(epochs) == 1 and all(sees_all(host) for host in hosts)

        return until(agree, f"{', '.join(hosts)} are the cluster")

    def stop(self):
        for node in self.node.values():
            if node.process.poll() is None:
                node.kill()


class Asker:
    """A client on a host: `flightcache-bench ask`. What it tells is in `told` as soon as it is."""

    def __init__(self, store, binaries, host, server, *options, urls=(URL,)):
        self.host, self.told = host, []
        self.errors = open(store.directory / f"{host}.log", "ab")
        command = [pathlib.Path(binaries) / "flightcache-bench", "ask", "--server", f"grpc://{address_of(server)}:{FLIGHT}",
                   *(word for url in urls for word in ("--url", url)), *options]
        self.process = store.hosts.popen(host, command, env=store.env, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.told.append(json.loads(line))

    def since(self, time_s):
        """What it was told of requests that began after a time."""
        return [told for told in self.told if told["due_s"] > time_s]

    def stop(self):
        """Has it end what it is at."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=90) == 0, f"{self.host}: {pathlib.Path(self.errors.name).read_text()[-2000:]}"
        self.reader.join()
