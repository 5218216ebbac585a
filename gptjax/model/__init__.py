"""The GPT as pure functions of (model_config, params, tokens); gpt.py is the file to read first.

Names of arrays end in their shape, a letter an axis (`x_BTD`), with one meaning in the whole repo:

    B  batch, rows                        T  tokens of a row (queries)
    S  length of the keys                 D  model width (n_embd)
    N  heads of queries (n_head)          K  heads of keys and values (n_kv_head)
    G  heads of queries a kv head, N / K  H  width of a head
    R  kv heads of all rows, B * K        F  hidden width of the MLP (mlp_dim)
    V  vocabulary                         L  layers (n_layer)
    A  accumulation (micro-)steps         M  flattened tokens, B * T
    E  width of a teacher
    C  a chunk of T or M                  J  most likely tokens, kept or reported
    W  window of recent losses            1  an axis of one
"""

from gptjax.model.config import GPTConfig
from gptjax.model.flops import count_params, flops_per_token
from gptjax.model.gpt import GatherBlock, Params, hidden_states, init, logits, unembedding
from gptjax.model.loss import SoftTargets, cross_entropy_sum, multi_token_loss

__all__ = [
    "GPTConfig",
    "GatherBlock",
    "Params",
    "SoftTargets",
    "count_params",
    "cross_entropy_sum",
    "flops_per_token",
    "hidden_states",
    "init",
    "logits",
    "multi_token_loss",
    "unembedding",
]
