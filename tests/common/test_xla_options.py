"""The options of XLA are options that it knows."""

import jax

from gptjax.common.xla_options import compiler_options


def test_xla_knows_them():
    assert compiler_options(deterministic=False) == {}
    options = compiler_options(deterministic=True)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
