"""A real S3 server and real Flightcache servers for the tests, each on ports of its own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

import pyarrow.flight as flight
import pytest
from pyarrow import fs

ROOT = pathlib.Path(__file__).resolve().parents[2]
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


class S3:
    """SeaweedFS."""

    def __init__(self, directory):
        port = free_ports(10)
        config = pathlib.Path(directory) / "s3.json"
        credentials = [{"accessKey": "testkey", "secretKey": "testsecret"}]
        actions = ["Admin", "Read", "Write", "List"]
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}))
        names = ["s3.port", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port.grpc"]
        flags = [f"-{name}={port + at}" for at, name in enumerate(names)]
        self.log = open(pathlib.Path(directory) / "log", "wb")
        self.process = subprocess.Popen(
            [os.environ["FLIGHTCACHE_TEST_WEED"], "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory}", "-master.telemetry=false",
             f"-s3.config={config}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false", *flags],
            stdout=self.log, stderr=self.log)
        self.endpoint = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.endpoint + "/healthz", timeout=1)
                break
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "SeaweedFS did not start"
                time.sleep(0.05)
        self.fs = fs.S3FileSystem(access_key="testkey", secret_key="testsecret", endpoint_override=self.endpoint, region="us-east-1", allow_bucket_creation=True)
        self.env = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
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
