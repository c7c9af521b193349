"""The backend of the pages beside it: serves them, and gives the one who is logged in a ticket.

    python3 serve.py --user 42        then open http://127.0.0.1:8000/ or /reconnect.html

A real backend takes the user from its own session; this one takes it from the command line. The API key stays here: a
browser never sees it. TIDINGS_ADDR is the service door of any node (127.0.0.1:8081 if unset), TIDINGS_API_KEY a key with
the scope ticket. Python's standard library is enough.
"""

import argparse
import functools
import http.server
import json
import os
import pathlib
import urllib.error
import urllib.request

ADDR = os.environ.get("TIDINGS_ADDR", "127.0.0.1:8081")
KEY = os.environ.get("TIDINGS_API_KEY", "dev-key-not-for-production")


def issue_ticket(user):
    """Status and JSON text of the answer to POST /v1/tickets."""
    request = urllib.request.Request(
        f"http://{ADDR}/v1/tickets",
        data=json.dumps({"user_id": user}).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        print(f"no ticket: {error.status} {error.read().decode(errors='replace')}", flush=True)
    except OSError as error:
        print(f"no ticket: {ADDR}: {error}", flush=True)
    # To the page all of these mean: not now. A 401 from here would mean that the user is logged out.
    return 503, b'{"error":"no ticket now"}'


class Backend(http.server.SimpleHTTPRequestHandler):
    """Static files of this folder, and POST /ticket."""

    def __init__(self, *args, user, **kwargs):
        self.user = user
        super().__init__(*args, directory=str(pathlib.Path(__file__).parent), **kwargs)

    def do_POST(self):
        status, body = issue_ticket(self.user) if self.path == "/ticket" else (404, b"{}")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--user", default="42", help="who is logged in")
    parser.add_argument("--port", type=int, default=8000, help="0 = a free one")
    args = parser.parse_args()
    backend = functools.partial(Backend, user=args.user)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", args.port), backend)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
