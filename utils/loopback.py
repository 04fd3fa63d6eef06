"""A web server for one user of this machine: on its loopback address, behind a secret in the path."""
import errno
import hmac
import json
import os
import secrets
import sys
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qsl, urlsplit

from utils.names import shown

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
PATIENCE = 60  # seconds that a connection may keep silent
HEADERS = {  # what pages of other sites, and of this one, may not do
    "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'"}


class LoopbackServer(ThreadingHTTPServer):
    """Answers requests from this machine that name the secret.

    The loopback address keeps other machines out, the secret, which only `url` has, other users of this one and pages of other
    sites. Those that have the name of their site lead here, to be taken for this one, are refused by the Host they ask for.

    Args:
        port: 0 = any that is free.

    Attributes:
        routes: {(method, name): (most bytes of a body, answer)}, where `answer(query, body)`, of a dict and bytes, gives a
            content type and bytes. What it raises as ValueError or OSError the browser gets as {"error": line}.
    Raises: ValueError on a port that can't be had.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two programs have the same port

    def __init__(self, port):
        self.routes, self.secret = {}, secrets.token_urlsafe(12)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            used = getattr(error, "errno", None) == errno.EADDRINUSE
            raise ValueError(f"port {port} (--port) {'is in use' if used else 'can not be had'} on this machine"
                             f"{'' if used else f' ({error})'}: choose another, or --port 0 for any that is free.") from error

    def server_bind(self):
        """As HTTPServer, which also asks for the name of the machine, and may wait for it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    @property
    def url(self):
        return f"http://{ADDRESS}:{self.server_port}/{self.secret}/"

    def handle_error(self, request, client_address):
        """As HTTPServer; a browser that has left, or reads no more, is none."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            HTTPServer.handle_error(self, request, client_address)


class _Refused(Exception):
    """A status of HTTP, and a line."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE

    def do_GET(self):
        self._respond("GET")

    def do_POST(self):
        self._respond("POST")

    def _respond(self, method):
        try:
            status, (kind, content) = 200, self._answer(method)
        except _Refused as refusal:
            status, (kind, content) = refusal.args[0], as_json({"error": refusal.args[1]})
        except (ValueError, OSError) as error:
            status, (kind, content) = 400, as_json({"error": shown(" ".join(str(error).split()))})
        except Exception:
            traceback.print_exc()
            status, (kind, content) = 500, as_json({"error": "an error of the program: its terminal says more."})
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, method):
        host, place = self.headers.get("Host", ""), urlsplit(self.path)
        if (host.rpartition(":")[0] or host).lower() not in HOSTS:
            raise _Refused(403, f"this server is known as {' or '.join(HOSTS)}, and nothing else.")
        secret, slash, name = place.path.removeprefix("/").partition("/")
        if not hmac.compare_digest((secret + slash).encode(), f"{self.server.secret}/".encode()):
            raise _Refused(403, "open the address that the program has printed, whole.")
        if (method, name) not in self.server.routes:
            raise _Refused(404, "there is no such page.")
        most, answer = self.server.routes[method, name]
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal():
            raise _Refused(400, "the length of the request is no number.")
        if int(length) > most:
            raise _Refused(413, f"{int(length) / 2 ** 20:.1f} MiB were sent, and at most {most / 2 ** 20:g} MiB are taken.")
        return answer(dict(parse_qsl(place.query)), self.rfile.read(int(length)))

    def log_message(self, form, *values):
        """Requests are not written to the console."""


def as_json(value):
    """(content type, bytes) of a value."""
    return "application/json", json.dumps(value, allow_nan=False).encode()
