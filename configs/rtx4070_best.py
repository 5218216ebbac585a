"""The best GPT we can reason out for one FineWeb shard and five days of an RTX 4070 (12 GB).

Run `gptjax train rtx4070_best`.

Measured, by compiling for the card with cuDNN's attention: 6.59 of 8.99 GiB at 4 rows a micro-step,
2,326 GB of traffic (4.6 s) and 6.99 s of arithmetic an optimizer step at the card's peak. Not run
on an RTX 4070; with a tied head and 8 rows a step took 1.13 s and 8.07 GiB on an NVIDIA H200.

Measured, on a CPU with models of 0.3M to 4M parameters and text that is not FineWeb
(benchmarks/LOG.md): the modern shape and Muon end 0.41 bits per byte below the user's recipe after
one pass of 1M tokens, and 0.30 below after 4 passes over 2.6 tokens a parameter (three seeds; the
recipe's rate is not tuned for that size). A head of its own, rates for each group, short rows and
later tokens at first end at 4 x 128, after 0.70 of its tokens, 0.018 lower than that at its best
rate, and after 0.32 of the tokens of AdamW at its best rate 0.015 lower than that (three seeds
each, lower in each). Weight decay of 0.4 and an average of the weights changed nothing (one seed).
Size of batch at this size, and dropout: not measured.

Extrapolated: the size, by a law that others fitted (`gptjax plan --suggest --days=5
--target=rtx4070`), at 40 % of the peak, which is assumed: 6.2e9 tokens are 8.6 passes over the
shard's 0.73e9. In small, one and a half times the parameters and 5 passes were better (see
docs/rtx4070.md). To that law 15 x 960, which has time for more than 10 passes, is 0.003 nats behind
16 x 1024, whose widths are powers of two. Should the card be faster or slower, ask again with
--tflops. The learning rates, from those of three or four widths: see their lines.
"""

from ml_collections import ConfigDict

from configs import base, modern


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_config()
    config.workdir = "runs/rtx4070_best"

    modern.apply(config)
    config.model.n_layer = 16
    config.model.n_head = 16
    config.model.n_embd = 1024
    config.model.tie_embeddings = False  # at 4 x 128, 0.05 bits per byte less than a tied head
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.loss_chunk = 4096  # 0.2 GiB less than whole logits, 2 % more traffic (with 8 rows)
    config.model.scan_unroll = 16  # all layers: 1.2 GiB more, 13 % less traffic

    # 262,144 tokens a step, about half of the user's recipe: 1.9 times its steps a token.
    config.train.batch_size = 4  # 8 rows need over 8.61 GiB, too near to the 8.99
    config.train.gradient_accumulation_steps = 64
    config.train.max_iters = 23_750
    config.train.max_epochs = 10.0  # 8.6 are meant

    config.optim.optimizer = "muon"
    # In spectral norm the best of widths 64, 128, 256 and 512 were 0.010, 0.012, 0.011 and 0.010
    # after 274 steps of 1,024 tokens; at 128, that after 546 steps was 0.014, and after 1,094 steps
    # 0.006 and 0.012 end alike. Records at 768 wide with 0.5M tokens a step have 0.025.
    # Extrapolated: one rate for all widths.
    config.optim.muon_scale = "spectral"
    config.optim.muon_learning_rate = 0.012
    # Of the token table and norms: 0.02 at 128. Extrapolated: half of it.
    config.optim.learning_rate = 0.01
    # A head's best rate falls with the width: 0.005 at 128. That of records at 768 wide.
    config.optim.head_learning_rate = 3e-3
    config.optim.beta1 = 0.8  # at 4 x 128, 0.008 bits per byte less than 0.9
    config.optim.min_lr = 0.0
    config.optim.schedule = "wsd"
    config.optim.warmup_iters = 500
    config.optim.lr_decay_iters = 23_750
    config.optim.wsd_fall = "linear"
    config.optim.wsd_decay_iters = 19_000  # 80 %, as measured

    # At 4 x 128 with rows of 256, the two together take 0.05 bits per byte off.
    config.train.row_lengths = ((2_375, 128), (5_940, 256), (11_875, 512))  # 10, 25 and 50 %
    config.train.later_tokens = (0.5, 0.25)
    config.train.later_tokens_iters = 7_900  # a third

    # A step takes 19 s at 40 % of the peak: evaluated and saved every half hour, 2 % of the time.
    config.eval.eval_interval = 100
    config.train.log_interval = 10
    config.sample.interval = 1000
    config.report.interval = 500
    return config
