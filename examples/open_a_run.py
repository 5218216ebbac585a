"""Opens a finished run: parameters, loss curve, samples, logits, loss on a text of your own.

    python examples/open_a_run.py runs/quickstart

from any directory, after `make quickstart`.
"""

import sys

import jax
import numpy as np

import gptjax

run = gptjax.load(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
print(f"{run} with gptjax {gptjax.__version__}")

# params is a nested dict of arrays, as any JAX code takes it.
for name, group in run.params.items():
    print(f"{name:>8} {sum(x.size for x in jax.tree.leaves(group)):>12,} parameters")

# metrics() returns the lines of metrics.jsonl; a bar of '#' is as good a plot as any terminal has.
curve = [(line["step"], line["val/loss"]) for line in run.metrics() if "val/loss" in line]
for step, loss in curve:
    print(f"step {step:>7} | val loss {loss:.3f} | {'#' * round(10 * loss)}")

# Logits of the token after each token: what does the model expect next?
text = "The United States of"
logits_TV = run.logits(text)
for token in np.argsort(-logits_TV[-1])[:5].tolist():
    print(f"{text!r} -> {run.tokenizer.decode([token])!r}  logit {logits_TV[-1, token]:.2f}")

print(run.generate(text, max_new_tokens=40, seed=1))

result = run.evaluate(["The Congress shall have power to lay and collect taxes."])
print(f"{result['bits_per_byte']:.3f} bits per byte on {result['n_bytes']} bytes")
