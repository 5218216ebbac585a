"""Traffic of compiled programs whose bytes can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from gptjax.plan import hlo, hlo_traffic
from gptjax.plan.hlo_traffic import Transfer, largest

SQUARE = 4 * 256 * 256


def transfers(text):
    return hlo_traffic.transfers(hlo.parse(text))


def bytes_moved(text):
    return sum(transfer.total for transfer in transfers(text))


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_elementwise_work_is_one_fusion():
    text = compiled(lambda x, y: jnp.tanh(x) * y + 1, (256, 256), (256, 256))
    assert bytes_moved(text) == 3 * SQUARE


def test_a_matmul_reads_both_operands_and_writes_the_result():
    text = compiled(lambda x, y: x @ y, (256, 256), (256, 256))
    assert bytes_moved(text) == 3 * SQUARE


def test_a_loop_counts_in_each_iteration():
    def repeated(n):
        return lambda x, y: jax.lax.scan(lambda c, _: (jnp.tanh(c) * y, None), x, length=n)[0]

    of_12, of_3 = (bytes_moved(compiled(repeated(n), *[(256, 256)] * 2)) for n in (12, 3))
    assert of_12 - of_3 == pytest.approx(9 * 3 * SQUARE, rel=0.01)  # and its counter


def test_a_loop_over_stacked_arrays_reads_and_writes_slices():
    def cumulated(xs, c):
        return jax.lax.scan(lambda c, x: (c + x, jnp.sin(c)), c, xs)[1]

    text = compiled(cumulated, (32, 256, 256), (256, 256))
    per_iteration = bytes_moved(text) / 32 / SQUARE
    # Reads c and x, writes c + x; reads c, writes sin c; a compiler may copy c once or twice more.
    # With whole stacks it would be more than 64.
    assert 3 <= per_iteration <= 10


def test_a_slice_reads_what_it_takes():
    text = compiled(lambda x, y: jnp.concatenate([x[:8], y]), (256, 256), (256, 256))
    assert bytes_moved(text) == 2 * (SQUARE + SQUARE // 32)


def test_the_largest_transfer_names_the_operation_that_it_comes_from():
    text = compiled(
        lambda x, y: jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, length=9)[0],
        (256, 256),
        (256, 256),
    )
    largest = max(transfers(text), key=lambda transfer: transfer.total)
    assert largest.runs == 9
    assert largest.total == 9 * largest.bytes == 9 * 3 * SQUARE
    assert largest.source.endswith("dot_general")


def test_text_that_is_not_a_program_is_refused():
    with pytest.raises(ValueError, match="HLO"):
        transfers("hello")


def test_the_largest_are_grouped_by_source_and_size():
    parts = [Transfer("f1", "a", 3, 10), Transfer("f2", "b", 1, 45), Transfer("f3", "a", 2, 10)]
    parts += [Transfer("f4", "a", 1, 11)]
    assert largest(parts, 2) == [Transfer("f1", "a", 5, 10), Transfer("f2", "b", 1, 45)]
    text = compiled(
        lambda x, y: jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, length=9, unroll=9)[0],
        (256, 256),
        (256, 256),
    )
    (first,) = largest(transfers(text), 1)
    assert first.runs == 9 and first.source.endswith("dot_general")
    assert sum(t.total for t in largest(transfers(text), 99)) == bytes_moved(text)


def test_of_a_conditional_the_larger_branch_counts():
    def either(flag, x, y):
        return jax.lax.cond(flag[0] > 0, lambda: x @ y, lambda: x)

    text = compiled(either, (1,), (256, 256), (256, 256))
    (matmul,) = [t for t in transfers(text) if t.source.endswith("dot_general")]
    assert matmul.total == 3 * SQUARE
