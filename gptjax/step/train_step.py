"""The state of training, and the pure functions of it and a batch: training, evaluation."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.common.xla_options import compiler_options
from gptjax.model import (
    GatherBlock,
    GPTConfig,
    SoftTargets,
    hidden_states,
    init,
    multi_token_loss,
    unembedding,
)
from gptjax.optim import Optimizer, later_token_weights, schedules
from gptjax.step import sharding
from gptjax.step.gradients import Batch, ShardedLoss
from gptjax.step.teacher import teacher_model

Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes: a pytree of arrays."""

    step: Array  # int32 scalar, optimizer updates completed, skipped ones included
    params: Any
    opt_state: Any
    dropout_key: Array  # uint32 [2], raw key data; each step folds in its number
    ema_params: Any = None  # exponential moving average of `params`; None with optim.ema_decay = 0

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and sample with: the average if there is one."""
        return self.params if self.ema_params is None else self.ema_params


class StepFunctions:
    """The compiled functions of one run; share one object, for each compiles again.

    - `init_state()` returns the first TrainState.
    - `train_step(state, batch [A, B, T], row_length)` returns (the next state, metrics); rows are
      cut into rows of `row_length`, by default (None) not at all. It compiles for each length. With
      `train.teacher` its last argument is the parameters of `teacher`.
    - `eval_step(params, batch [1, B, T])` returns the sums `nats`, `n_targets` and `n_bytes`.
    """

    def __init__(
        self, config: ConfigDict, model_config: GPTConfig, token_bytes_V: np.ndarray, mesh: Mesh
    ):
        """Takes a valid `config` and the UTF-8 bytes (int32) of each token; compiles nothing."""
        self.model_config = model_config
        self.teacher = teacher_model(config, model_config.vocab_size)  # None without one
        self.batch_sharding = sharding.batch_sharding(mesh)
        self._config = config
        train = config.train
        self._optimizer = Optimizer(
            config.optim,
            train.gradient_accumulation_steps,
            train.max_iters,
            loss_spike_sigma=train.loss_spike_sigma,
            compute_dtype=model_config.compute_dtype,
            spread=functools.partial(sharding.by_layer, mesh),
        )
        self._schedules = schedules(config.optim, train.max_iters)
        # An argument, not a constant: the cached program serves every seed.
        seed_key = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
        self.state_shapes = jax.eval_shape(self._init_state, seed_key)
        self.state_shardings = sharding.state_shardings(mesh, self.state_shapes, config.mesh.gather)
        self._sharded_loss = ShardedLoss(
            self._loss,
            token_bytes_V,
            mesh,
            self.state_shardings.params,
            config.mesh.gather,
            model_config.compute_dtype,
        )
        one = sharding.replicated(mesh)
        jit = functools.partial(
            jax.jit, compiler_options=compiler_options(deterministic=config.deterministic)
        )
        init_state = jit(self._init_state, out_shardings=self.state_shardings)
        self.init_state = lambda: init_state(seed_key)
        self.train_step = jit(
            self._train_step,
            donate_argnums=0,
            static_argnums=2,
            in_shardings=(
                *(self.state_shardings, self.batch_sharding),
                *([] if self.teacher is None else [one]),
            ),
            out_shardings=(self.state_shardings, one),
        )
        self.eval_step = jit(
            self._sharded_loss.sums,
            in_shardings=(self.state_shardings.params, self.batch_sharding),
            out_shardings=one,
        )

    def _init_state(self, seed_key: Array) -> TrainState:
        params_key, dropout_key = jax.random.split(jax.random.wrap_key_data(seed_key))
        params = init(self.model_config, params_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self._optimizer.init(params),
            dropout_key=jax.random.key_data(dropout_key),
            ema_params=jax.tree.map(jnp.copy, params) if self._config.optim.ema_decay else None,
        )

    def _loss(
        self,
        params: Any,
        micro: Batch,
        dropout_keys_B: Array | None,
        later_weights_K: Array,
        teacher_params: Any = None,
        gather_block: GatherBlock | None = None,
    ) -> tuple[Array, Array]:
        """Returns the summed loss of a micro-batch [B, T]: see `multi_token_loss`."""
        forward = functools.partial(
            hidden_states,
            tokens_BT=micro["inputs"],
            positions_BT=micro.get("positions"),
            segment_ids_BT=micro.get("segment_ids"),
        )
        x_BTD = forward(
            self.model_config, params, dropout_keys_B=dropout_keys_B, gather_block=gather_block
        )
        soft = None
        if self.teacher is not None and teacher_params is not None:
            x_BTE = forward(self.teacher, teacher_params)
            w_VE = unembedding(teacher_params).astype(x_BTE.dtype)
            soft = SoftTargets(x_BTE, w_VE, self._config.train.teacher_weight)
        return multi_token_loss(
            x_BTD,
            unembedding(params),
            micro["targets"],
            micro["loss_mask"],
            later_weights_K,
            chunk=self._config.model.loss_chunk,
            soft=soft,
        )

    def _train_step(
        self,
        state: TrainState,
        batch: Batch,
        row_length: int | None = None,
        teacher_params: Any = None,
    ) -> tuple[TrainState, Metrics]:
        """Makes one optimizer update from a batch [A, B, T], or skips it: see `skip_bad_steps`.

        The gradient is that of the summed loss over A B T, a constant: every token weighs the same,
        also those next to the padding of an epoch's last row. With `train.teacher` the
        `teacher_params` are needed: as those of `init`, in the compute dtype, whole on each device.
        """
        if (self.teacher is None) != (teacher_params is None):
            raise ValueError("a step takes a teacher's parameters where train.teacher is set")
        step_key = None
        if self.model_config.dropout > 0:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.dropout_key), state.step)
            step_key = jax.random.key_data(key)
        accumulates = isinstance(state.opt_state, optax.MultiStepsState)
        zeros = state.opt_state.acc_grads if accumulates else None
        before = optax.tree.get(state.opt_state, "skipped")
        grads, sums = self._sharded_loss.gradients(
            self._optimizer,
            state.params,
            zeros,
            step_key,
            batch,
            later_token_weights(self._config.train, state.step - before),
            row_length or self.model_config.block_size,
            teacher_params,
        )
        nats = jnp.sum(sums["nats_A"])
        params, opt_state = self._optimizer.update(
            state.params, state.opt_state, grads, loss=nats / sums["n_targets"]
        )
        after = optax.tree.get(opt_state, "skipped")
        metrics = {
            "nats": nats,
            **sums,
            "grad_norm": optax.tree.get(opt_state, "grad_norm"),
            "param_norm": optax.tree.norm(params),
            **{name: jnp.asarray(at(state.step - before)) for name, at in self._schedules.items()},
            "skipped": after,
            "skipped_in_a_row": optax.tree.get(opt_state, "in_a_row"),
        }
        # The state between steps is finite: the norm has been read, and MultiSteps clears its sum
        # by 0 x, which leaves NaN where there was one.
        opt_state = optax.tree.set(opt_state, grad_norm=jnp.zeros((), jnp.float32))
        if accumulates:
            opt_state = opt_state._replace(acc_grads=optax.tree.zeros_like(opt_state.acc_grads))
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=self._average(state, params, before, after),
        )
        return state, metrics

    def _average(self, state: TrainState, params: Any, before: Array, after: Array) -> Any:
        """Returns the moving average after this step, unchanged by a skipped one.

        It keeps the share min(ema_decay, (1 + t) / (10 + t)) after t updates, so that the initial
        values are soon forgotten.
        """
        if state.ema_params is None:
            return None
        t = (state.step - before).astype(jnp.float32)
        keep = jnp.minimum(self._config.optim.ema_decay, (1 + t) / (10 + t))
        share = jnp.where(after == before, 1 - keep, 0.0)
        return jax.tree.map(
            lambda ema, p: jnp.where(share > 0, ema + share * (p - ema), ema),
            state.ema_params,
            params,
        )
