"""The modern shape of model: a preset that any configuration can apply to itself."""

from ml_collections import ConfigDict


def apply(config: ConfigDict) -> None:
    """Gives `config` the parts of newer models: those of Qwen3, to whose format it exports.

    At equal `n_layer` and `n_embd` about as many parameters as GPT-2's shape.
    """
    config.model.norm = "rmsnorm"
    config.model.position = "rope"
    config.model.qk_norm = True
    config.model.mlp = "swiglu"
    config.model.bias = False
    config.model.tie_embeddings = True
    config.model.zero_init = True
