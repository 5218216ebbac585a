"""The shape of the model whose predictions a run learns from: `train.teacher`, another run."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.common.workdir import load_config
from gptjax.model import GPTConfig


def teacher_model(config: ConfigDict, vocab_size: int) -> GPTConfig | None:
    """Returns the teacher's shape with the arithmetic of this run's forward pass; None without one.

    Raises UserError if `train.teacher` is no workdir, or of a model for shorter rows.
    """
    if not config.train.teacher:
        return None
    teacher = load_config(Path(config.train.teacher))
    if teacher.model.block_size < config.model.block_size:
        raise UserError(
            f"train.teacher = {config.train.teacher} was trained on rows of "
            f"{teacher.model.block_size} tokens, and cannot teach model.block_size = "
            f"{config.model.block_size}."
        )
    for key in ("compute_dtype", "attention", "scan_unroll"):
        teacher.model[key] = config.model[key]
    teacher.data.document_mask = config.data.document_mask
    teacher.model.remat, teacher.model.dropout = "none", 0.0
    return GPTConfig.from_config(teacher, vocab_size)
