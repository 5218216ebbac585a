"""What only the first steps of a run have: shorter rows, and later tokens in the loss."""

from collections.abc import Iterator

from ml_collections import ConfigDict

MAX_LATER_TOKENS = 8  # tokens: each costs a look at the logits


def row_length(config: ConfigDict, step: int) -> int:
    """Returns the length of the rows of the step that begins after `step` steps."""
    lengths = (length for end, length in config.train.row_lengths if step < end)
    length: int = next(lengths, config.model.block_size)
    return length


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the keys of `train` that are about these steps."""
    train, block_size = config.train, config.model.block_size
    pairs = train.row_lengths
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs) or not all(
        type(number) is int and number > 0 for pair in pairs for number in pair
    ):
        yield (
            f"train.row_lengths = {pairs!r:.200} must be pairs of a step and the length of rows "
            "until it: ((200, 64), (500, 128))"
        )
    else:
        ends = [end for end, _ in pairs]
        if ends != sorted(set(ends)):
            yield f"train.row_lengths has the steps {ends}, which must increase"
        for _, length in pairs:
            if block_size % length:
                yield f"train.row_lengths: {length} must divide model.block_size = {block_size}"
    if pairs and config.data.messages_column:
        yield "train.row_lengths would cut conversations, which data.messages_column keeps whole"
    weights = train.later_tokens
    if len(weights) > MAX_LATER_TOKENS or not all(
        type(weight) in (int, float) and 0 <= weight <= 1 for weight in weights
    ):
        yield (
            f"train.later_tokens = {weights!r:.200} must be at most {MAX_LATER_TOKENS} weights "
            "from 0 to 1"
        )
    if len(weights) > 0 and not train.later_tokens_iters:
        yield "train.later_tokens needs train.later_tokens_iters, in which its weights fall to 0"
