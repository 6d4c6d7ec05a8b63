"""Plain pyarrow over DoExchange, and the example of docs/exchange.md as it stands there."""

import json
import pathlib
import re
import threading

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from test_scans import parquet

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "exchange.md"
COMMAND = flight.FlightDescriptor.for_command(b"flightcache.exchange.v1+json")


@pytest.fixture(scope="module")
def table():
    return pa.table({"id": range(5_000), "s": [f"s{i % 50}" for i in range(5_000)]})


@pytest.fixture(scope="module")
def url(s3, table):
    return s3.put("exchange/t.parquet", parquet(table))


def test_the_documented_example(server, url, table):
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    found = {"SERVER": server.uri, "URL": url}
    exec(example, found)
    ids = {tag: [row["id"] for batch in batches for row in batch.to_pylist()] for tag, batches in found["batches"].items()}
    assert ids == {101: [1, 0], 102: [1], 103: [0]} and found["errors"] == {}


def test_requests_and_answers_overlap(server, url, table):
    writer, reader = server.client.do_exchange(COMMAND)
    asked = {tag: [(tag * 7 + k * 1_009) % table.num_rows for k in range(tag % 6)] for tag in range(2_000)}

    def write():
        writer.write_metadata(json.dumps({"open": [{"template": 5, "scan": {"url": url}}]}).encode())
        for start in range(0, 2_000, 40):
            tags = list(range(start, start + 40))
            reads = {"template": 5, "tags": tags, "counts": [len(asked[tag]) for tag in tags], "rows": [row for tag in tags for row in asked[tag]]}
            writer.write_metadata(json.dumps({"rows": [reads]}).encode())
        scans = [{"tag": 9_000, "scan": {"url": url, "filter": "id >= 4990"}}, {"tag": 9_001, "scan": {"url": url, "columns": ["nothing"]}}]
        scans += [{"tag": 9_002, "scan": {"url": url, "columns": ["s"]}}, {"tag": 9_003, "scan": {"url": url + ".missing"}}]
        writer.write_metadata(json.dumps({"scans": scans, "rows": [{"template": 5, "tags": [9_004], "rows": [5_000]}]}).encode())
        writer.done_writing()

    thread = threading.Thread(target=write)
    thread.start()
    answered, done, errors = {}, [], {}
    for chunk in reader:
        answers = json.loads(chunk.app_metadata.to_pybytes())
        at = 0
        for tag, count in zip(answers["tags"], answers["counts"]):
            answered.setdefault(tag, []).extend(chunk.data.slice(at, count).to_pylist() if count else [])
            at += count
        done += [] if answers["more"] else answers["tags"]
        errors |= {error["tag"]: (error["kind"], error["message"]) for error in answers.get("errors", [])}
    thread.join()
    writer.close()
    assert sorted(done) == [*range(2_000), 9_000]
    for tag, rows in asked.items():
        assert answered[tag] == table.take(pa.array(rows, pa.int64())).to_pylist(), tag
    assert answered[9_000] == table.slice(4_990).to_pylist()
    kinds = {tag: kind for tag, (kind, _) in errors.items()}
    assert kinds == {9_001: "not_found", 9_002: "invalid_request", 9_003: "not_found", 9_004: "invalid_request"}
    assert "another schema" in errors[9_002][1] and "missing" in errors[9_003][1] and "no row 5000" in errors[9_004][1]


def test_what_is_malformed_ends_the_stream(server, url):
    for command, metadata in [(b"flightcache.exchange.v1+json", b"{"), (b"flightcache.exchange.v1+json", b'{"row": []}'), (b"nonsense", b"{}"), (b"flightcache.exchange.v1", b"{}")]:
        writer, reader = server.client.do_exchange(flight.FlightDescriptor.for_command(command))
        writer.write_metadata(metadata)
        writer.done_writing()
        with pytest.raises(pa.ArrowInvalid):
            for _ in reader:
                pass
    assert server.scan(url).num_rows == 5_000
