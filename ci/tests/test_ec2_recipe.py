"""The recipe for EC2: what its dry run prints, what it removes, and what instances do when they boot."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys

import awscli.clidriver
import pytest
from conftest import BIN, ROOT, Server, free_ports
from test_deploy import printed_config

RECIPE = ROOT / "deploy/ec2/cluster"
VENV_BIN = os.path.dirname(sys.executable)
SECRET = "wJalrXUtnFEMI-never-print-this"


def dry_run(command, *options, cwd):
    """The commands of a dry run, each as its words, and all that it prints."""
    env = {"PATH": "/usr/bin:/bin", "AWS_ACCESS_KEY_ID": "AKIA-never-this-either", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
    done = subprocess.run([RECIPE, "--dry-run", command, "--bucket", "my-bucket", *options], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list(cwd.iterdir()), "a dry run touches nothing"
    commands = [shlex.split(text) for text in re.findall(r"^\+ (.*(?:\n  \{.*)*)", done.stdout, re.M)]
    return commands, done.stdout


def called(commands, *words):
    return [at for at, command in enumerate(commands) if command[1:1 + len(words)] == list(words)]


def test_a_dry_run_prints_everything_in_order_and_no_secret(tmp_path):
    commands, text = dry_run("all", cwd=tmp_path)
    assert SECRET not in text and "never-this-either" not in text
    order = [called(commands, *words) for words in [
        ("s3", "cp"), ("iam", "create-role"), ("ec2", "create-security-group"), ("ec2", "authorize-security-group-ingress"), ("ec2", "create-placement-group"),
        ("ec2", "run-instances"), ("s3api", "list-objects-v2"), ("ec2", "terminate-instances"), ("ec2", "wait"), ("ec2", "delete-security-group"),
        ("ec2", "delete-placement-group"), ("iam", "delete-instance-profile"), ("iam", "delete-role"), ("s3", "rm")]]
    assert [at[0] for at in order] == sorted(at[0] for at in order)
    launched = [commands[at] for at in called(commands, "ec2", "run-instances")]
    names = [re.search(r"Value=flightcache-bench-(\w+-\d)", " ".join(command))[1] for command in launched]
    assert names == ["server-0", "server-1", "server-2", "client-0", "client-1", "client-2"]
    assert all("Key=flightcache-run,Value=bench" in " ".join(command) and "c5.xlarge" in command for command in launched)
    assert re.findall(r"^#   seed=(.*)", text, re.M) == ["''", "10.0.0.0", "10.0.0.0"]
    assert re.findall(r"^#   servers=(.*)", text, re.M) == [r"10.0.0.0\ 10.0.0.1\ 10.0.0.2"] * 3
    assert all(command[0] in ("aws", "mkdir", "sleep") for command in commands)
    up, _ = dry_run("up", "--run", "other", "--servers", "1", "--clients", "2", "--type", "c5n.2xlarge", "--subnet", "subnet-1", "--image", "ami-1", cwd=tmp_path)
    assert len(called(up, "ec2", "run-instances")) == 3 and not called(up, "ec2", "terminate-instances") and not called(up, "ssm", "get-parameter")
    assert not any("bench" in word for command in up for word in command if "flightcache-bench" not in word.rsplit("/", 1)[-1])


def test_teardown_finds_what_it_removes_by_tag(tmp_path):
    commands, _ = dry_run("down", "--run", "other", cwd=tmp_path)
    tag = "Name=tag:flightcache-run,Values=other"
    for command in commands:
        if command[1] == "ec2" and command[2].startswith("describe-"):
            assert tag in command
        elif command[2].startswith(("list-instance-profiles", "list-roles")):
            assert command[command.index("--path-prefix") + 1] == "/flightcache-other/"
    # Nothing is removed that was not asked for just before; roles and profiles are asked for their tag, one by one.
    for verb, found_by in [("terminate-instances", "describe-instances"), ("delete-security-group", "describe-security-groups"), ("delete-placement-group", "describe-placement-groups")]:
        for at in called(commands, "ec2", verb):
            assert max(called(commands[:at], "ec2", found_by)) == at - 1
    for kind, flag in [("instance-profile", "--instance-profile-name"), ("role", "--role-name")]:
        removed = [commands[at][4] for at in called(commands, "iam", f"delete-{kind}")]
        assert removed == ["flightcache-other-server", "flightcache-other-client"]
        for name in removed:
            asked = [command for command in commands if command[1:5] == ["iam", f"get-{kind}", flag, name]]
            assert any("Tags[?Key=='flightcache-run'].Value" in " ".join(command) for command in asked)
    removed = [commands[at] for at in called(commands, "s3", "rm")]
    assert [command[-1] for command in removed] == ["s3://my-bucket/flightcache-other/"]
    assert "flightcache-other/tag" in commands[-2]


def test_teardown_spares_what_others_tagged(tmp_path):
    """With an `aws` that finds roles and profiles of another run, and no mark in the bucket, nothing is removed."""
    log = tmp_path / "log"
    (tmp_path / "aws").write_text(f"""#!/bin/bash
echo "$*" >>{log}
case $2 in
  list-instance-profiles | list-roles) echo somebody ;;
  get-instance-profile | get-role) echo another-run ;;
  *) echo None ;;
esac
""")
    (tmp_path / "aws").chmod(0o755)
    done = subprocess.run([RECIPE, "down", "--bucket", "my-bucket"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verbs = [line.split()[1] for line in log.read_text().splitlines()]
    assert verbs and not [verb for verb in verbs if not verb.startswith(("describe-", "list-", "get-"))]


def test_the_aws_cli_takes_the_commands(tmp_path, monkeypatch):
    """The real one checks each, and would send it; nobody listens where it is told to."""
    commands, _ = dry_run("all", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    local = {"ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)}", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in local.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for words in commands:
        for file in [word.removeprefix("file://") for word in words if word.startswith("file://")]:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            (tmp_path / file).write_text("#!/bin/bash\n")

    def says(words):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            awscli.clidriver.create_clidriver().main(words)
        return said.getvalue()

    # One of each form. Those of `s3` want the files themselves.
    forms = {(words[1], words[2], *[word for word in words if word.startswith("--")]): words[1:] for words in commands if words[0] == "aws" and words[1] != "s3"}
    assert len(forms) > 20
    for words in forms.values():
        assert "Could not connect to the endpoint URL" in (said := says(words)), f"{words}\n{said}"
    for wrong in (["--metadata-options", "HttpToken=required"], ["--count", "some"], ["--placement", "Group=a"]):
        assert "Could not connect" not in says(["ec2", "run-instances", "--image-id", "ami-1", *wrong])


@pytest.mark.parametrize("arguments", [[], ["up"], ["--bucket", "b"], ["down", "--bucket", "b", "--run", "a b"], ["up", "--bucket", "b", "--servers", "0"], ["up", "--bucket"], ["sideways", "--bucket", "b"]])
def test_the_recipe_refuses_mistakes(arguments, tmp_path):
    done = subprocess.run([RECIPE, *arguments], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr and not list(tmp_path.iterdir())


def user_data(text, instance):
    """What a dry run says that an instance does when it boots."""
    lines = re.search(rf"^# flightcache-bench/{instance}.user-data:\n((?:#   .*\n)+)", text, re.M)[1].splitlines()
    script = "".join(line.removeprefix("#   ") + "\n" for line in lines)
    assert script.startswith("#!/usr/bin/env bash\n") and len(script) < 15_000
    return script


def test_servers_take_their_configuration(tmp_path):
    script = user_data(dry_run("up", "--capacity", "2GiB", cwd=tmp_path)[1], "server-0")
    variables = "".join(re.findall(r"^\w+=\S*\n", script.split("# shellcheck")[0], re.M))
    heredoc = re.search(r"^cat >/etc/flightcache/flightcache.toml (<<END\n.*?^END\n)", script, re.M | re.S)[1]
    toml = subprocess.run(["bash", "-euc", f"{variables}objects=s3://$bucket/$prefix address=10.0.0.8\ncat {heredoc}"], check=True, capture_output=True, text=True).stdout
    config = printed_config(toml, tmp_path)
    assert (config["cluster"], config["gossip"], config["seed"]) == ("flightcache-bench", "10.0.0.8:50053", ["10.0.0.8:50053"])
    assert (config["capacity"], config["source"]) == ("2.0 GiB", [{"url": "s3://my-bucket/flightcache-bench/"}])


def test_a_client_leaves_its_report(s3, tmp_path):
    """Its user data as it would boot with, but for the server's address, the place of programs, and smaller files."""
    text = dry_run("up", "--servers", "1", "--clients", "1", "--replay", "--trace 1m --speed 20", cwd=tmp_path)[1]
    s3.fs.create_dir("my-bucket")
    s3.fs.create_dir("my-bucket/flightcache-bench/bin")
    wrapper = f"""#!/bin/bash
case $1 in
  generate) exec {BIN}/flightcache-bench "$@" --large-rows 3000 --small-rows 300 ;;
  *) exec {BIN}/flightcache-bench "$@" ;;
esac
"""
    with s3.fs.open_output_stream("my-bucket/flightcache-bench/bin/flightcache-bench") as out:
        out.write(wrapper.encode())
    (tmp_path / "shutdown").write_text(f"#!/bin/bash\necho \"$@\" >{tmp_path}/ends\n")
    (tmp_path / "shutdown").chmod(0o755)
    server = Server("--source", "s3://my-bucket/", "--capacity", "64MiB", env=s3.env)
    script = user_data(text, "client-0").replace("/usr/local/bin/", f"{tmp_path}/").replace("servers=10.0.0.0\n", "servers=127.0.0.1\n")
    for port, there in [("50051", server.uri), ("50052", server.admin)]:
        script = script.replace(port, there.rsplit(":", 1)[1])
    done = subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env={**os.environ, **s3.env, "PATH": f"{tmp_path}:{VENV_BIN}:/usr/bin:/bin"}, timeout=240)
    log = s3.fs.open_input_stream("my-bucket/flightcache-bench/reports/client-0.log").read().decode()
    assert done.returncode == 0, log
    assert (tmp_path / "ends").read_text() == "-h +120\n"
    [replayed] = json.loads(s3.fs.open_input_stream("my-bucket/flightcache-bench/reports/client-0.json").read())["replays"]
    assert replayed["trace"] == "1m" and [(side["name"], side["errors"]) for side in replayed["sides"]] == [("direct", 0), ("flightcache", 0)]
    assert b"<svg" in s3.fs.open_input_stream("my-bucket/flightcache-bench/reports/client-0.html").read()
    server.stop()
