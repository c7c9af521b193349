"""Child processes of the driver: each answer has a deadline, and none outlives the run."""

import json
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time

# Seconds for any one answer. A slow machine under load needs a few; nothing here should need more.
DEADLINE = 30


class Failed(Exception):
    """A check that failed, with the reason."""


class Child:
    """A process that talks by lines: JSON out, and in where it takes commands."""

    running = []

    def __init__(self, name, command, env=None):
        self.name = name
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        # A session of its own, so that a browser's children end with it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **(env or {})},
            text=True,
            start_new_session=True,
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        Child.running.append(self)

    def _read(self):
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self):
        """The next line of its output."""
        try:
            line = self._lines.get(timeout=DEADLINE)
        except queue.Empty:
            raise Failed(f"{self.name} said nothing within {DEADLINE} s{self._complaints()}") from None
        if line is None:
            raise Failed(f"{self.name} ended{self._complaints()}")
        return line

    def json(self):
        """The next line, as JSON."""
        return json.loads(self.line())

    def ask(self, **command):
        """Sends a command; its answer, without which it did not happen."""
        print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self.json()
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}{self._complaints()}")
        return answer

    def finish(self):
        """Ends its input, which is its sign to leave; the lines that were left."""
        self._process.stdin.close()
        try:
            code = self._process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not leave within {DEADLINE} s") from None
        if code != 0:
            raise Failed(f"{self.name} ended with {code}{self._complaints()}")
        return list(iter(self._lines.get, None))

    def until_it_listens(self, port):
        """Waits until it accepts connections on a loopback port."""
        until(f"{self.name} listens on port {port}", lambda: self._listens(port))

    def _listens(self, port):
        if self._process.poll() is not None:
            raise Failed(f"{self.name} ended{self._complaints()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE).close()
        except OSError:
            return False
        return True

    def terminate(self):
        """Asks it to end, and waits until it has, well."""
        self._process.terminate()
        try:
            code = self._process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not end within {DEADLINE} s of a SIGTERM") from None
        if code != 0:
            raise Failed(f"{self.name} ended with {code}{self._complaints()}")

    def kill(self):
        """Ends it and its children, now."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _complaints(self):
        self._stderr.seek(0)
        lines = self._stderr.read().splitlines()[-12:]
        return "".join(f"\n    {line}" for line in lines)

    @classmethod
    def kill_all(cls):
        """Whatever still runs."""
        for child in cls.running:
            child.kill()


def until(what, holds):
    """Waits until `holds()` does, which raises where it never will."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"waited {DEADLINE} s in vain until {what}")
        time.sleep(0.05)


def free_port():
    """A loopback port that nothing has, for a server that cannot choose its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def run(command, cwd=None, env=None, fails=False):
    """Runs a command to its end; what it printed. With `fails`, it must end with an error."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=DEADLINE * 10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} took more than {DEADLINE * 10} s") from None
    output = done.stdout + done.stderr
    if (done.returncode != 0) != fails:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}: {output.strip()}")
    return output if fails else done.stdout
