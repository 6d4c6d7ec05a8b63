"""Plain pyarrow and the command line over the Unix socket."""

import json
import subprocess

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import BIN, DATA, Server

URL = f"file://{DATA}/parquet-testing/data/alltypes_plain.snappy.parquet"


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    path = tmp_path_factory.mktemp("unix") / "cache.sock"
    server = Server("--source", f"file://{DATA}/", "--listen-unix", str(path), env={})
    yield f"grpc+unix://{path}"
    server.stop()
    assert not path.exists()


def test_pyarrow(location):
    client = flight.connect(location, generic_options=[("grpc.default_authority", "localhost")])
    info = client.get_flight_info(flight.FlightDescriptor.for_path(URL))
    assert [endpoint.locations for endpoint in info.endpoints] == [[]], "the same connection serves it"
    table = pa.concat_tables(client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints)
    assert table.num_rows == info.total_records == 2 and table.schema == info.schema
    assert client.do_get(flight.Ticket(json.dumps({"url": URL}).encode())).read_all() == table
    assert [found.descriptor.path for found in client.list_flights()] == [[URL.encode()]]
    [stats] = client.do_action(flight.Action("flightcache.stats", b""))
    assert json.loads(stats.body.to_pybytes())["resident_footers"] == 1
    with pytest.raises(pa.lib.ArrowKeyError, match="missing"):
        client.do_get(flight.Ticket(json.dumps({"url": URL, "columns": ["missing"]}).encode())).read_all()


def test_the_command_line(location):
    answer = subprocess.run([BIN / "flightcache", "--server", location, "get", URL, "--columns", "id", "--format", "csv"], capture_output=True, text=True, check=True)
    assert sorted(answer.stdout.split()[1:]) == list("67")
