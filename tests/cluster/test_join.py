"""How a process of several leaves when it fails: with its number, at once, and not with 0."""

import logging

import jax
import pytest
from absl import logging as absl_logging

from configs import cli
from configs.errors import UserError
from gptjax.cluster import join
from gptjax.cluster.place import Place


class Exit(BaseException):
    pass


@pytest.fixture
def run(monkeypatch, caplog):
    """Fails with an error among the processes of a run; returns the status and what is logged."""
    handler = absl_logging.get_absl_handler()
    level = handler.level

    def leave(status):
        raise Exit(status)

    monkeypatch.setattr(join, "_connect", lambda *_: None)
    monkeypatch.setattr(join, "_LAST_WORDS_SECONDS", 0)
    monkeypatch.setattr(join.os, "_exit", leave)

    def fail(error, process=1):
        with pytest.raises(Exit) as left, join.joined(Place(process, 2, "a:1", []), 1, 10):
            logging.getLogger("gptjax").info("stepping")
            raise error
        return left.value.args[0], "\n".join(map(handler.format, caplog.records))

    yield fail
    handler.setLevel(level)
    cli.format_log()


@pytest.mark.parametrize("process", [0, 1])
def test_an_error_is_logged_with_the_number_of_the_process(run, process):
    status, log = run(UserError("the store is damaged"), process)
    assert status == 1 and log.endswith(f" [{process}] error: the store is damaged")
    assert absl_logging.get_absl_handler().level == (logging.WARNING if process else 0)


def test_errors_of_the_system_and_interruptions(run):
    status, log = run(PermissionError(13, "Permission denied", "/a/b"))
    assert status == 1 and "[1] error: /a/b: Permission denied" in log
    status, log = run(KeyboardInterrupt())
    assert status == 130 and "[1] Interrupted." in log


def test_the_end_of_another_process_is_no_traceback(run):
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    status, log = run(lost)
    assert status == 1 and "another process has ended" in log and "Traceback" not in log


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")]
)
def test_a_mistake_of_ours_is_a_traceback(run, error):
    status, log = run(error)
    assert status == 1 and "Traceback" in log and str(error) in log


def test_alone_nothing_changes():
    with pytest.raises(UserError), join.joined(None, 1, 10):
        raise UserError("printed by configs/cli.py")
