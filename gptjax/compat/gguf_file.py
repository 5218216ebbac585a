"""Writes a model as a GGUF file for llama.cpp: architecture `gpt2`, `qwen3` or `llama`.

llama.cpp's tokenizer "llama" merges by score, as SentencePiece does, and gives our ids with two
exceptions: it stores a space as U+2581 and so reads a real U+2581 as a space, and it does not split
words of over 256 characters. A tokenizer.json uses its "gpt2", which reads the list of merges; it
must split text into words in a way that llama.cpp knows.
"""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.extras import imports_of_extra
from data_pipeline.byte_level import ByteLevel
from data_pipeline.chat import END, TEMPLATE, has_markers
from data_pipeline.tokenizer import SPACE, Tokenizer
from gptjax.compat import hf_tokenizer, hf_weights
from gptjax.compat.progress import one_by_one
from gptjax.model import GPTConfig, Params
from gptjax.model.layers import rope_divisors

# Of Llama 3, Qwen 2 and GPT-4o: the regular expression and ignore_merges -> llama.cpp's name.
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LETTERS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = {
    (_LETTERS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES, True): "llama-bpe",
    (_LETTERS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES, False): "qwen2",
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|"
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
        False,
    ): "gpt-4o",
}


def tensors(model_config: GPTConfig, params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns float32 tensors by llama.cpp's names; its matrices are [out, in]."""
    architecture = hf_weights.architecture_of(model_config)
    arrays = {
        gguf: np.ascontiguousarray(array.T if is_matrix else array)
        for _, gguf, is_matrix, array in hf_weights.named_tensors(model_config, params, vocab_size)
    }
    scaling = model_config.rope_scaling
    if len(scaling) > 1:
        width, theta = model_config.head_dim, model_config.rope_theta
        arrays["rope_freqs.weight"] = rope_divisors(width, theta, scaling)
    if architecture.gguf_pairs:
        for name in arrays:
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                arrays[name] = _neighbours(arrays[name], model_config.head_dim)
    return arrays


def _neighbours(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns a matrix [out, in] whose heads have the halves of each pair beside each other."""
    halves = matrix.reshape(-1, 2, head_dim // 2, matrix.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(matrix.shape))


def write(
    path: Path,
    model_config: GPTConfig,
    params: Params,
    tokenizer: Tokenizer,
    name: str,
    dtype: str = "float32",
) -> None:
    """Writes the file; `name` is the model's name in clients.

    With bfloat16, matrices are; vectors stay float32, as llama.cpp needs them. The tokenizer's
    vocabulary can be smaller than the model's, which is padded then.

    Raises:
        UserError: no stock architecture computes the same, or the package gguf is missing.
    """
    with imports_of_extra("export"):
        import gguf
    architecture = hf_weights.architecture_of(model_config)
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_name(name)
    writer.add_context_length(model_config.block_size)
    writer.add_embedding_length(model_config.n_embd)
    writer.add_block_count(model_config.n_layer)
    writer.add_feed_forward_length(model_config.mlp_dim)
    writer.add_head_count(model_config.n_head)
    if "n_kv_head" in architecture.keys:
        writer.add_head_count_kv(model_config.n_kv_head)
        writer.add_key_length(model_config.head_dim)
        writer.add_value_length(model_config.head_dim)
        writer.add_rope_freq_base(model_config.rope_theta)
        writer.add_layer_norm_rms_eps(model_config.norm_eps)
        writer.add_rope_dimension_count(model_config.head_dim)
        if len(model_config.rope_scaling) == 1:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(model_config.rope_scaling[0])
    else:
        writer.add_layer_norm_eps(model_config.norm_eps)
    halved = dtype == "bfloat16"
    kinds, types = gguf.LlamaFileType, gguf.GGMLQuantizationType
    writer.add_file_type(kinds.MOSTLY_BF16 if halved else kinds.ALL_F32)
    _add_tokenizer(writer, tokenizer, gguf.TokenType)

    def kind_of(array: np.ndarray) -> Any:
        return types.BF16 if halved and array.ndim > 1 else types.F32

    arrays = tensors(model_config, params, tokenizer.vocab_size)
    for tensor_name, array in arrays.items():
        kind = kind_of(array)
        n_bytes = array.size * gguf.GGML_QUANT_SIZES[kind][1]
        writer.add_tensor_info(tensor_name, array.shape, array.dtype, n_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in one_by_one(arrays):  # each rounded when it is its turn
        writer.write_tensor_data(gguf.quants.quantize(array, kind_of(array)))
    writer.close()


def _words_of(byte_level: ByteLevel) -> str:
    """Returns llama.cpp's name of how a tokenizer splits text into words."""
    *splits, last = byte_level.splits
    if not splits:
        return "gpt-2"
    if [split["type"] for split in splits] == ["Digits"] and splits[0].get("individual_digits"):
        if last.get("use_regex", True):
            return "smollm"  # each digit, then GPT-2's words
    patterns = [split.get("pattern", {}).get("Regex") for split in splits]
    key = (*patterns, byte_level.ignores_merges)
    if key not in _WORDS or last.get("use_regex", True):
        raise UserError(
            "llama.cpp knows no such tokenizer: it splits text into words by "
            f"{' and '.join(map(str, patterns))}. Export it with --format=hf."
        )
    return _WORDS[key]


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, types: Any) -> None:
    byte_level = tokenizer.byte_level
    if byte_level is None:
        pieces = tokenizer.pieces()
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([piece.text.replace(" ", SPACE) for piece in pieces])
        writer.add_token_scores([piece.score for piece in pieces])
        writer.add_token_types([types[piece.kind.upper()] for piece in pieces])
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(bool(tokenizer.prefix))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_words_of(byte_level))
        writer.add_token_list(byte_level.tokens)
        kinds = [types.NORMAL if utf8 else types.UNUSED for utf8 in byte_level.table]
        for i in byte_level.specials.values():
            kinds[i] = types.CONTROL
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in byte_level.merges])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.bos_id)  # BOS separates documents, so it also ends a text
    writer.add_pad_token_id(hf_tokenizer.pad_id(tokenizer))
    if has_markers(tokenizer):
        writer.add_eot_token_id(tokenizer.specials[END])
        writer.add_chat_template(TEMPLATE)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
