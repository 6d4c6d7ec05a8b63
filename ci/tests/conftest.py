"""A real S3 server and real Flightcache servers for the tests, each on ports of its own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

import pyarrow.flight as flight
import pytest
from pyarrow import fs

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from lab.seaweed import SeaweedFS  # noqa: E402

DATA = ROOT / "server/tests/data"
BIN = pathlib.Path(os.environ["CARGO_TARGET_DIR"]) / "debug"


def free_ports(count):
    """A block of consecutive ports nobody listens on."""
    for base in range(21_000, 60_000, count):
        sockets = []
        try:
            for port in range(base, base + count):
                s = socket.socket()
                sockets.append(s)
                s.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()
    raise RuntimeError("no free ports")


class S3(SeaweedFS):
    """SeaweedFS on this host, with a bucket `lake`."""

    def __init__(self, directory):
        super().__init__(directory, "127.0.0.1", free_ports(10))
        self.fs = fs.S3FileSystem(access_key="testkey", secret_key="testsecret", endpoint_override=self.endpoint, region="us-east-1", allow_bucket_creation=True)
        self.fs.create_dir("lake")

    def put(self, key, data):
        with self.fs.open_output_stream(f"lake/{key}") as out:
            out.write(data)
        return f"s3://lake/{key}"


class Server:
    """flightcache-server as a process."""

    def __init__(self, *args, env=None):
        command = [BIN / "flightcache-server", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if env is None else None, text=True, env={**os.environ, **(env or {}), "FLIGHTCACHE_LOG": "warn"})
        line = self.process.stdout.readline().split()
        assert line[:2] == ["flightcache-server", "ready"], line
        self.uri = line[2].removeprefix("flight=")
        self.admin = line[3].removeprefix("admin=")
        self.client = flight.connect(self.uri)

    def scan(self, url, **scan):
        return self.client.do_get(flight.Ticket(json.dumps({"url": url, **scan}).encode())).read_all()

    def act(self, name, body=None):
        action = flight.Action(f"flightcache.{name}", json.dumps(body or {}).encode())
        return [json.loads(result.body.to_pybytes()) for result in self.client.do_action(action)]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def s3():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        s3 = S3(directory)
        yield s3
        s3.process.kill()
        s3.process.wait()


@pytest.fixture(scope="session")
def server(s3):
    server = Server("--source", "s3://lake/", "--source", f"file://{DATA}/", "--capacity", "256MiB", "--freshness", "always", env=s3.env)
    yield server
    server.stop()
