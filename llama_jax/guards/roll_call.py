"""Who is there, before JAX takes the chips: a process that does not come is named.

The commonest fault of a pod is a command that runs on some of its hosts only. JAX would wait for
the others for minutes and then abort without a name. So the processes first meet at the address at
which JAX's coordinator will listen: process 0 there, the others call it and say who they are.
"""

import contextlib
import errno
import json
import socket
import time
from collections.abc import Iterator

from llama_jax.config import UserError

SECONDS = 60.0  # from the first that comes to the last
PAUSE = 0.2  # seconds between two calls
MOST_BYTES = 65_536  # of what one says


class Incomplete(UserError):
    """A process did not come, or twice, as one of before may; the next try may go well."""

    status = 1  # to exit with


Lines = dict[int, tuple[str, socket.socket]]  # (host, connection) by process


def roll_call(address: str, processes: int, index: int, seconds: float = SECONDS) -> Lines:
    """Return when all processes have come; each calls this. Raise Incomplete, on all that have, if
    one has not within so many seconds, or has twice, and UserError if they cannot meet.

    address: HOST:PORT of process 0. What is returned is open: on process 0 to all others, on these
    to process 0.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(f"--multihost: got the address {address!r}, expected HOST:PORT")
    if not 0 <= index < processes:
        raise UserError(
            f"--multihost: got process {index} of {processes}, expected 0 to {processes - 1}"
        )
    if processes == 1:  # as on a slice of one host
        return {}
    if index:
        return {0: _answer(host.strip("[]"), int(port), index, seconds)}
    lines, problem = call(int(port), processes, seconds)
    for _, connection in lines.values():
        tell(connection, problem)
    if problem:
        for _, connection in lines.values():
            connection.close()
        raise Incomplete(f"--multihost: {problem}")
    return lines


def call(port: int, processes: int, seconds: float) -> tuple[Lines, str]:
    """Return, on process 0, the others that came, who wait to be told, and what is wrong."""
    here, lines, problem = socket.gethostname(), Lines(), ""
    try:
        server = socket.create_server(("", port))
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        raise UserError(
            f"--multihost: port {port} of {here} is in use, by another run of this command, "
            "perhaps; end that, or give another port"
        ) from e
    with server:
        for connection, (index, host) in _callers(server, time.monotonic() + seconds):
            if index in lines or index >= processes:
                problem = f"process {index} of {processes} came from {host}"
                if index in lines:
                    problem += f" and from {lines[index][0]}"
                    tell(lines[index][1], problem)
                    lines[index][1].close()
                lines[index] = host, connection
                break
            lines[index] = host, connection
            if len(lines) == processes - 1:
                break
    if not problem and len(lines) < processes - 1:
        missing = ", ".join(str(i) for i in range(1, processes) if i not in lines)
        present = [f"0 on {here}", *(f"{i} on {lines[i][0]}" for i in sorted(lines))]
        problem = (
            f"of {processes} processes, {missing} did not come within {seconds:.0f} s; there "
            f"are {', '.join(present)}; start the same command on every host"
        )
    return lines, problem


def tell(connection: socket.socket, problem: str) -> None:
    """Say what is wrong, if anything, to one that will listen."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps([problem, socket.gethostname()]).encode() + b"\n")


def _callers(
    server: socket.socket, deadline: float
) -> Iterator[tuple[socket.socket, tuple[int, str]]]:
    """Yield each that calls and says who it is, until the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return
        connection.settimeout(min(left, 5.0))
        try:
            index, host = _hear(connection)
            if type(index) is not int or index < 1 or not isinstance(host, str):
                raise ValueError
        except (OSError, ValueError, TypeError, RecursionError):
            connection.close()  # something else that looks for open ports
            continue
        yield connection, (index, host)


def _answer(host: str, port: int, index: int, seconds: float) -> tuple[str, socket.socket]:
    """Call process 0 until it answers, and return its host and the open connection."""
    deadline, reason = time.monotonic() + seconds, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=min(left, 5.0))
        except OSError as e:
            reason = str(e)
            time.sleep(PAUSE)
            continue
        try:
            connection.sendall(json.dumps([index, socket.gethostname()]).encode() + b"\n")
            connection.settimeout(seconds + 5.0)  # process 0 may have begun to wait just now
            problem, name = _hear(connection)
        except (OSError, ValueError, TypeError) as e:
            connection.close()
            reason = str(e)
            time.sleep(PAUSE)
            continue
        if problem:
            connection.close()
            raise Incomplete(f"--multihost: {problem}")
        return str(name), connection
    raise Incomplete(
        f"--multihost: process 0 did not answer at {host}:{port} within {seconds:.0f} s ({reason})"
        "; start the same command on every host"
    )


def _hear(connection: socket.socket):
    """Return what comes in a line of JSON. Raise OSError or ValueError for anything else."""
    line = b""
    while not line.endswith(b"\n"):  # a byte at a time: what follows is for others to read
        if len(line) > MOST_BYTES or not (byte := connection.recv(1)):
            raise ValueError("the line broke")
        line += byte
    return json.loads(line)
