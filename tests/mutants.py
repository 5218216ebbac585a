"""Breaks the core, one line at a time, and runs the tests of the module, which must notice.

    python -m tests.mutants                 # all: about an hour on two cores
    python -m tests.mutants loss packing    # those whose file or new text holds one of these words

A mutant whose tests pass has survived: no test sees that difference. `ALLOWED` lists those that are
known, with the reason; any other, and an old text that is not exactly once in its file, is an
error. The tree itself is not touched: each process works in a copy.
"""

import argparse
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("benchmarks", "configs", "data_pipeline", "gptjax", "tests", "pyproject.toml")
LIMIT = 1800  # seconds for the tests of a mutant: one that hangs is noticed, too
ALLOWED: dict[str, str] = {}  # new text -> why its tests cannot see it

# (file, tests) -> (old text, new text) of each mutant.
TABLE: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("gptjax/model/layers.py", "tests/model/test_modern.py"): [
        ("jnp.mean(x_float32 * x_float32,", "jnp.mean(x * x,"),
        ("mean_square + self.eps", "mean_square"),
        ("second * cos + first * sin", "second * cos - first * sin"),
        ("positions_BT.astype(jnp.float32)", "positions_BT.astype(jnp.bfloat16)"),
    ],
    ("gptjax/model/layers.py", "tests/model/test_gpt.py"): [
        ("x_BTD / (1 - rate), 0)", "x_BTD, 0)"),
        ("bernoulli(key, 1 - rate, x_BTD.shape[1:])", "bernoulli(key, 1 - rate, x_BTD.shape[2:])"),
    ],
    ("gptjax/model/gpt.py", "tests/model/test_gpt.py"): [
        ("if keys_B is None else split_keys(keys_B, 2)", "if keys_B is None else (keys_B, keys_B)"),
        (
            "keys_LB = split_keys(blocks_keys_B, model_config.n_layer)",
            "keys_LB = jnp.stack([blocks_keys_B] * model_config.n_layer)",
        ),
        ("x_BTD = dropout(x_BTD, model_config.dropout, embedding_keys_B)", "pass"),
        ("else wpe[positions_BT]", "else wpe[None, : tokens_BT.shape[1]]"),
        (
            "linear(model_config, hidden, width, rngs=rngs, std=model_config.residual_std)",
            "linear(model_config, hidden, width, rngs=rngs)",
        ),
        ("policy=_REMAT_POLICIES[model_config.remat]", 'policy=_REMAT_POLICIES["dots"]'),
        (
            "return attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, implementation=name), None",
            "return attention(q_BTNH, k_BTKH, v_BTKH, None, implementation=name), None",
        ),
    ],
    ("gptjax/model/gpt.py", "tests/model/test_gpt2_parity.py"): [
        ("epsilon=model_config.norm_eps", "epsilon=1e-6"),
        ("jax.nn.gelu(y_BTF, approximate=True)", "jax.nn.gelu(y_BTF, approximate=False)"),
    ],
    ("gptjax/model/gpt.py", "tests/model/test_modern.py"): [
        (
            'return params["lm_head"] if "lm_head" in params else params["wte"]',
            'return params["wte"]',
        ),
        ("self.q_norm(q_BTNH), self.k_norm(k_BTKH)", "self.q_norm(q_BTNH), k_BTKH"),
        ("x_BTD, w_VD, preferred_element_type=jnp.float32)", "x_BTD, w_VD)"),
    ],
    ("gptjax/model/config.py", "tests/model/test_gpt.py"): [
        ("INIT_STD / (2 * self.n_layer) ** 0.5", "INIT_STD / self.n_layer**0.5")
    ],
    ("gptjax/model/attention.py", "tests/model/test_attention.py"): [
        ("mask=mask_B1TT, is_causal=True", "mask=mask_B1TT, is_causal=False"),
        (
            "segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]",
            "segment_ids_BT[:, :, None] >= segment_ids_BT[:, None, :]",
        ),
        ("sm_scale=width**-0.5", "sm_scale=1.0"),
        ("error <= 2**-5 * largest", "error <= 2**5 * largest"),
        ("options = compiler_options(deterministic=deterministic)", "options = None"),
    ],
    ("gptjax/model/chunked_attention.py", "tests/model/test_attention.py"): [
        (
            "jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]",
            "jnp.arange(start, end)[:, None] > jnp.arange(end)[None, :] - 2",
        ),
        (
            "weights_BNCS * (dweights_BNCS - delta_BNT1[:, :, start:end]) * scale",
            "weights_BNCS * dweights_BNCS * scale",
        ),
        ("dk_BNTH.at[:, :, :end].add(dk_BNSH)", "dk_BNTH.at[:, :, :end].set(dk_BNSH)"),
    ],
    ("gptjax/model/loss.py", "tests/model/test_loss.py"): [
        (
            'jnp.einsum("cd,vd->cv", x_CD, w_VD, preferred_element_type=jnp.float32)',
            'jnp.einsum("cd,vd->cv", x_CD, w_VD).astype(jnp.float32)',
        ),
        ("one_hot_CV * weights_CK[:, k, None]", "one_hot_CV"),
        ("dlogits_CV = dlogits_CV.astype(x_CD.dtype)", "pass"),
        (
            'dw_VD = dw_VD + einsum("cv,cd->vd", dlogits_CV, x_CD)',
            'dw_VD += jnp.einsum("cv,cd->vd", dlogits_CV, x_CD)',
        ),
        ("cotangent * dw_VD, None", "dw_VD, None"),
        ("dlogits_CV = dlogits_CV - target_change_CV", "pass"),
        ("total = total - jnp.sum(target_change_CV * logits_CV)", "pass"),
        ("soft.weight * weights_CK[:, :1] * target_change_CV", "soft.weight * target_change_CV"),
        (
            "(log_sum_C[:, None] - target_logits_CK) * weights_CK",
            "log_sum_C[:, None] - target_logits_CK",
        ),
        ("jnp.pad(weights_BT1[:, k:], later)", "1"),
    ],
    ("gptjax/optim/optimizer.py", "tests/optim/test_optimizer.py"): [
        ('("scale", "bias"), False', '("scale", "bias"), True'),
        ("clip_by_global_norm(optim.grad_clip)", "clip(optim.grad_clip)"),
        ("b2=optim.beta2", "b2=optim.beta1"),
        ("n_calls = micro_steps + 1", "n_calls = micro_steps"),
        ('if path[-1].key == "lm_head" else leaf', 'if path[-1].key == "wte" else leaf'),
        ("optim.head_learning_rate / optim.learning_rate", "optim.head_learning_rate"),
    ],
    ("gptjax/optim/muon.py", "tests/optim/test_muon.py"): [
        ("(width + kernel.shape[2]) // 2", "2 * width"),
        ("consistent_rms=_CONSISTENT_RMS[scale]", "consistent_rms=None"),
        ('"spectral": None', '"spectral": 0.2'),
        ("beta=momentum", "beta=momentum**2"),
    ],
    ("gptjax/optim/schedules.py", "tests/optim/test_optimizer.py"): [
        (
            "(optim.learning_rate - before) / (optim.warmup_iters + 1)",
            "(optim.learning_rate - before) / (optim.warmup_iters + 2)",
        ),
        ("float(cycles[-1](start - before))", "0.0"),
        ("jnp.sqrt(progress) if optim", "progress if optim"),
        ("jnp.maximum(left, 0)", "left"),
        ("max_iters - optim.wsd_decay_iters", "max_iters - optim.wsd_decay_iters + 1"),
        ("return optax.join_schedules(cycles, optim.rewarm_at)", "return cycles[0]"),
    ],
    ("gptjax/optim/schedules.py", "tests/optim/test_muon.py"): [
        (
            "optim.weight_decay, optim.weight_decay_end, max_iters",
            "optim.weight_decay, 0.0, max_iters",
        )
    ],
    ("gptjax/optim/skip_bad_steps.py", "tests/optim/test_skip_bad_steps.py"): [
        ("jnp.isfinite(loss) & jnp.isfinite(grad_norm)", "jnp.isfinite(loss)"),
        ("jnp.minimum(loss, limit)", "loss"),
        ("jnp.where(ok, 0, state.in_a_row + 1)", "state.in_a_row + ~ok"),
        ("jnp.asarray(-0.0, u.dtype)", "jnp.asarray(0.0, u.dtype)"),
        ("state.n_losses >= _MIN_LOSSES", "state.n_losses > _MIN_LOSSES"),
        ("jnp.where(ok, new, old)", "new"),
    ],
    ("gptjax/step/train_step.py", "tests/step/test_train_step.py"): [
        (
            "jax.random.fold_in(jax.random.wrap_key_data(state.dropout_key), state.step)",
            "jax.random.wrap_key_data(state.dropout_key)",
        ),
        ("compiler_options(deterministic=config.deterministic)", "{}"),
    ],
    ("gptjax/step/gradients.py", "tests/step/test_train_step.py"): [
        (
            "jax.random.fold_in(jax.random.wrap_key_data(key), index)",
            "jax.random.wrap_key_data(key)",
        ),
        (
            "self._loss(params, micro, None, jnp.zeros(0), None, self._gather_block)",
            "self._loss(params, micro, jax.random.split(jax.random.key(0), 4), jnp.zeros(0), None)",
        ),
        (
            "return total / nominal_targets, nats",
            'return total / jnp.sum(micro["loss_mask"]), nats',
        ),
        ("x.reshape(len(x), -1, row_length)", "x"),
        ('[batch["targets"]] * mask', '[batch["targets"]]'),
    ],
    ("gptjax/step/gradients.py", "tests/step/test_sharded_step.py"): [
        ("jax.lax.axis_index(AXES) * n_rows", "0 * jax.lax.axis_index(AXES)"),
        ('collectives.total(x, self._mesh, ("data",))', "x"),
        ("collectives.total(sums, self._mesh)", "sums"),
    ],
    ("gptjax/step/collectives.py", "tests/step/test_sharded_step.py"): [
        ("gradient = gradient.astype(jnp.float32)", "del _")
    ],
    ("gptjax/step/train_step.py", "tests/step/test_ema.py"): [
        (
            "jnp.minimum(self._config.optim.ema_decay, (1 + t) / (10 + t))",
            "self._config.optim.ema_decay",
        ),
        (
            "return self.params if self.ema_params is None else self.ema_params",
            "return self.params",
        ),
    ],
    ("gptjax/step/train_step.py", "tests/optim/test_skip_bad_steps.py"): [
        ("jnp.asarray(at(state.step - before))", "jnp.asarray(at(state.step))"),
        ("acc_grads=optax.tree.zeros_like(opt_state.acc_grads)", "acc_grads=opt_state.acc_grads"),
        ("jnp.where(after == before, 1 - keep, 0.0)", "1 - keep"),
    ],
    ("gptjax/step/compilation_cache.py", "tests/step/test_compilation_cache.py"): [
        ("if total > max_bytes:", "if False:"),
        ("max(status.st_atime, status.st_mtime)", "status.st_mtime"),
        ("if file.stat().st_mtime < last - _CLOCKS:", "if False:"),
        ("if not _is_readable(file.read_bytes()):", "if not file.read_bytes():"),
        ('"checked-{}.{}".format(*sys.version_info)', '"checked-3"'),
    ],
    ("gptjax/plan/hlo.py", "tests/plan/test_collectives.py"): [
        ("runs * int(trips[1] if trips else 1)", "runs"),
        ("yield from max(branches", "yield from min(branches"),
    ],
    ("gptjax/plan/collectives.py", "tests/plan/test_collectives.py"): [
        ("lambda k: 2 * (k - 1) / k", "lambda k: (k - 1) / k"),
        ('"all-gather": lambda k: k - 1', '"all-gather": lambda k: (k - 1) / k'),
        (".transpose(order)", ""),
        ("program.inside(instruction) or [instruction]", "[instruction]"),
        ("for collective in found if len(collective.group) > 1", "for collective in found"),
    ],
    ("gptjax/plan/exchange.py", "tests/plan/test_exchange.py"): [
        ("2 * n_micro", "n_micro"),
        ("network.bytes_per_sec * neighbours / in_host", "network.bytes_per_sec"),
        ("range(0, n_devices, fsdp)", "range(n_devices // fsdp)"),
        ('"copied" if placed.is_fully_replicated else whole', "whole"),
    ],
    ("gptjax/plan/memory.py", "tests/plan/test_memory.py"): [
        ("gradients -= (1 - 1 / fsdp) * hidden_gradients", "pass"),
        ("n_params - n_hidden * by_layer", "n_params"),
        ("work=round(gathered + max(", "work=round(max("),
    ],
    ("gptjax/plan/devices.py", "tests/plan/test_devices.py"): [
        ("if stats := device.memory_stats():", "if (stats := device.memory_stats()) or True:"),
        ("@functools.cache  # the plan", "# the plan"),
    ],
    ("gptjax/metrics/wandb_run.py", "tests/metrics/test_wandb_run.py"): [
        ("@functools.cache  # asked", "# asked")
    ],
    ("gptjax/train/trainer.py", "tests/train/test_resume.py"): [
        ("self._best_val_loss = progress.best_val_loss", "self._best_val_loss = None"),
        ("if notice := rewarm_notice(config.optim, max_iters):", 'if notice := "":'),
    ],
    ("gptjax/train/trainer.py", "tests/train/test_max_hours.py"): [
        ("if self._at_end or any_process(self._out_of_time()):", "if self._at_end:"),
        ("any_process(self._out_of_time())", "self._out_of_time()"),
        ("self._stop.received) or self._out_of_time()", "self._stop.received)"),
    ],
    ("gptjax/train/training_log.py", "tests/train/test_max_hours.py"): [
        ("Clock(progress.trained_seconds)", "Clock()")
    ],
    ("gptjax/train/step_trace.py", "tests/train/test_step_trace.py"): [
        ("int(match[2]) + 1)", "int(match[2]))"),
        ("if number not in self._steps:", "if True:"),
        ("if steps and not done < steps[0] <= steps[-1] <= max_iters:", "if False:"),
        ("create_perfetto_trace=True", "create_perfetto_trace=False"),
        (
            'with jax.profiler.StepTraceAnnotation("train", step_num=number):',
            "with contextlib.nullcontext():",
        ),
        (
            "if number == self._steps[0]:\n            jax.block_until_ready(state())",
            "if number == self._steps[0]:",
        ),
        (
            "if number == self._steps[-1]:\n            jax.block_until_ready(state())",
            "if number == self._steps[-1]:",
        ),
    ],
    ("gptjax/train/trainer.py", "tests/train/test_step_trace.py"): [
        ("        self._trace.close()", "        pass")
    ],
    ("gptjax/main.py", "tests/train/test_step_trace.py"): [
        ("train_and_evaluate(config, traced_steps)", "train_and_evaluate(config)")
    ],
    ("gptjax/checkpoint/compatibility.py", "tests/checkpoint/test_compatibility.py"): [
        (
            'new.optim.schedule == "cosine" and not new.optim.rewarm_at',
            'new.optim.schedule == "cosine"',
        ),
        ("old.train.max_iters if old.optim.rewarm_at else step", "step"),
    ],
    ("data_pipeline/packing.py", "tests/data_pipeline/test_packing.py"): [
        ('position, side="right"', 'position, side="left"'),
        (
            "permutation(self._documents.n_docs, self._seed, key)",
            "permutation(self._documents.n_docs, self._seed, 0)",
        ),
        ("random_words(1, self._seed, key + 1)", "random_words(1, self._seed, 1)"),
        ("index - np.maximum.accumulate(index * starts[:-1])", "index"),
        ("n_targets = min(self._block_size, size)", "n_targets = min(self._block_size, size - 1)"),
        ("step = round(n * (math.sqrt(5) - 1) / 2)", "step = 1"),
        ("min(position + self._block_size + 1, ", "min(position + self._block_size, "),
    ],
    ("data_pipeline/whole_rows.py", "tests/data_pipeline/test_whole_rows.py"): [
        ("min(start + size + 1, length)", "min(start + size, length)"),
        ("if counts[span.start + 1 : span.stop].any()", "if counts.any()"),
        ("span.start - span.stop)", "span.stop - span.start)"),
        ("self._first_word + 2 * epoch + 1", "self._first_word + 1"),
        ("rooms &= ~(1 << room)", "pass"),
    ],
    ("data_pipeline/packing.py", "tests/data_pipeline/test_whole_rows.py"): [
        (
            "counts[cuts[-1] + 1 : size] = self._counted(whole)[start + 1 :]",
            "counts[cuts[-1] : size] = self._counted(whole)[start:]",
        ),
        ("loss_mask = counts[1:]", "loss_mask &= counts[:-1]"),
    ],
    ("data_pipeline/chat.py", "tests/data_pipeline/test_chat.py"): [
        ("n_bytes > len(self._header)", "n_bytes >= len(self._header)"),
        ("counts[stop : stop + 1] = True", "pass"),
        (".startswith(self._header)", ".startswith(self._header[:0])"),
        ("[(i - first) % 2]", "[i % 2]"),
    ],
    ("data_pipeline/grouped_rows.py", "tests/data_pipeline/test_grouped_rows.py"): [
        ("row -= ends[place] - n_rows", "row -= ends[place]"),
        ("if row >= n_rows // 2:", "if False:"),
        ("while len(self._opened) > 1:", "while len(self._opened) > 2:"),
        ("epoch + (place + 1 == len(order))", "epoch"),
        ("stream=self._stream + group", "stream=self._stream"),
        ("epoch * n_rows + row", "row"),
    ],
    ("data_pipeline/mixture.py", "tests/data_pipeline/test_mixture_rows.py"): [
        ("m = 2 * len(mixed) - 2", "m = 2 * len(mixed) - 1"),
        ("(m - 1 + m * k) * (common // weights[i])", "m * k * (common // weights[i])"),
        ("for t in range(1, period + 1):", "for t in range(2, period + 2):"),
        ("phase.before[source] + periods", "periods"),
        ("self.counts(first_row) if self._phases else [0] * len(weights)", "[0] * len(weights)"),
        ("divmod(g - phase.first_row, ", "divmod(g, "),
    ],
    ("data_pipeline/tokenizer_sample.py", "tests/data_pipeline/test_mixed_stores.py"): [
        ("left -= min(sizes[i], parts[i])", "left -= parts[i]"),
        ("key=lambda i: sizes[i] / weights[i]", "key=lambda i: sizes[i]"),
    ],
    ("gptjax/train/validation.py", "tests/train/test_mixture_run.py"): [
        ("map(scaled, sums.values(), self._shares)", "map(scaled, sums.values(), (1, 1))")
    ],
    ("data_pipeline/subset.py", "tests/data_pipeline/test_subset.py"): [
        ("return [*chosen, part] if left else chosen", "return [*chosen, part]"),
        ("permutation(len(groups), 0, 0)", "np.arange(len(groups))"),
    ],
    ("data_pipeline/loader.py", "tests/data_pipeline/test_loader.py"): [
        ("host * per_host", "host * batch_size"),
        ("micro_batch * batch_size + row", "micro_batch * per_host + row"),
        ('0 if state is None else state["next_row"]', "0"),
    ],
    ("data_pipeline/split.py", "tests/data_pipeline/test_token_store.py"): [
        (
            "base = int(self._starts[doc] - self._first_token[shard])",
            "base = int(self._starts[doc])",
        )
    ],
    ("data_pipeline/token_store.py", "tests/data_pipeline/test_token_store.py"): [
        ("if tokenizer.hash != expected:", "if False:"),
        ('hash_json({**self.identity, "files": manifest["files"]})', "hash_json(self.identity)"),
    ],
    ("data_pipeline/token_store.py", "tests/data_pipeline/test_verification.py"): [
        ("if digest != self.manifest", "if False and digest != self.manifest"),
        ("highest >= self.tokenizer.vocab_size", "highest > self.tokenizer.vocab_size"),
        ("numbers[: n // dtype.itemsize]", "numbers[: n // 4]"),
        ("while n := f.readinto(data):", "if n := f.readinto(data):"),
        ("if digest != hash_json(manifest) if", "if False if"),
    ],
    ("data_pipeline/duplicates.py", "tests/data_pipeline/test_duplicates.py"): [
        ('records["order"][~val] |= _TRAIN', "pass"),
        ('np.arange(len(buckets)), side="right"', 'np.arange(len(buckets)), side="left"'),
        ("np.concatenate([best, np.frombuffer(data, _RECORD)])", "np.frombuffer(data, _RECORD)"),
        ("sorted_hashes.size - 1)] == hashes", "sorted_hashes.size - 1)] >= hashes"),
    ],
    ("data_pipeline/byte_level.py", "tests/data_pipeline/test_byte_level.py"): [
        (r"(?:[^\W_](?= )|[A-Za-z0-9](?=\n))", r"(?:.(?= )|[A-Za-z0-9](?=\n))"),
        ("rest = text[end:]", 'rest = ""'),
        ("if not self.is_like_gpt2:", "if False:"),
        ("if i not in special_ids}\n        self._library", "}\n        self._library"),
    ],
    ("data_pipeline/mirror.py", "tests/data_pipeline/test_by_shard.py"): [
        ("self._check(name, temporary)", "pass"),
        ("if excess > 0 and path not in wanted:", "if excess > 0:"),
        ("os.utime(self._folder / name)", "os.stat(self._folder / name)"),
        ("if path.exists() and path.read_bytes() != data:", "if False:"),
    ],
    ("data_pipeline/by_shard.py", "tests/data_pipeline/test_by_shard.py"): [
        ("self._top.write(self._pointer, ", "print("),
        ("itertools.pairwise(ends)", "itertools.pairwise([0, *ends])"),
    ],
    ("data_pipeline/tokenizer.py", "tests/data_pipeline/test_tokenizer.py"): [
        ("self._cache[SPACE] = np.array(byte_ids, self._cache.dtype).tobytes()", "pass"),
        ("while stop < len(view) and view[stop] & 0xC0 == 0x80:", "while False:"),
        ("digest.update(np.float32(sp.get_score(i)).tobytes())", "pass"),
        ("key=lambda item: (-item[1], item[0])", "key=lambda item: -item[1]"),
    ],
    ("gptjax/checkpoint/restore.py", "tests/checkpoint/test_manager.py"): [
        (
            "for step in reversed(storage.list_steps(folder)):",
            "for step in storage.list_steps(folder):",
        ),
        ("items.compare(trees, meta, exchange)", "pass"),
    ],
    ("gptjax/checkpoint/manager.py", "tests/train/test_resume.py"): [
        ("[: self._config.checkpoint.keep_best]", "[-self._config.checkpoint.keep_best :]"),
        ("if step <= start)", "if step < start)"),
    ],
    ("gptjax/checkpoint/manager.py", "tests/checkpoint/test_saving.py"): [
        ("self._evaluated[1] if self._evaluated[0] == step else None", "self._evaluated[1]")
    ],
    ("gptjax/metrics/throughput.py", "tests/metrics/test_aggregate.py"): [
        ("self._seconds, self._since = self.seconds, None", "self._seconds = self.seconds"),
        ("if not skipped:", "if True:"),
        (
            "tokens_per_sec * self.flops_per_token / self._peak_flops",
            "tokens_per_sec / self._peak_flops",
        ),
    ],
    ("gptjax/metrics/writers.py", "tests/metrics/test_writers.py"): [
        ('if line["step"] <= last_step', 'if line["step"] < last_step')
    ],
    ("gptjax/evaluate/text_loss.py", "tests/evaluate/test_text_loss.py"): [
        ("return owners[1:]", "return owners[:-1]"),
        ("min(size, n_all - start)", "size"),
    ],
    ("gptjax/evaluate/benchmarks.py", "tests/evaluate/test_benchmarks.py"): [
        ("log_likelihoods / np.array(self.item.lengths, float)", "log_likelihoods")
    ],
    ("gptjax/inference/scoring.py", "tests/evaluate/test_benchmarks.py"): [
        ("[-(longest + 1) :]", "[-longest:]"),
        ("stripped = context.rstrip()", "stripped = context"),
    ],
    ("gptjax/inference/sampler.py", "tests/inference/test_sampler.py"): [
        ("jnp.cumsum(probabilities_J) - probabilities_J", "jnp.cumsum(probabilities_J)"),
        ("min(top_k, logits_V.size) if top_k", "min(top_k + 1, logits_V.size) if top_k"),
        ("jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, number)", "self.keys_B"),
        ("del window[: -max(block_size // 2, 1)]", "del window[:-block_size]"),
    ],
    ("gptjax/inference/kv_cache.py", "tests/inference/test_kv_cache.py"): [
        (
            "jnp.arange(length)[None, :] <= positions_R[:, None]",
            "jnp.arange(length)[None, :] < positions_R[:, None] + 2",
        ),
        ("width**-0.5 * jnp.einsum(", "jnp.einsum("),
    ],
    ("gptjax/checkpoint/digests.py", "tests/checkpoint/test_manager.py"): [
        ("one = _mix(bits ^ _mix(place))", "one = _mix(bits)"),
        ("place += lax.broadcasted_iota", "place = lax.broadcasted_iota"),
        ("texts.pop() if len(texts) == 1 else", "texts.pop() if texts else"),
        ("~jnp.isfinite(x) if floats", "jnp.isnan(x) if floats"),
        ("for name in arrays if name not in expected]", "for name in ()]"),
    ],
    ("gptjax/step/multihost.py", "tests/step/test_multihost.py"): [
        ("return np.array(x)", "return np.asarray(x)")
    ],
    ("gptjax/step/teacher.py", "tests/train/test_distillation.py"): [
        ("teacher.model.block_size < config.model.block_size", "False")
    ],
    ("gptjax/train/distillation.py", "tests/train/test_distillation.py"): [
        ("run.tokenizer.hash != store.tokenizer.hash", "False"),
        ("hash_json([description(model_config, run.tokenizer), arrays])", "str(workdir)"),
        ("[description(model_config, run.tokenizer), arrays]", "[run.tokenizer.hash]"),
        ("[description(model_config, run.tokenizer), arrays]", "[arrays]"),
    ],
    ("gptjax/metrics/aggregate.py", "tests/evaluate/test_text_loss.py"): [
        ("x.size / (x.size - 1) * squares", "squares")
    ],
}


class Mutant(NamedTuple):
    file: str
    tests: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.old}  ->  {self.new}"


MUTANTS = [Mutant(*at, *change) for at, changes in TABLE.items() for change in changes]


def stale(mutants: list[Mutant] = MUTANTS) -> list[str]:
    """Returns what in the table is not as in the tree."""
    problems = []
    for mutant in mutants:
        if (n := (ROOT / mutant.file).read_text().count(mutant.old)) != 1:
            problems.append(f"{mutant.file} holds {n} times, not once: {mutant.old}")
        if not (ROOT / mutant.tests).is_file():
            problems.append(f"there is no {mutant.tests}")
    return problems + [
        f"ALLOWED is no mutant: {new}" for new in ALLOWED.keys() - {m.new for m in MUTANTS}
    ]


def passes(tree: Path, tests: str) -> bool:
    """Runs a file of tests in a copy of the tree."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1, 2):  # passed, failed, not even imported
        sys.exit(f"{tests}: pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def survives(mutant: Mutant, trees: "queue.SimpleQueue[Path]") -> bool:
    tree = trees.get()
    file = tree / mutant.file
    text = file.read_text()
    start = time.monotonic()
    try:
        file.write_text(text.replace(mutant.old, mutant.new))
        survived = passes(tree, mutant.tests)
    finally:
        file.write_text(text)
        trees.put(tree)
    state = "SURVIVED" if survived else "killed"
    print(f"{state:8} {time.monotonic() - start:4.0f} s  {mutant}", flush=True)
    return survived


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="run the mutants whose file or new text holds one")
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2))
    arguments = parser.parse_args()
    chosen = [
        m
        for m in MUTANTS
        if not arguments.words or any(w in m.file + m.new for w in arguments.words)
    ]
    if problems := stale():
        sys.exit("error: " + "\n       ".join(problems))
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for i in range(arguments.jobs):
            tree = Path(folder, str(i))
            tree.mkdir()
            for name in COPIED:
                source, target = ROOT / name, tree / name
                if source.is_dir():
                    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, target)
            trees.put(tree)
        tests = list(dict.fromkeys(mutant.tests for mutant in chosen))
        unbroken = list(pool.map(lambda name: passes(Path(folder, "0"), name), tests))
        if not all(unbroken):
            failing = [name for name, good in zip(tests, unbroken, strict=True) if not good]
            sys.exit(f"error: these tests fail without a mutant: {', '.join(failing)}")
        survived = list(pool.map(lambda mutant: survives(mutant, trees), chosen))
    survivors = [mutant for mutant, alive in zip(chosen, survived, strict=True) if alive]
    print(f"\n{len(chosen)} mutants, {len(survivors)} survived.")
    for mutant in survivors:
        print(f"  {mutant}  ({ALLOWED.get(mutant.new, 'NOT ALLOWED')})")
    if any(mutant.new not in ALLOWED for mutant in survivors):
        sys.exit(1)


if __name__ == "__main__":
    main()
