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


def roll_call(address: str, processes: int, index: int, seconds: float = SECONDS) -> None:
    """Return when all processes have come; each calls this. Raise UserError, on all that have, if
    one has not within so many seconds, or has twice.

    address: HOST:PORT of process 0.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(f"--multihost: got the address {address!r}, expected HOST:PORT")
    if not 0 <= index < processes:
        raise UserError(f"--multihost: got process {index} of {processes}, expected 0 or more")
    if index == 0:
        problem = _call(int(port), processes, seconds)
    else:
        problem = _answer(host.strip("[]"), int(port), index, seconds)
    if problem:
        raise UserError(f"--multihost: {problem}")


def _call(port: int, processes: int, seconds: float) -> str:
    """Wait for the others, and tell them what there is to say: nothing, or what is wrong."""
    came = {0: socket.gethostname()}
    with contextlib.ExitStack() as open_connections:
        try:
            server = open_connections.enter_context(socket.create_server(("", port)))
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise
            raise UserError(
                f"--multihost: port {port} of {came[0]} is in use, by another run of this command "
                "perhaps; end that, or give another port"
            ) from e
        connections, problem = [], ""
        for connection, (index, host) in _callers(server, time.monotonic() + seconds):
            connections.append(open_connections.enter_context(connection))
            if index in came or index >= processes:
                problem = f"process {index} of {processes} came from {host}"
                if index in came:
                    problem += f" and from {came[index]}"
                break
            came[index] = host
            if len(came) == processes:
                break
        if not problem and len(came) < processes:
            missing = ", ".join(str(i) for i in range(processes) if i not in came)
            present = ", ".join(f"{i} on {host}" for i, host in sorted(came.items()))
            problem = (
                f"of {processes} processes, {missing} did not come within {seconds:.0f} s; there "
                f"are {present}; start the same command on every host"
            )
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(problem).encode() + b"\n")
                connection.recv(1)  # its end: whoever closes first keeps the port for a while
    return problem


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


def _answer(host: str, port: int, index: int, seconds: float) -> str:
    """Call process 0 until it answers, and return what it says."""
    deadline, reason = time.monotonic() + seconds, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5.0)) as connection:
                connection.sendall(json.dumps([index, socket.gethostname()]).encode() + b"\n")
                connection.settimeout(seconds + 5.0)  # process 0 may have begun to wait just now
                return str(_hear(connection))
        except (OSError, ValueError) as e:
            reason = str(e)
            time.sleep(PAUSE)
    return (
        f"process 0 did not answer at {host}:{port} within {seconds:.0f} s ({reason}); start the "
        "same command on every host"
    )


def _hear(connection: socket.socket):
    """Return what comes in a line of JSON. Raise OSError or ValueError for anything else."""
    with connection.makefile("rb") as lines:
        return json.loads(lines.readline(MOST_BYTES))
