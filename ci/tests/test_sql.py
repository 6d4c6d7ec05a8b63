"""SQL as ADBC sends it, and the command line."""

import subprocess
import time
import urllib.request

import adbc_driver_flightsql.dbapi as adbc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BIN, Server

ROWS = 30_000


@pytest.fixture(scope="module")
def trips():
    return pa.table({"id": range(ROWS), "zone": [row % 7 for row in range(ROWS)], "note": [None if row % 5 == 0 else f"n{row % 11}" for row in range(ROWS)]})


@pytest.fixture(scope="module")
def url(s3, trips):
    sink = pa.BufferOutputStream()
    pq.write_table(trips, sink, row_group_size=5_000)
    return s3.put("sql/trips.parquet", sink.getvalue().to_pybytes())


@pytest.fixture(scope="module")
def servers(s3, url, tmp_path_factory):
    config = tmp_path_factory.mktemp("sql") / "server.toml"
    config.write_text(f'[tables]\ntrips = "{url}"\n')
    servers = [Server("--source", "s3://lake/", "--config", str(config), env=s3.env) for _ in range(2)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def connection(servers):
    with adbc.connect(servers[0].uri, autocommit=True) as connection:
        yield connection


def ask(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetch_arrow_table()


@pytest.mark.parametrize("name", ["trips", "'{url}'", '"{url}"', "'s3://lake/sql/'", "'s3://lake/sql/*.parquet'"])
def test_rows_are_those_of_the_file(connection, url, trips, name):
    assert ask(connection, f"SELECT * FROM {name.format(url=url)} ORDER BY id").equals(trips)


def test_parameters(connection, trips):
    sql = "SELECT id, note FROM trips WHERE id >= ? AND note = ? ORDER BY id"
    for low, note in [(100, "n3"), (29_000, "n1")]:
        expected = [row["id"] for row in trips.to_pylist() if row["id"] >= low and row["note"] == note]
        assert ask(connection, sql, (low, note))["id"].to_pylist() == expected
    with connection.cursor() as cursor:
        for zone in range(3):
            cursor.execute("SELECT count(*) FROM trips WHERE zone = $1", (zone,))
            assert cursor.fetchone() == (trips["zone"].to_pylist().count(zone),)


def test_catalog(connection):
    assert connection.adbc_get_info()["vendor_name"] == "Flightcache"
    assert connection.adbc_get_table_types() == ["TABLE"]
    objects = connection.adbc_get_objects(depth="tables", table_name_filter="trips").read_all().to_pylist()
    assert [object["catalog_name"] for object in objects] == ["flightcache"]
    assert connection.adbc_get_table_schema("trips").names == ["id", "zone", "note"]


def test_refusals_are_typed(connection):
    for sql, said in [("DELETE FROM trips", "read only"), ("SELECT * FROM 's3://other/x'", "outside the declared sources"), ("SELECT nosuch FROM trips", "nosuch")]:
        with pytest.raises(adbc.Error, match=said):
            ask(connection, sql)


def test_a_reader_that_leaves_stops_the_work(servers):
    def running():
        metrics = urllib.request.urlopen(servers[0].admin + "/metrics", timeout=10).read().decode()
        return next(line.split()[1] for line in metrics.splitlines() if line.startswith("flightcache_active_statements "))

    with adbc.connect(servers[0].uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM generate_series(1, 1000000000000)")
        assert cursor.fetchone() == (1,)
        assert running() == "1"
        cursor.adbc_cancel()
    deadline = time.monotonic() + 60
    while running() != "0":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_statement_prepared_on_one_server_is_answered_by_another(servers):
    import pyarrow.flight as flight

    client, other = (flight.connect(server.uri) for server in servers)
    # `Any` of `CommandStatementQuery`, by hand.
    query = b"SELECT count(*) AS n FROM trips"
    kind = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    value = b"\x0a" + bytes([len(query)]) + query
    info = client.get_flight_info(flight.FlightDescriptor.for_command(b"\x0a" + bytes([len(kind)]) + kind + b"\x12" + bytes([len(value)]) + value))
    table = other.do_get(info.endpoints[0].ticket).read_all()
    assert table.schema == info.schema and table.to_pylist() == [{"n": ROWS}]


def run(server, *args):
    return subprocess.run([BIN / "flightcache", "--server", server.uri, "sql", *args], capture_output=True, text=True)


def test_the_command_line(servers, url):
    answer = run(servers[1], "SELECT zone, count(*) AS n FROM trips WHERE id < 70 GROUP BY zone ORDER BY zone", "--format", "csv")
    assert answer.stdout.split() == ["zone,n", *(f"{zone},10" for zone in range(7))], answer.stderr
    explained = run(servers[1], f"EXPLAIN ANALYZE SELECT sum(zone) FROM '{url}' WHERE id < 5000").stdout
    assert "file_type=flightcache" in explained and "row_groups_pruned=5" in explained and "chunks_hit=" in explained, explained
    assert run(servers[1], f"CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{url}'").stdout == "done\n"
    assert "30000" in run(servers[1], "SELECT count(*) FROM t").stdout
    refused = run(servers[1], "DROP TABLE trips")
    assert refused.returncode == 1 and "settings" in refused.stderr
