"""What tells boards apart: their SSH host keys. Runs on the control machine."""

import os
import subprocess

ALGORITHM = "ssh-ed25519"
# The comment of a key that was made for its board. One without it came with the card, which may
# share it with all others.
OWN = "own"


def keys(lines, comment=None):
    """Keys in lines of a known_hosts file; with a comment, those that have it."""
    fields = (line.split() for line in lines.splitlines() if not line.startswith("#"))
    return {
        field[2]
        for field in fields
        if len(field) >= 3 and field[1] == ALGORITHM and comment in (None, *field[3:])
    }


def recorded(path, comment=None):
    """Keys that a board's known_hosts file has; none where there is no file."""
    if not os.path.exists(path):
        return set()
    with open(path) as file:
        return keys(file.read(), comment)


def scan(host, limit):
    """Keys that the SSH server of a host has, within so many seconds; none where none answers."""
    return keys(
        subprocess.run(
            ["ssh-keyscan", "-T", str(limit), "-t", "ed25519", host],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ).stdout.decode()
    )
