"""Processes are started where they pay; test_interruption.py kills them."""

import operator
import os

import pytest

from data_pipeline import worker_pool


def test_small_shards_do_not_pay_for_processes(tmp_path):
    for parts_, n in ((0, None), (1, None), (3, None), (4, 2), (9, 4), (100, 4)):
        with worker_pool.Pool(4, parts_) as pool:
            assert (pool._pool and pool._pool._max_workers) == n


@pytest.mark.parametrize("n_parts", [1, 100])
def test_every_item_comes_back_with_its_result(n_parts):
    with worker_pool.Pool(2, n_parts) as pool:
        for _ in range(2):  # the processes are used again
            assert dict(pool.run(operator.neg, [1, 2, 3])) == {1: -1, 2: -2, 3: -3}
        pids = {pid for _, pid in pool.run(_pid, range(20))}
    assert (pids == {os.getpid()}) == (n_parts == 1)


def _pid(_):
    return os.getpid()
