"""The command `gptjax`: its verbs, and those of them that need no JAX."""
