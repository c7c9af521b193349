"""An auth service that gets its tickets from the service door of Tidings, over HTTP. Python's standard library is enough.

    tidings dev
    python3 auth_service.py
    curl -d '{"user":"demo","password":"demo"}' http://127.0.0.1:9001/login

The answer is {"ticket":"…"}: the page opens new WebSocket("ws://127.0.0.1:8080/ws?ticket=…"). TIDINGS_ADDR is the service
door of any node (127.0.0.1:8081 if unset), TIDINGS_API_KEY a key with the scope ticket, which no page ever sees, LISTEN
where this listens (127.0.0.1:9001).
"""

import json
import os
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DOOR = os.environ.get("TIDINGS_ADDR", "127.0.0.1:8081")
KEY = os.environ.get("TIDINGS_API_KEY", "dev-key-not-for-production")


def issue(user):
    """A ticket for `user`, good for one connection within 30 s."""
    request = urllib.request.Request(
        f"http://{DOOR}/v1/tickets",
        data=json.dumps({"user_id": user, "ttl": "30s"}).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)["ticket"]


class Login(BaseHTTPRequestHandler):
    """`POST /login`."""

    def do_POST(self):
        if self.path != "/login":
            return self.answer(404, {"error": "POST /login"})
        try:
            length = min(int(self.headers.get("Content-Length", 0)), 4096)
            who = json.loads(self.rfile.read(length))
            user, password = who["user"], who["password"]
        except (ValueError, KeyError, TypeError):
            return self.answer(400, {"error": 'send {"user":…,"password":…}'})
        # Your own check goes here.
        if (user, password) != ("demo", "demo"):
            return self.answer(401, {"error": "unknown user or wrong password"})
        try:
            return self.answer(200, {"ticket": issue("42")})
        except urllib.error.HTTPError as refused:
            # A problem document (RFC 9457), whose `detail` says what to do.
            print(f"tidings: {refused.read().decode()}", file=sys.stderr)
        except OSError as error:
            print(f"tidings at {DOOR}: {error}; is the node running?", file=sys.stderr)
        return self.answer(503, {"error": "no tickets now"})

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() + b"\n")


def main():
    host, port = os.environ.get("LISTEN", "127.0.0.1:9001").rsplit(":", 1)
    print(f"POST http://{host}:{port}/login", file=sys.stderr)
    try:
        ThreadingHTTPServer((host, int(port)), Login).serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
