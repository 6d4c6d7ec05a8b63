"""The commands of docs/ec2.md, as they stand there, with local addresses, small files and short times."""

import json
import os
import pathlib
import re
import signal
import subprocess
import urllib.request

from conftest import BIN, free_ports

EC2 = pathlib.Path(__file__).parents[2] / "docs" / "ec2.md"
# What cannot be run here: instances, a build that is done already, a copy to another machine.
SKIPPED = ("aws", "cargo", "scp")
# What makes a command quick here; everything else is run as it is written.
SMALLER = [("bench generate", "bench generate --large-rows 3000 --small-rows 300"), ("--duration 10s", "--duration 1s")]
SMALLER += [("replay --data", "replay --trace 1m repeat --speed 20 --data"), ("--speed 2", "--speed 20")]


def blocks():
    return re.findall(r"```sh\n(.*?)```", EC2.read_text(), re.DOTALL)


def test_the_page_says_which_commands_are_not_run_here():
    first = [command.split()[0] for command in blocks()]
    assert set(SKIPPED) <= set(first)
    assert "none of those that begin with `aws`, `cargo` or `scp`" in EC2.read_text().replace("\n", " ")


def test_ec2(s3, tmp_path):
    s3.fs.create_dir("my-bucket")
    env = {**os.environ, **s3.env, "PATH": f"{BIN}:{os.environ['PATH']}", "SERVER": "127.0.0.1"}
    flight_port = free_ports(2)
    admin_port = flight_port + 1
    server, ran = None, []
    try:
        for command in blocks():
            if command.split()[0] in SKIPPED:
                continue
            for old, new in [*SMALLER, ("50051", str(flight_port)), ("50052", str(admin_port)), ("AWS_REGION=eu-central-1", "")]:
                command = command.replace(old, new)
            words = command.split()
            if words[0] == "export":
                env |= dict(word.split("=", 1) for word in words[1:])
            elif words[0] == "flightcache-server":
                if server:
                    # The page says to stop it first. Its trace, which `scp` would copy, is in the client's directory already.
                    server.send_signal(signal.SIGTERM)
                    assert server.wait(timeout=60) == 0
                    assert (tmp_path / "access.jsonl").stat().st_size > 0
                server = subprocess.Popen(["bash", "-c", f"exec {command}"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
                assert "ready" in server.stdout.readline()
                assert urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz").status == 200
            else:
                done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                ran.append(words[1])
    finally:
        if server:
            server.kill()
            server.wait()
    assert ran == ["generate", "replay", "load", "simulate", "replay"]
    replayed = json.loads((tmp_path / "replay.json").read_text())["replays"]
    sides = [("direct", 0), ("flightcache", 0)]
    assert [(r["trace"], [(side["name"], side["errors"]) for side in r["sides"]]) for r in replayed] == [("1m", sides), ("repeat", sides)]
    assert all("<svg" in (tmp_path / f"{page}.html").read_text() for page in ("replay", "load", "simulate"))
