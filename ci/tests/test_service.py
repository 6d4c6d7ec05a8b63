"""The rest of the service: errors, actions, admin port, command line."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request

import pyarrow as pa
import pyarrow.csv
import pyarrow.flight as flight
import pyarrow.parquet as pq
import pytest
from conftest import BIN, DATA, Server
from test_scans import parquet


@pytest.fixture(scope="module")
def table():
    return pa.table({"a": range(1_000), "s": [f"s{i % 5}" for i in range(1_000)]})


@pytest.fixture(scope="module")
def url(s3, table):
    return s3.put("service/t.parquet", parquet(table))


@pytest.mark.parametrize("bad", ["s3://other/t.parquet", "s3://lake/../other/t", "s3://lake/%2e%2e/other/t", "s3://lake/a%2Fb", "file:///etc/passwd", "http://127.0.0.1/t", "s3://lake/a\\b"])
def test_outside_the_sources_is_denied(server, bad):
    with pytest.raises(flight.FlightUnauthorizedError):
        server.scan(bad)


def test_mistakes_are_typed_and_name_the_object(server, url):
    missing = url.replace("t.parquet", "missing.parquet")
    for scan, kind, text in [
        ({"url": missing}, pa.lib.ArrowKeyError, "missing.parquet"),
        ({"url": "s3://lake/nothing/"}, pa.lib.ArrowKeyError, "nothing"),
        ({"url": url, "columns": ["b"]}, pa.lib.ArrowKeyError, '"b"'),
        ({"url": url, "filter": "b = 1"}, pa.lib.ArrowKeyError, "b"),
        ({"url": url, "filter": "a +"}, pa.ArrowInvalid, "a +"),
        ({"url": url, "filter": "a + 1"}, pa.ArrowInvalid, "boolean"),
        ({"url": url, "filters": "a = 1"}, pa.ArrowInvalid, "filters"),
        ({"url": "t.parquet"}, pa.ArrowInvalid, "t.parquet"),
    ]:
        with pytest.raises(kind, match=re.escape(text)):
            server.client.do_get(flight.Ticket(json.dumps(scan).encode())).read_all()
    for ticket in (b"", b"{", b"\xff\xff", b"\x12\x00", b"\x0a\x00"):
        with pytest.raises((pa.ArrowInvalid, flight.FlightError)):
            server.client.do_get(flight.Ticket(ticket)).read_all()
    with pytest.raises(pa.ArrowInvalid, match="unknown action"):
        server.act("nonsense")
    assert server.act("stats")


def test_health_and_reflection(server):
    import grpc
    channel = grpc.insecure_channel(server.uri.removeprefix("grpc+tcp://"))
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    serving = b"\x08\x01"
    for service in (b"", b"arrow.flight.protocol.FlightService"):
        assert check(b"\x0a" + bytes([len(service)]) + service, timeout=10) == serving
    with pytest.raises(grpc.RpcError) as error:
        check(b"\x0a\x01x", timeout=10)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    reflect = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    list_services = b"\x3a\x00"
    [answer] = reflect(iter([list_services]), timeout=10)
    for service in (b"arrow.flight.protocol.FlightService", b"grpc.health.v1.Health"):
        assert service in answer, answer
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/arrow.flight.protocol.FlightService/Nonsense")(b"", timeout=10)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_files_that_are_none_are_corrupt(server, s3):
    for body in (b"", b"PAR1", b"no Parquet, but long enough to have a footer"):
        bad = s3.put("service/bad.parquet", body)
        with pytest.raises((flight.FlightError, pa.ArrowException), match="service/bad.parquet") as error:
            server.scan(bad)
        assert "DATA_LOSS" in str(error.value) or "gRPC code 15" in str(error.value), error.value


def test_actions(server, url, table):
    names = {action.type for action in server.client.list_actions()}
    ours = ("stats", "slot_map", "info", "table", "bounds", "sources", "warm", "evict", "set_capacity", "drain", "renewed", "footer", "tables")
    assert {name for name in names if name.startswith("flightcache.")} == {f"flightcache.{name}" for name in ours}
    assert "CancelFlightInfo" in names
    server.act("evict", {"url": url})
    progress = server.act("warm", {"url": url})
    assert progress[-1]["row_groups_done"] == progress[-1]["row_groups_total"] == 1 and progress[-1]["chunks_missed"] == 2
    [info] = server.act("info", {"url": url})
    [described] = server.act("table", {"url": url})
    [of_object] = described["objects"]
    assert of_object["url"] == url and sum(rows for rows, _ in of_object["row_groups"]) == 1_000
    assert described["predicate_version"] == 1 and not described["spans_objects"]
    assert info["rows"] == 1_000 and [column["name"] for column in info["columns"]] == ["a", "s"]
    assert all(column["resident_chunks"] == 1 for column in info["columns"])
    flights = {f.descriptor.path[0].decode(): f for f in server.client.list_flights()}
    assert flights[url].total_records == 1_000
    assert server.client.do_get(flights[url].endpoints[0].ticket).read_all().equals(table)
    assert server.act("evict", {"url": url})[0]["chunks"] == 2
    [map_] = server.act("slot_map")
    assert map_["slots"] == [{"start": 0, "end": 16383, "owners": [0]}] and map_["nodes"][0]["uri"] == server.uri
    [stats] = server.act("set_capacity", {"capacity_bytes": 128 << 20})
    assert stats["capacity_bytes"] == 128 << 20
    server.act("set_capacity", {"capacity_bytes": 256 << 20})


def test_admin_port(server, url):
    server.scan(url)
    text = urllib.request.urlopen(server.admin + "/metrics").read().decode()
    for name in ("requests_total", "served_bytes_total", "chunk_hits_total", "chunk_misses_total", "cache_evictions_total", "cache_resident_bytes",
                 "cache_in_flight_bytes", "cache_streaming_bytes", "store_requests_total", "store_bytes_total", "store_retries_total",
                 "fetch_seconds_bucket", "decode_seconds_bucket", "filter_seconds_bucket", "encode_seconds_bucket"):
        assert re.search(rf"^flightcache_{name}[ {{]", text, re.M), name
    assert urllib.request.urlopen(server.admin + "/healthz").status == 200
    assert urllib.request.urlopen(server.admin + "/readyz").status == 200


def test_ttl_and_immutable_answers_may_be_old(s3):
    for freshness in ("immutable", "ttl=1h"):
        server = Server("--source", "s3://lake/", "--freshness", freshness, env=s3.env)
        url = s3.put(f"fresh/{freshness[:3]}.parquet", parquet(pa.table({"v": [1]})))
        assert server.scan(url).column("v").to_pylist() == [1]
        s3.put(f"fresh/{freshness[:3]}.parquet", parquet(pa.table({"v": [2]})))
        assert server.scan(url).column("v").to_pylist() == [1]
        server.act("evict", {"url": url})
        assert server.scan(url).column("v").to_pylist() == [2]
        server.stop()


def test_a_wrong_secret_is_denied_and_an_absent_store_is_unavailable(s3, url):
    server = Server("--source", "s3://lake/", env={**s3.env, "AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises(flight.FlightUnauthorizedError):
        server.scan(url)
    server.stop()


def test_settings(s3):
    run = lambda *args, **env: subprocess.run([BIN / "flightcache-server", *args], capture_output=True, text=True, env={**os.environ, **env})
    printed = run("--source", "s3://lake/", "--print-config", FLIGHTCACHE_CAPACITY="3GiB")
    assert printed.returncode == 0 and 'capacity = "3.0 GiB"' in printed.stdout
    for args in ((), ("--source", "ftp://x/"), ("--source", "s3://lake/", "--freshness", "soon"), ("--source", "file:///no/such/directory/")):
        failed = run("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *args)
        assert failed.returncode != 0 and "error" in failed.stderr, args


def cli(server, *args, check=True):
    result = subprocess.run([BIN / "flightcache", "--server", server.uri, *args], capture_output=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def test_cli_formats(server, url, table, tmp_path):
    expected = table.filter(pa.compute.less(table["a"], 24)).select(["s", "a"])
    scan = ("get", url, "--columns", "s,a", "--filter", "a < 24")
    assert pa.csv.read_csv(pa.py_buffer(cli(server, *scan, "--format", "csv").stdout)).equals(expected)
    lines = cli(server, *scan, "--format", "json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == expected.to_pylist()
    assert pa.ipc.open_stream(cli(server, *scan, "--format", "arrow").stdout).read_all().equals(expected)
    cli(server, *scan, "--format", "arrow", "-o", tmp_path / "t.arrow")
    assert pa.ipc.open_file(tmp_path / "t.arrow").read_all().equals(expected)
    cli(server, *scan, "--format", "parquet", "-o", tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(expected)
    assert cli(server, "get", url, "--rows", "999,0", "--format", "csv").stdout == b'a,s\n999,s4\n0,s0\n'
    shown = cli(server, "get", url).stdout.decode()
    assert "Int64" in shown and " 99 " in shown and " 100 " not in shown


def test_cli_errors_leave_no_file(server, url, tmp_path):
    failed = cli(server, "get", url.replace("t.parquet", "no.parquet"), "--format", "csv", "-o", tmp_path / "x", check=False)
    assert failed.returncode == 1 and failed.stderr.startswith(b"error: ") and not list(tmp_path.iterdir())
    assert cli(server, "get", check=False).returncode == 2


def test_cli_management(server, url):
    cli(server, "evict", url)
    assert b"2 loaded" in cli(server, "warm", url).stdout
    assert json.loads(cli(server, "info", url, "--json").stdout)[0]["rows"] == 1_000
    assert b"Utf8" in cli(server, "info", url).stdout
    assert json.loads(cli(server, "stats", "--json").stdout)["resident_chunks"] >= 2
    assert b"hit rate" in cli(server, "stats").stdout
    assert b"16383" in cli(server, "slots").stdout
    assert b"2 chunks" in cli(server, "evict", url).stdout


def test_the_data_is_licensed():
    assert "Apache License" in (DATA / "parquet-testing/LICENSE.txt").read_text()
