"""The engine of the Python package: asked in lines of JSON, it answers in Arrow IPC."""

import json
import sys

import flightcache
import pyarrow as pa

cache = flightcache.connect(sys.argv[1])
for line in sys.stdin:
    ask, answer, error = json.loads(line), b"", None
    try:
        if "sql" in ask:
            table = pa.table(cache.sql(ask["sql"]))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            answer = sink.getvalue()
        else:
            cache.register(ask["name"], ask["url"])
    except Exception as e:
        error = f"{type(e).__name__}: {e}"
    sys.stdout.buffer.write(json.dumps({"bytes": len(answer), "error": error}).encode() + b"\n")
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
