"""Who is there: process 0 waits for all others, and names those that do not arrive.

JAX aborts such a start with a C++ stack that names nobody. So before JAX connects, each process
reports to the port of the coordinator, which JAX then takes over.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from configs.errors import UserError
from configs.read import MIB, mismatch, parse_json
from gptjax.cluster.place import Place

_MAX_LINE = MIB  # bytes
_READ_SECONDS = 2.0  # a report follows its connection at once; what does not is none of ours
_RETRY_SECONDS = 0.5
_REPORT = {"process": int, "processes": int, "host": str}
_ANSWER = {"problem": str}  # "": all are there


def call_roll(place: Place, seconds: float) -> list[str]:
    """Returns the host of each process once all have arrived; on process 0 only, else [].

    Raises UserError on all processes that are there: if one has not arrived `seconds` after process
    0, if two have the same number, or another number of processes; on one that cannot reach process
    0 within `seconds`.
    """
    if place.process > 0:
        _report(place, seconds)
        return []
    hosts, waiting, problem = _wait_for_all(place, time.monotonic() + seconds)
    missing = [i for i in range(place.processes) if i not in hosts]
    if missing and not problem:
        problem = (
            f"{len(missing)} of {place.processes} processes did not arrive within {seconds:g} s: "
            f"{ranges(missing)}. Those that did: {who(hosts)}. See what the missing ones print, "
            f"and whether they reach {place.coordinator}; --join_seconds waits longer."
        )
    for connection in waiting:
        with contextlib.suppress(OSError), connection:
            connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    if problem:
        raise UserError(problem)
    return [hosts[i] for i in range(place.processes)]


def _wait_for_all(place: Place, deadline: float) -> tuple[dict[int, str], list[socket.socket], str]:
    """Returns the hosts of those that have arrived, their connections, and what is wrong."""
    hosts, waiting = {0: socket.gethostname()}, []
    with _listen(place) as server:
        while len(hosts) < place.processes:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            report = _read(connection, _READ_SECONDS, _REPORT)
            if report is None or not 0 < report["process"] < report["processes"]:
                connection.close()  # a scan of ports, a client of an earlier run
                continue
            waiting.append(connection)
            if problem := _conflict(report, hosts, place):
                return hosts, waiting, problem
            hosts[report["process"]] = report["host"]
    return hosts, waiting, ""


def _conflict(report: dict[str, Any], hosts: dict[int, str], place: Place) -> str:
    """Returns what is wrong with a report beside those of `hosts`; "": nothing."""
    process, host = report["process"], report["host"]
    if report["processes"] != place.processes:
        return (
            f"process {process} on {host} is one of {report['processes']} processes, process 0 on "
            f"{hosts[0]} one of {place.processes}: give all the same --processes."
        )
    if process in hosts:
        return (
            f"there are two processes {process}, on {hosts[process]} and on {host}: each needs a "
            f"--process of its own."
        )
    return ""


def _listen(place: Place) -> socket.socket:
    _, port = place.address
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=dual, backlog=place.processes
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}). Does another run use it? "
            f"Choose another one for all: --coordinator=HOST:PORT."
        ) from error


def _report(place: Place, seconds: float) -> None:
    """Reports to process 0, as soon as it listens, and waits for its answer."""
    report = {"process": place.process, "processes": place.processes}
    line = json.dumps({**report, "host": socket.gethostname()}).encode() + b"\n"
    deadline = time.monotonic() + seconds
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(place.address, timeout=left) as connection:
                connection.sendall(line)
                # Process 0 may have begun to wait just now.
                answer = _read(connection, 2 * seconds, _ANSWER)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if answer is not None:
                if answer["problem"]:
                    raise UserError(answer["problem"])
                return
            reason = "something else answers"  # such as JAX's service of a run that ends just now
        time.sleep(_RETRY_SECONDS)
    raise UserError(
        f"process 0 cannot be reached at {place.coordinator} within {seconds:g} s ({reason}). See "
        f"what it prints, whether it runs on that host, and whether the port is open."
    )


def _read(
    connection: socket.socket, seconds: float, schema: Mapping[str, type]
) -> dict[str, Any] | None:
    """Returns a line of JSON that is as `schema` says; None for anything else."""
    try:
        connection.settimeout(seconds)
        with connection.makefile("rb") as file:
            value = parse_json(file.readline(_MAX_LINE))
    except (OSError, ValueError):
        return None
    return None if mismatch(value, schema) else value


def who(hosts: dict[int, str]) -> str:
    """Returns such as `0-7 on node1, 8-15 on node2`."""
    groups: dict[str, list[int]] = {}
    for process in sorted(hosts):
        groups.setdefault(hosts[process], []).append(process)
    return ", ".join(f"{ranges(group)} on {host}" for host, group in groups.items())


def ranges(numbers: list[int]) -> str:
    """Returns `0-2, 5` for [0, 1, 2, 5]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
