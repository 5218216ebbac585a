"""The options of XLA for the programs that decide the bits of a run."""


def compiler_options(*, deterministic: bool) -> dict[str, bool]:
    """Returns `compiler_options` for `jax.jit`, the same wherever XLA_FLAGS say something else.

    `deterministic` is for a GPU. XLA then takes deterministic kernels only (of cuDNN's attention,
    whose backward pass else sums by atomic additions; of cuBLAS; for scatters, as of embeddings'
    gradients) and the first kernel that it knows instead of the fastest by a measurement, so that
    another compilation is the same program. An operation that has none does not compile.
    """
    return {"xla_gpu_deterministic_ops": True} if deterministic else {}
