"""The shape of the model whose predictions a run learns from: `train.teacher`, another run."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.common.workdir import load_config
from gptjax.model import GPTConfig, attention


def teacher_model(config: ConfigDict, vocab_size: int) -> GPTConfig | None:
    """Returns the teacher's shape, with this run's dtype and attention; None without a teacher.

    Raises UserError if `train.teacher` is no workdir, or of a model for shorter rows.
    """
    if not config.train.teacher:
        return None
    try:
        teacher = load_config(Path(config.train.teacher))
    except UserError as error:
        raise UserError(f"train.teacher = {config.train.teacher}: {error}") from error
    if teacher.model.block_size < config.model.block_size:
        raise UserError(
            f"train.teacher = {config.train.teacher} was trained on rows of "
            f"{teacher.model.block_size} tokens, and cannot teach model.block_size = "
            f"{config.model.block_size}: lower that, or give a teacher of longer rows."
        )
    for key in ("compute_dtype", "attention", "scan_unroll"):
        teacher.model[key] = config.model[key]
    width = teacher.model.n_embd // teacher.model.n_head
    if config.model.attention == "cudnn" and not attention.fits_cudnn(width):
        teacher.model.attention = "pallas"
    teacher.deterministic = config.deterministic
    teacher.data.document_mask = config.data.document_mask
    teacher.model.remat, teacher.model.dropout = "none", 0.0
    return GPTConfig.from_config(teacher, vocab_size)
