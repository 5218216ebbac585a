"""Those that are there agree on who is there, and on who is not."""

import concurrent.futures
import socket

import pytest

from configs.errors import UserError
from gptjax.cluster import describe_devices, roll_call
from gptjax.cluster.place import Place


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def call_all(places, seconds=10.0):
    """What each process gets: hosts, or the message of its error."""

    def call(place):
        try:
            return roll_call.call_roll(place, seconds)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(call, places))


def places(port, numbers, processes):
    return [Place(number, processes, f"localhost:{port}", []) for number in numbers]


def test_all_are_there_in_any_order(port):
    assert call_all(places(port, (2, 0, 3, 1), 4)) == [[], [socket.gethostname()] * 4, [], []]


def test_those_that_do_not_arrive_are_named_by_all_others(port):
    answers = call_all(places(port, (4, 0, 1), 6), 1.0)
    assert len(set(answers)) == 1
    assert "3 of 6 processes did not arrive within 1 s: 2-3, 5." in answers[0]
    assert f"Those that did: 0-1, 4 on {socket.gethostname()}." in answers[0]


def test_a_missing_process_0_is_named_too(port):
    (answer,) = call_all(places(port, (1,), 2), 1.0)
    assert f"process 0 cannot be reached at localhost:{port} within 1 s (Connection ref" in answer


def test_two_with_one_number_are_refused(port):
    answers = call_all(places(port, (0, 1, 1), 3), 5.0)
    assert "there are two processes 1" in answers[0]
    assert answers[0] in answers[1:]


def test_another_number_of_processes_is_refused(port):
    answers = call_all([*places(port, (0,), 2), *places(port, (1,), 3)])
    assert answers[0] == answers[1] and "is one of 3 processes, process 0 on" in answers[0]


def test_a_port_that_is_taken(port):
    with socket.create_server(("", port)):
        with pytest.raises(UserError, match=f"cannot listen on port {port} .Address already"):
            roll_call.call_roll(Place(0, 2, f"localhost:{port}", []), 1.0)


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/1.1\r\n\r\n", b"", b"[]\n", b'{"process": 7, "processes": 2, "host": "x"}\n'],
)
def test_what_is_no_process_of_the_run_is_ignored(port, monkeypatch, line):
    monkeypatch.setattr(roll_call, "_READ_SECONDS", 0.2)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        zero = pool.submit(roll_call.call_roll, Place(0, 2, f"localhost:{port}", []), 10.0)
        while True:
            try:
                stranger = socket.create_connection(("localhost", port), timeout=5)
                break
            except ConnectionRefusedError:
                pass
        with stranger:
            stranger.sendall(line)
            one = pool.submit(roll_call.call_roll, Place(1, 2, f"localhost:{port}", []), 10.0)
            assert zero.result() == [socket.gethostname()] * 2 and one.result() == []


def test_who_is_short():
    hosts = {i: f"node{i // 8}" for i in range(16)} | {16: "node0"}
    assert roll_call.who(hosts) == "0-7, 16 on node0, 8-15 on node1"


class Device:
    device_kind = "H100"

    def __init__(self, process_index):
        self.process_index = process_index


def test_all_processes_need_the_same_number_of_devices():
    assert describe_devices([Device(0)] * 8) == "8 x H100"
    assert describe_devices([Device(i // 4) for i in range(16)]) == "16 x H100, 4 of each process"
    with pytest.raises(UserError, match=r"\(7 of process 1; 8 of process 0, 2\)"):
        describe_devices([Device(i // 8) for i in range(24) if i != 9])
