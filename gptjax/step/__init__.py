"""One optimizer step and one evaluation step, jit-compiled and sharded."""
