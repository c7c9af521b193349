"""A Redis of the run's own, on a free loopback port, which keeps nothing on disk."""

from children import Child, free_port, run


class RedisServer:
    """`redis-server`, and what `redis-cli` says of it."""

    def __init__(self):
        self._port = free_port()
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--save", "", "--appendonly", "no"]
        # It logs to stdout, and why a child ended is looked for in its stderr.
        self._process = Child("redis-server", ["sh", "-c", 'exec redis-server "$@" >&2', "sh", *options])
        self._process.until_it_listens(self._port)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self._port}"

    def cli(self, *words):
        """The lines that redis-cli answers to a command."""
        return run(["redis-cli", "-p", str(self._port), *words]).splitlines()
