"""SeaweedFS, a real S3 server."""

import json
import os
import pathlib
import subprocess
import time
import urllib.request


class SeaweedFS:
    """A process that serves `directory` at `host` and ten ports from `port` on."""

    def __init__(self, directory, host, port, popen=subprocess.Popen, page=lambda host, port, path: urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=1)):
        directory = pathlib.Path(directory)
        config = directory / "s3.json"
        credentials = [{"accessKey": "testkey", "secretKey": "testsecret"}]
        actions = ["Admin", "Read", "Write", "List"]
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}))
        names = ["s3.port", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port.grpc"]
        flags = [f"-{name}={port + at}" for at, name in enumerate(names)]
        self.log = open(directory / "log", "wb")
        self.process = popen(
            [os.environ["FLIGHTCACHE_TEST_WEED"], "mini", f"-ip={host}", f"-ip.bind={host}", f"-dir={directory}", "-master.telemetry=false",
             f"-s3.config={config}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false", *flags],
            stdout=self.log, stderr=self.log)
        self.endpoint = f"http://{host}:{port}"
        self.env = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
        deadline = time.monotonic() + 60
        while True:
            try:
                page(host, port, "/healthz")
                break
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "SeaweedFS did not start"
                time.sleep(0.05)
