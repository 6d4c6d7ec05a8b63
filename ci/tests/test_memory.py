"""What the process really holds while the cache churns."""

import pathlib
import threading

import numpy as np
import pyarrow as pa
import pyarrow.flight
from conftest import Server
from test_scans import parquet

MIB = 1 << 20
# What the process needs beside the cache: code, threads, buffers of connections, the allocator's slack.
BASE_BYTES = 160 * MIB


def rss_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_rss_stays_bounded_under_churn(s3):
    """Twenty objects of 16 MiB decoded, a tenth of which fits."""
    capacity, reserve = 32 * MIB, 96 * MIB
    server = Server("--source", "s3://lake/", "--capacity", str(capacity), "--reserve", str(reserve), env=s3.env)
    rng = np.random.default_rng(1)
    urls = []
    for i in range(20):
        columns = {f"c{c}": rng.random(262_144) for c in range(8)}
        urls.append(s3.put(f"churn/{i}.parquet", parquet(pa.table(columns), row_group_size=131_072)))
    failures = []

    def read(offset):
        client = pa.flight.connect(server.uri)
        for i in range(len(urls)):
            ticket = pa.flight.Ticket(b'{"url": "%s"}' % urls[(i * 3 + offset) % len(urls)].encode())
            rows = sum(chunk.data.num_rows for chunk in client.do_get(ticket))
            if rows != 262_144:
                failures.append(rows)

    readers = [threading.Thread(target=read, args=(offset,)) for offset in range(4)]
    for reader in readers:
        reader.start()
    highest_rss = highest_accounted = 0
    while any(reader.is_alive() for reader in readers):
        [stats] = server.act("stats")
        assert stats["resident_bytes"] <= capacity
        highest_accounted = max(highest_accounted, stats["resident_bytes"] + stats["in_flight_bytes"] + stats["streaming_bytes"])
        highest_rss = max(highest_rss, rss_bytes(server.process.pid))
    assert not failures
    assert server.act("stats")[0]["evictions"] > 0
    server.stop()
    print(f"RSS {highest_rss / MIB:.0f} MiB, accounted {highest_accounted / MIB:.0f} of {(capacity + reserve) / MIB:.0f} MiB")
    assert highest_accounted <= capacity + reserve
    assert highest_rss <= capacity + reserve + BASE_BYTES


def test_long_strings_that_repeat_unfold_within_bounds(s3):
    """100 strings of 12 KiB, 200,000 rows: 1.2 MiB to keep, 2.4 GiB to send."""
    strings = [chr(ord("a") + i % 26) * (12 << 10) + str(i) for i in range(100)]
    table = pa.table({
        "id": pa.array(range(200_000)),
        "text": pa.DictionaryArray.from_arrays(pa.array(np.arange(200_000) % 100, pa.int32()), pa.array(strings)),
    })
    url = s3.put("unfold/t.parquet", parquet(table, store_schema=False))
    capacity, reserve = 32 * MIB, 96 * MIB
    server = Server("--source", "s3://lake/", "--capacity", str(capacity), "--reserve", str(reserve), env=s3.env)
    client = pa.flight.connect(server.uri)
    ticket = pa.flight.Ticket(b'{"url": "%s", "limit": 20000}' % url.encode())
    rows = highest_rss = 0
    for chunk in client.do_get(ticket):
        expected = [strings[(rows + i) % 100] for i in range(chunk.data.num_rows)]
        assert chunk.data["text"].to_pylist() == expected
        rows += chunk.data.num_rows
        highest_rss = max(highest_rss, rss_bytes(server.process.pid))
    assert rows == 20_000
    some = server.scan(url, filter=f"text = '{strings[42]}' AND id < 1000")
    assert some["id"].to_pylist() == list(range(42, 1000, 100)) and set(some["text"].to_pylist()) == {strings[42]}
    server.stop()
    print(f"RSS {highest_rss / MIB:.0f} MiB")
    assert highest_rss <= capacity + reserve + BASE_BYTES
