"""Collectives of compiled programs whose bytes can be counted by hand."""

import json
import subprocess
import sys

import pytest

from gptjax.plan import hlo
from gptjax.plan.collectives import Collective, collectives, sent

# Eight devices, in this order: x has 64 x 256 float32 on each.
PROGRAMS = """
import json, jax, jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 8)
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=auto)

def scan(x):
    return lax.scan(lambda c, _: (lax.all_gather(c, "fsdp")[1] + 1, None), x, length=7)[0]

def nested(x):
    def outer(c, _):
        return lax.scan(lambda c, _: (jnp.sin(lax.psum(c, "data")), None), c, length=3)[0], None
    return lax.scan(outer, x, length=5)[0]

def cond(x):
    small = lambda x: x + lax.psum(x[0, 0], "fsdp")
    return lax.cond(x[0, 0] > 0, small, lambda x: lax.psum(x, "fsdp"), x)

LOCAL = {
    "none": jnp.sin,
    "psum": lambda x: lax.psum(x, "fsdp"),
    "psum of data": lambda x: lax.psum(x, "data"),
    "psum of all": lambda x: lax.psum(x, ("data", "fsdp")),
    "all_gather": lambda x: lax.all_gather(x, "fsdp"),
    "psum_scatter": lambda x: lax.psum_scatter(x, "fsdp", tiled=True),
    "all_to_all": lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True),
    "ppermute": lambda x: lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
    "scan": scan, "nested": nested, "cond": cond,
}
x = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=NamedSharding(mesh, P(mesh.axis_names)))

def text(function):
    local = jax.shard_map(function, mesh=mesh, in_specs=P(mesh.axis_names),
                          out_specs=P(mesh.axis_names), check_vma=False)
    return jax.jit(local).lower(x).compile().as_text()

texts = {name: text(function) for name, function in LOCAL.items()}
automatic = jax.jit(lambda x: x.T @ x, out_shardings=NamedSharding(mesh, P()))
texts["automatic"] = automatic.lower(x).compile().as_text()
print(json.dumps(texts))
"""
X = 4 * 64 * 256


@pytest.fixture(scope="module")
def texts():
    command = [sys.executable, "-c", PROGRAMS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# kind, bytes of the operand, group, runs, bytes that a device sends: a ring of k devices passes
# k - 1 parts, of what each has (gathered) or of a k-th (scattered).
EXPECTED = {
    "none": None,
    "psum": ("all-reduce", X, [0, 1, 2, 3], 1, 2 * 3 * X // 4),
    "psum of data": ("all-reduce", X, [0, 4], 1, X),
    "psum of all": ("all-reduce", X, list(range(8)), 1, 2 * 7 * X // 8),
    "all_gather": ("all-gather", X, [0, 1, 2, 3], 1, 3 * X),
    "psum_scatter": ("reduce-scatter", X, [0, 1, 2, 3], 1, 3 * X // 4),
    "all_to_all": ("all-to-all", X, [0, 1, 2, 3], 1, 3 * X // 4),
    "ppermute": ("collective-permute", X, [0, 1], 1, X),
    "scan": ("all-gather", X, [0, 1, 2, 3], 7, 7 * 3 * X),
    "nested": ("all-reduce", X, [0, 4], 15, 15 * X),
    "cond": ("all-reduce", X, [0, 1, 2, 3], 1, 2 * 3 * X // 4),  # the branch that sends most
    "automatic": ("all-reduce", 4 * 256 * 256, list(range(8)), 1, 2 * 7 * 4 * 256 * 256 // 8),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_collective_is_counted_as_a_ring(texts, name):
    found = collectives(hlo.parse(texts[name]))
    if EXPECTED[name] is None:
        assert found == []
        return
    (one,) = found
    kind, n_bytes, group, runs, wire_bytes = EXPECTED[name]
    assert (one.kind, one.dtype, one.bytes) == (kind, "f32", n_bytes)
    assert (list(one.group), one.runs, one.wire_bytes) == (group, runs, wire_bytes)
    assert sent(found) == wire_bytes


def test_a_collective_names_the_operation_that_it_comes_from(texts):
    (gather,) = collectives(hlo.parse(texts["scan"]))
    assert gather.source.endswith("all_gather")


# As XLA writes them for a GPU: in two parts, with a result of operand and result.
FOR_GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%grouped (p.1: f32[64]) -> f32[64] {
  %p.1 = f32[64]{0} parameter(0)
  ROOT %all-reduce.9 = f32[64]{0} all-reduce(%p.1), channel_id=5, replica_groups={}, to_apply=%add
}

ENTRY %main.1 (a: bf16[16,64], b: f32[16,64], c: f32[64]) -> f32[64] {
  %a = bf16[16,64]{1,0} parameter(0), metadata={op_name="a"}
  %b = f32[16,64]{1,0} parameter(1), metadata={op_name="b"}
  %c = f32[64]{0} parameter(2), metadata={op_name="c"}
  %all-gather-start = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) all-gather-start(%a), channel_id=1, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true
  %all-gather-done = bf16[64,64]{1,0} all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((f32[16,64]{1,0}), f32[4,64]{1,0}) reduce-scatter-start(%b), \
channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[4,64]{1,0} reduce-scatter-done(%reduce-scatter-start)
  %alone = f32[64]{0} all-reduce(%c), channel_id=3, replica_groups=[8,1]<=[8], to_apply=%add
  %all-reduce-start = (bf16[16,64]{1,0}, f32[64]{0}) all-reduce-start(%a, %alone), channel_id=4, \
replica_groups={{0,7},{1,6},{2,5},{3,4}}, to_apply=%add
  %all-reduce-done = (bf16[16,64]{1,0}, f32[64]{0}) all-reduce-done(%all-reduce-start)
  %async-start = ((f32[64]{0}), f32[64]{0}) async-start(%c), calls=%grouped
  ROOT %async-done = f32[64]{0} async-done(%async-start)
}
"""


def test_programs_for_a_gpu_start_their_collectives_and_wait():
    found = collectives(hlo.parse(FOR_GPU))
    assert [c._replace(group=list(c.group)) for c in found] == [
        Collective("all-gather", "bf16", 2 * 16 * 64, [0, 2, 4, 6], 1, ""),
        Collective("reduce-scatter", "f32", 4 * 16 * 64, [0, 1, 2, 3], 1, ""),
        Collective("all-reduce", "bf16", 2 * 16 * 64, [0, 7], 1, ""),  # one for each dtype
        Collective("all-reduce", "f32", 4 * 64, [0, 7], 1, ""),
        Collective("all-reduce", "f32", 4 * 64, list(range(8)), 1, ""),
    ]
