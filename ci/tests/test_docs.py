"""The commands of docs/ec2.md, as they stand there, with local addresses and small files."""

import json
import os
import pathlib
import re
import signal
import subprocess
import urllib.request

from conftest import BIN, free_ports

EC2 = pathlib.Path(__file__).parents[2] / "docs" / "ec2.md"
# What makes a command quick here; everything else is run as it is written.
SMALLER = [("bench generate", "bench generate --large-rows 3000 --small-rows 300"), ("--duration 10s", "--duration 1s")]
SMALLER += [("replay --data", "replay --trace 1m repeat --speed 20 --data"), ("--speed 2", "--speed 20")]


def blocks():
    commands = re.findall(r"```sh\n(.*?)```", EC2.read_text(), re.DOTALL)
    # Instances cannot be launched here, and the programs are built already.
    return [command for command in commands if not command.startswith(("aws ", "cargo "))]


def test_ec2(s3, tmp_path):
    s3.fs.create_dir("my-bucket")
    env = {**os.environ, **s3.env, "PATH": f"{BIN}:{os.environ['PATH']}", "SERVER": "127.0.0.1"}
    flight_port = free_ports(2)
    admin_port = flight_port + 1
    server, ran = None, []
    try:
        for command in blocks():
            for old, new in [*SMALLER, ("50051", str(flight_port)), ("50052", str(admin_port)), ("AWS_REGION=eu-central-1", "")]:
                command = command.replace(old, new)
            words = command.split()
            if words[0] == "export":
                env |= dict(word.split("=", 1) for word in words[1:])
            elif words[0] == "flightcache-server":
                server = subprocess.Popen(["bash", "-c", f"exec {command}"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
                assert "ready" in server.stdout.readline()
                assert urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz").status == 200
            else:
                if "access.jsonl" in command and server.poll() is None:
                    server.send_signal(signal.SIGTERM)
                    assert server.wait(timeout=60) == 0
                    # The trace stays where it is; the server that goes on needs another.
                    again = f"exec flightcache-server --listen 0.0.0.0:{flight_port} --admin 0.0.0.0:{admin_port} --source s3://my-bucket/"
                    server = subprocess.Popen(["bash", "-c", again], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
                    assert "ready" in server.stdout.readline()
                done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                ran.append(words[1])
    finally:
        if server:
            server.kill()
            server.wait()
    assert ran == ["generate", "replay", "load", "simulate", "replay"]
    replayed = json.loads((tmp_path / "replay.json").read_text())["replays"]
    assert [(r["trace"], [side["errors"] for side in r["sides"]]) for r in replayed] == [("1m", [0, 0, 0]), ("repeat", [0, 0, 0])]
    assert all("<svg" in (tmp_path / f"{page}.html").read_text() for page in ("replay", "load", "simulate"))
