"""The next computation is dispatched before a result is read."""

from gptjax.common.one_ahead import one_ahead


def test_each_item_is_yielded_after_the_next_one_is_dispatched():
    events = []

    def dispatched():
        for i in range(3):
            events.append(f"dispatch {i}")
            yield i

    for i in one_ahead(dispatched()):
        events.append(f"read {i}")
    assert events == ["dispatch 0", "dispatch 1", "read 0", "dispatch 2", "read 1", "read 2"]


def test_few_items():
    assert list(one_ahead([])) == [] and list(one_ahead([None])) == [None]
