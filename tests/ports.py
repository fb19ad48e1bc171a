"""Ports for servers of tests, which bind them only after a while."""

import itertools
import os
import socket

# Below those that the kernel hands out by itself, for every connection of whatever runs beside:
# one of them could be taken before its server comes. The clusters of tests/slurm begin above.
FIRST, LAST = 10_000, 17_000
_numbers = itertools.count(os.getpid() * 61)


def free_port() -> int:
    """Return a port of this machine that nobody listens on, another one each time."""
    for number in itertools.islice(_numbers, LAST - FIRST):
        port = FIRST + number % (LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # somebody's
                continue
            return port
    raise AssertionError(f"no free port from {FIRST} to {LAST}")
