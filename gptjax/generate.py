"""Continues prompts with a run's model.

gptjax generate runs/quickstart --prompt="The " --num_samples=3 --stop="."
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from gptjax.inference import Sampler, continue_texts, load_run, sampling_flags


def _in_turn(pieces: Iterable[tuple[int, str]], prompts: Sequence[str]) -> Iterator[str]:
    """Yields the texts one after the other, the first while it is drawn."""
    waiting = list(prompts)
    yield waiting[0]
    for i, piece in pieces:
        if i == 0:
            yield piece
        else:
            waiting[i] += piece
    for text in waiting[1:]:
        yield f"\n---\n{text}"


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    sampling = sampling_flags.sampling_of(values)
    if "" in values.stop:
        raise UserError("--stop= is empty: every text would end before its first character.")
    run = load_run(Path(values.workdir))
    prompts = [prompt for prompt in values.prompt for _ in range(values.num_samples)]
    seeds = [values.seed + i for _ in values.prompt for i in range(values.num_samples)]
    pieces = continue_texts(
        Sampler(run.model_config, run.params),
        run.tokenizer,
        prompts,
        sampling,
        seeds=seeds,
        stop=values.stop,
    )
    for piece in _in_turn(pieces, prompts):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_multi_string("prompt", [""], "Text to continue; empty: a new document.")
    flags.DEFINE_integer("num_samples", 1, "Texts for each prompt.", lower_bound=1)
    flags.DEFINE_multi_string("stop", [], "A text ends before this string.")
    flags.DEFINE_integer("max_new_tokens", 200, "Tokens to draw.", lower_bound=0)
    sampling_flags.define(temperature=0.8, top_k=200)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same texts; the i-th has seed + i.")
    cli.run_argv(_main, first="workdir")
