"""What the command says at the end of a run."""

import copy
import logging
import types

import pytest

from gptjax import main


@pytest.mark.parametrize(
    ("step", "messages_column", "last"),
    [
        (20, "", 'Done. To generate text: gptjax generate runs/a --prompt="..."'),
        (20, "messages", "Done. To talk with the model: gptjax chat runs/a"),
        (19, "messages", "Stopped at step 19 of 20. The same command continues."),
    ],
)
def test_the_last_line_says_what_can_be_done_next(
    debug_config, monkeypatch, caplog, step, messages_column, last
):
    config = copy.deepcopy(debug_config)
    config.workdir, config.data.messages_column = "runs/a", messages_column
    monkeypatch.setattr(main, "keep_compiled", lambda _: None)
    state = types.SimpleNamespace(step=step)
    monkeypatch.setattr(main, "train_and_evaluate", lambda *_: state)
    with caplog.at_level(logging.INFO):
        main.main(config)
    assert caplog.messages[-1] == last
