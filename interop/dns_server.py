"""A small DNS server of the run's own."""

import getpass
import os
import pathlib

from children import Child, free_port


class DnsServer:
    """dnsmasq on a free loopback port, which knows what it is told and asks nobody else."""

    def __init__(self, folder, names):
        self.port = free_port()
        # A user that is not root's may have to read it.
        hosts = pathlib.Path(folder) / "hosts"
        hosts.write_text("".join(f"{address} {name}\n" for name, address in names), encoding="utf-8")
        options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll", "--pid-file="]
        options += [f"--addn-hosts={hosts}", f"--user={getpass.getuser()}", "--listen-address=127.0.0.1", "--bind-interfaces"]
        path = f"{os.environ['PATH']}:/usr/sbin"
        self._process = Child("dnsmasq", ["dnsmasq", f"--port={self.port}", *options], env={"PATH": path})
        self._process.until_it_listens(self.port)
