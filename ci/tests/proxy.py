"""A proxy in front of the S3 server that counts requests and makes them fail."""

import http.client
import socket
import socketserver
import struct
import threading
import urllib.parse


class Proxy(socketserver.ThreadingTCPServer):
    """Forwards HTTP/1.1. `fate(number, method, path, headers)` says what happens to each request:

    `None` it is served; `503`; `"reset"` before the answer; `"reset-body"` and `"short-body"` in the middle of the body;
    `"stall"` headers, then silence until the client leaves.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, endpoint):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urllib.parse.urlsplit(endpoint).netloc
        self.endpoint = "http://127.0.0.1:%d" % self.server_address[1]
        self.lock = threading.Lock()
        self.requests, self.fate, self.failed = [], lambda *_: None, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self):
        """Requests since the last call: (method, path, range or None)."""
        with self.lock:
            taken, self.requests = self.requests, []
            return taken

    def handle_error(self, request, client_address):
        """Clients and tests break connections on purpose."""


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        proxy = self.server
        while line := self.rfile.readline():
            method, path, _ = line.decode().split()
            headers = {}
            while (field := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = field.decode().partition(":")
                headers[name.strip().lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            with proxy.lock:
                fate = proxy.fate(len(proxy.requests), method, path, headers)
                proxy.requests.append((method, path, headers.get("range")))
                proxy.failed += fate is not None
            if fate == 503:
                self.wfile.write(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n")
                continue
            if fate == "reset":
                return self.reset()
            upstream = http.client.HTTPConnection(proxy.upstream)
            # As it came, Host included: the signature covers it.
            upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "content-length", "connection")]
            length = answer.getheader("content-length") if method == "HEAD" else len(data)
            head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in kept)
            if answer.status not in (204, 304):
                head += f"content-length: {length or 0}\r\n"
            self.wfile.write(head.encode() + b"\r\n")
            if fate == "stall":
                self.rfile.read(1)
                return None
            if fate in ("reset-body", "short-body"):
                self.wfile.write(data[: len(data) // 2])
                return self.reset() if fate == "reset-body" else None
            self.wfile.write(data)
        return None

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
