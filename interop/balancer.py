"""What stands between clients and nodes: each connection goes to the first node that takes it."""

import socket
import threading


class Balancer:
    """Listens on a free loopback port, and forwards to `nodes`, which are addresses."""

    def __init__(self):
        self.nodes = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.at = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        for node in self.nodes:
            host, port = node.split(":")
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                continue
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            _copy(server, client)
            return
        client.close()


def _copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One end has gone; so does the other.
        for end in (source, target):
            end.close()
