"""A Tidings node under test, and its doors as seen from outside."""

import http.client
import json

from children import DEADLINE, Child, Failed


class Gateway:
    """`tidings dev` on free loopback ports, which it keeps over a restart. `options` are further flags of its own."""

    def __init__(self, binary, *options, service="127.0.0.1:0"):
        self._command = [binary, "dev", "--json", *options]
        self.public = self.admin = "127.0.0.1:0"
        self.service = service
        self.start()

    def start(self):
        """Starts it, on the ports it had if it ran before."""
        doors = {"public": self.public, "service": self.service, "admin": self.admin}
        listen = [word for door, addr in doors.items() for word in ("--set", f"{door}.listen={addr}")]
        self._process = Child("tidings dev", [*self._command, *listen])
        ready = self._process.json()
        self.public, self.service, self.admin = ready["public"], ready["service"], ready["admin"]
        self.key = ready["key"]

    def kill(self):
        """As a crash does."""
        self._process.kill()

    def leave(self):
        """As a deploy does: it drains."""
        self._process.terminate()

    def is_ready(self):
        """Whether it says so."""
        return request(self.admin, "GET", "/readyz", None, {})[0] == 200

    def metric(self, name):
        """What one of its metrics without labels counts."""
        _, text = request(self.admin, "GET", "/metrics", None, {})
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    @property
    def env(self):
        """What the examples read."""
        return {"TIDINGS_ADDR": self.service, "TIDINGS_API_KEY": self.key}

    def calls(self, method):
        """How many calls of a method it answered well."""
        _, text = request(self.admin, "GET", "/metrics", None, {})
        counted = f'tidings_calls_total{{method="{method}",code="OK"}}'
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(counted))

    def history(self, address):
        """What is kept of an address's messages, the oldest first."""
        headers = {"Authorization": f"Bearer {self.key}"}
        status, text = request(self.service, "GET", f"/v1/history?address={address}&limit=100", None, headers)
        if status != 200:
            raise Failed(f"history of {address}: {status} {text}")
        return json.loads(text)["entries"]

    def post(self, path, body):
        """Calls the service door; the answer's JSON."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        status, text = request(self.service, "POST", path, json.dumps(body), headers)
        if status != 200:
            raise Failed(f"POST {path} {body}: {status} {text}")
        return json.loads(text)

    def ticket(self, user):
        """A ticket for `user`."""
        return self.post("/v1/tickets", {"user_id": user})["ticket"]

    def handshake(self, ticket):
        """The status that a WebSocket handshake with this ticket is answered."""
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        return request(self.public, "GET", f"/ws?ticket={ticket}", None, headers)[0]


def request(addr, method, path, body, headers):
    """Status and text of the answer."""
    connection = http.client.HTTPConnection(addr, timeout=DEADLINE)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, "" if answer.status == 101 else answer.read().decode()
    finally:
        connection.close()
