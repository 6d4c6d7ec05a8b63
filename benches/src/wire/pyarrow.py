"""pyarrow's end of the wire: `server HOST FILE…`, or `reader`, which does what each line of its input says."""

import json
import pathlib
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight


def say(what):
    print(json.dumps(what), flush=True)


class Server(flight.FlightServerBase):
    """Tables in memory, each by its file's name, in the batches that its file has."""

    def __init__(self, host, files):
        super().__init__(f"grpc://{host}:0")
        self.tables = {pathlib.Path(file).stem: pa.ipc.open_file(pa.OSFile(file)).read_all() for file in files}

    def do_get(self, context, ticket):
        return flight.RecordBatchStream(self.tables[ticket.ticket.decode()])


def serve(host, files):
    server = Server(host, files)
    say({"address": f"{host}:{server.port}"})
    sys.stdin.read()


def checksum(column):
    if column.type == pa.string_view():
        column = column.cast(pa.string())
    return pc.sum(column.cast(pa.int64())).as_py() or 0


def read(client, ask):
    answer = {"reads": 0, "rows": 0, "checksum": 0}
    # Our server takes a scan as JSON.
    scan = {"url": ask["ticket"], "compression": ask["compression"]}
    ticket = json.dumps(scan) if "://" in ask["ticket"] else ask["ticket"]
    started = time.perf_counter()
    for _ in range(ask["passes"]):
        for chunk in client.do_get(flight.Ticket(ticket.encode())):
            answer["rows"] += chunk.data.num_rows
            if ask["checksum"]:
                answer["checksum"] += checksum(chunk.data.column(0))
        answer["reads"] += 1
    answer["seconds"] = time.perf_counter() - started
    return answer


def read_all():
    clients = {}
    for line in sys.stdin:
        ask = json.loads(line)
        address = ask["address"]
        try:
            if address not in clients:
                clients[address] = flight.connect(f"grpc://{address}")
            say(read(clients[address], ask))
        except (pa.ArrowException, flight.FlightError) as error:
            say({"error": str(error)})


if sys.argv[1] == "server":
    serve(sys.argv[2], sys.argv[3:])
else:
    read_all()
