"""Signals, the GIL, forks: each in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow as pa
import pytest
from conftest import ROOT, parquet, proxy, servers


def python(script, *args, **options):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def stalled(s3):
    """A server whose store falls silent amid an object, and that object."""
    table = pa.table({"n": pa.array(range(100_000), pa.int64())})
    s3.put("python/stalled.parquet", parquet(table, row_group_size=20_000, use_dictionary=False))
    store = proxy.Proxy(s3.endpoint)
    server = servers.Server("--source", "s3://lake/", env={**s3.env, "AWS_ENDPOINT_URL": store.endpoint})
    # The footer comes.
    server.act("info", {"url": "s3://lake/python/stalled.parquet"})
    store.fate = lambda number, method, path, headers: "stall" if "range" in headers else None
    yield server, store
    server.stop()
    store.shutdown()


READERS = {
    "iterating": "for batch in cache.scan(url): pass",
    "to_arrow": "cache.scan(url).to_arrow()",
    "sql": "cache.sql(f\"SELECT sum(n) FROM '{url}' WHERE n % 2 = 0\").to_arrow()",
    "warm": "cache.warm(url)",
    "stream": "pyarrow.table(cache.scan(url))",
    "datafusion": "ctx = datafusion.SessionContext(); ctx.register_table('t', cache.table(url)); ctx.sql('SELECT sum(n) FROM t WHERE n % 2 = 0').collect()",
}


@pytest.mark.parametrize("reader", READERS)
def test_ctrl_c_stops_the_work_on_the_server_too(stalled, reader):
    server, store = stalled
    script = "import datafusion, flightcache, pyarrow, sys\ncache = flightcache.connect(sys.argv[1])\nurl = 's3://lake/python/stalled.parquet'\n"
    process = python(script + READERS[reader], server.uri)
    wait_for(lambda: store.failed and server.act("stats")[0]["in_flight_bytes"], "the store was not asked")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    # Readers of C streams turn it into an error of theirs.
    assert process.returncode == (1 if reader == "stream" else -signal.SIGINT), errors
    wait_for(lambda: server.act("stats")[0]["in_flight_bytes"] == 0, "the server works on")


def test_everything_releases_the_gil(server, url):
    """Each byte goes through threads of the process that waits for it: were the GIL held meanwhile, none would come."""
    process = python("""
        import socket, sys, threading, datafusion, flightcache, polars, pyarrow
        host, port = sys.argv[1].split("://")[1].split(":")
        url = sys.argv[2]

        def forward(source, sink):
            try:
                while data := source.recv(1 << 16):
                    sink.sendall(data)
            except OSError:
                pass

        def serve(listener):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                for pair in [(client, server), (server, client)]:
                    threading.Thread(target=forward, args=pair, daemon=True).start()

        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        cache = flightcache.connect("grpc://127.0.0.1:%d" % listener.getsockname()[1])
        cache.stats(), cache.info(url), cache.warm(url), cache.evict(url)
        rows = cache.scan(url)
        counts = [rows.to_arrow().num_rows, pyarrow.table(rows).num_rows, len(polars.DataFrame(rows)), sum(len(batch) for batch in rows)]
        counts.append(cache.sql(f"SELECT id FROM '{url}'").to_arrow().num_rows)
        cache.register("t", url)
        counts.append(pyarrow.table(cache.sql("SELECT * FROM t WHERE id >= 0")).num_rows)
        ctx = datafusion.SessionContext()
        ctx.register_table("t", cache.table(url))
        counts.append(ctx.sql("SELECT id FROM t WHERE id >= 0").to_arrow_table().num_rows)
        print(counts)
    """, server.uri, url)
    try:
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out.strip() == str([50_000] * 7), errors


def test_a_forked_process_connects_anew(server, url):
    process = python("""
        import os, sys, traceback, flightcache
        cache = flightcache.connect(sys.argv[1])
        rows = cache.scan(sys.argv[2], limit=10)
        batches = iter(rows)
        table = cache.table(sys.argv[2])
        def in_child():
            for use in [cache.stats, lambda: cache.sql("SELECT 1"), rows.to_arrow, lambda: next(batches), table.__datafusion_table_provider__]:
                try:
                    use()
                except RuntimeError as error:
                    assert "before the process forked" in str(error), error
                except flightcache.Unsupported:
                    assert use == table.__datafusion_table_provider__
                else:
                    raise AssertionError(use)
            anew = flightcache.connect(sys.argv[1])
            assert anew.scan(sys.argv[2], limit=10).to_arrow().num_rows == 10
        if (child := os.fork()) == 0:
            try:
                in_child()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        print(rows.to_arrow().num_rows)
    """, server.uri, url)
    out, errors = process.communicate(timeout=60)
    assert out.strip() == "10", errors


def test_stubs_say_what_is_there():
    config = ROOT / "python/pyproject.toml"
    done = subprocess.run([sys.executable, "-m", "mypy.stubtest", "flightcache", "--mypy-config-file", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
