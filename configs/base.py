"""Every configuration key, with its default and its unit or reason.

The other files of this folder start from `get_config()` and change some keys; any key can also be set
on the command line: `--config.optim.learning_rate=3e-4`. No other file holds a default. `gptjax
train --help all` prints the comments below.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the default configuration: a GPT-2-shaped model on one FineWeb shard."""
    config = ConfigDict()
    config.workdir = "runs/base"  # everything the run writes: config.json, metrics.jsonl, checkpoints/, tb/, samples/
    config.seed = 1337  # initial weights, dropout and the order of the data are derived from it
    config.allow_cpu = False  # True: train on the CPU also where a GPU is expected: JAX has a CUDA plugin, or compute_dtype is bfloat16
    config.deterministic = False  # True: on a GPU, the same bits each time, a resume included: XLA takes deterministic kernels and times none; slower
    config.compilation_cache_dir = "data/compiled"  # folder that keeps compiled programs, at most 2 GiB, so that the next start is quick; "": none

    config.init_from = ""  # workdir whose parameters a new run starts with (its tokenizer: tokenizer.file); "": drawn at random

    config.data = config_dict.create(
        source="data/fineweb_one_shard",  # a file, a folder (all files in it, in the order of their names) or a glob: parquet, .jsonl, .txt; also .gz, .zst; here, or at hf://, s3://, gs://, https://
        text_column="text",  # column of parquet, or key of JSON lines, with the text
        messages_column="",  # key of JSON lines with a conversation, a list of {role, content}: the loss is then on the assistant's messages, and rows keep conversations whole; "": text
        id_column="auto",  # that with the id: a name; "": file name and row number; auto: `id`, and where a parquet file or a line has none, as with ""
        split_by="",  # column of parquet, or key of JSON lines, whose value is hashed for the val split instead of the id: documents that share it, as pages of one file, are on one side; "": the id
        separator="",  # what is between the documents of a .txt file, for example "\\n\\n" (\\n: end of a line); "": a file is a document
        mixture=(),  # several sources and their shares of the rows, instead of data.source: (("a", 0.7), ("b", 0.3)); exact in whole numbers or short decimals
        mixture_schedule=(),  # steps from which other weights hold, in the order of data.mixture: ((1000, (0.5, 0.5)),); 0 leaves a source out
        mixture_file="",  # a JSON file that holds both instead, see configs/mixture.py; "": none
        cache_dir="data/stores",  # prepared token stores, one folder per (source, settings); also s3://bucket/path, gs://...
        local_dir="data/local",  # with a cache_dir that is an address: keeps the files of stores that are in use
        cache_bytes=100_000_000_000,  # bytes in local_dir; at least two groups of shards, of about 16 GB each
        engine="local",  # what prepares: local (processes of this machine), or ray (tasks of a Ray cluster; the extra `ray`)
        val_fraction=0.005,  # share of documents, chosen by a hash of their id or of data.split_by, never trained on
        max_train_tokens=0,  # train on this many tokens only, of documents that are the same for every seed; the val split stays whole; 0: all
        document_mask=False,  # True: a token attends only inside its own document
        drop_duplicates=False,  # True: of documents of equal text, only the first is used (of the val split: there); False: they are counted
        on_corrupt="stop",  # damage: stop, or keep_before: of a row group or a compressed file the documents before it, of JSON lines and texts all but the damaged; what is lost is listed
        prepare_workers=0,  # processes that tokenise; 0: one per CPU core
        prefetch_batches=2,  # batches read ahead, on the host and again on the device
    )

    config.tokenizer = config_dict.create(
        vocab_size=32_768,  # SentencePiece BPE pieces, specials and 256 bytes included; over 65,536, a token takes 4 bytes instead of 2
        file="",  # a workdir's tokenizer.model, or a tokenizer.json of a byte-level BPE (GPT-2, Llama 3, Qwen), to use instead of training one; "": train
        sample_bytes=100_000_000,  # text the tokenizer is trained on, spread evenly over the shard
    )

    config.model = config_dict.create(
        block_size=1024,  # T: tokens per row
        n_layer=12,
        n_head=8,
        n_kv_head=0,  # heads of keys and values, shared by n_head / n_kv_head heads of queries each; 0: n_head
        n_embd=512,  # D: must be a multiple of n_head
        norm="layernorm",  # before each half of a block and at the end: layernorm, or rmsnorm
        norm_eps=0.0,  # under the root of a norm; 0: 1e-5 of a layernorm (GPT-2), 1e-6 of an rmsnorm (Qwen3); Llama's rmsnorm has 1e-5
        position="learned",  # an embedding added to the tokens' (learned), or queries and keys rotated in every block (rope)
        rope_theta=10_000.0,  # rope: the slowest pair turns by about 1 / rope_theta radians a token
        rope_scaling=(),  # rope for a longer window than was trained on: (8.0,) turns 8 times slower; (8.0, 1.0, 4.0, 8192) as Llama 3: factor, slowest and fastest pairs that are blended (turns in the old window), old window
        qk_norm=False,  # an RMSNorm over each head's queries and keys, so that their products stay bounded
        mlp="gelu",  # gelu, relu2 (its square after a ReLU), or swiglu (gated: a third matrix)
        mlp_dim=0,  # F, width inside the MLP; 0: 4 n_embd, and for swiglu 8/3 n_embd rounded up to a multiple of 64
        tie_embeddings=True,  # the head is the token embedding; False: a matrix of its own
        zero_init=False,  # True: projections into the residual stream start at 0, so that a block begins as the identity
        dropout=0.0,  # probability; 0 is best for pre-training that sees each document few times
        bias=False,  # biases in linear layers and LayerNorms; an RMSNorm has none
        compute_dtype="auto",  # matmuls: float32, bfloat16, or auto (bfloat16 on GPU, float32 on CPU)
        attention="auto",  # xla (builds T x T scores), chunked, cudnn (no document mask), pallas (both NVIDIA), or auto (the first that works here)
        remat="none",  # saves memory by recomputing in the backward pass: none, dots (keep matmul outputs), full (keep block inputs)
        scan_unroll=1,  # layers per iteration of the scan over layers: more compiles slower, may run faster
        loss_chunk=0,  # saves memory: target tokens per chunk of the head and loss, so that logits never exist whole; 0: one chunk
    )

    config.optim = config_dict.create(
        optimizer="adamw",  # adamw, or muon (for matrices inside blocks; adamw for embeddings, head, norms and biases)
        learning_rate=6e-4,  # peak, reached after warmup_iters; with muon, that of adamw's share
        head_learning_rate=0.0,  # peak of an untied head, which follows the schedule of learning_rate; 0: learning_rate
        min_lr=6e-5,  # floor, reached at lr_decay_iters (cosine) or train.max_iters (wsd), and kept
        schedule="cosine",  # after the warm-up: cosine, or wsd (stays at the peak, then falls fast: the run can be made longer until then)
        warmup_iters=2000,  # optimizer steps of linear warm-up
        lr_decay_iters=250_000,  # cosine: optimizer steps until min_lr, warm-up included
        rewarm_at=(),  # cosine: optimizer steps at which a run is made longer: the rate warms up again there, and falls until the next one or train.max_iters
        wsd_fall="sqrt",  # wsd: falls by the root of its progress (sqrt), or by a straight line (linear)
        wsd_decay_iters=25_000,  # wsd: optimizer steps of the fall, the last ones before train.max_iters
        weight_decay=0.1,  # x learning rate a step, on matrices only: not on LayerNorm scales and biases
        weight_decay_schedule="constant",  # constant, or linear (from weight_decay at the first step to weight_decay_end at train.max_iters)
        weight_decay_end=0.0,  # linear only
        beta1=0.9,
        beta2=0.99,
        eps=1e-8,
        muon_learning_rate=2e-3,  # peak for muon's matrices, in the units of muon_scale; follows the schedule of learning_rate
        muon_scale="rms",  # 0.2 of a rate is the RMS of an update, as adamw's tends to be (rms); or a rate is its spectral norm, x sqrt(d_out / d_in) where that is more (spectral), whose best value is the same for any width
        muon_momentum=0.95,
        grad_clip=1.0,  # global L2 norm; 0: no clipping
        ema_decay=0.0,  # moving average of the weights, kept beside them, to evaluate, sample and export with: share that it keeps a step; 0: none
    )

    config.train = config_dict.create(
        batch_size=12,  # B: rows per micro-step, over all devices; the first to lower where memory is short
        gradient_accumulation_steps=40,  # A: micro-steps per optimizer step
        row_lengths=(),  # shorter rows at first: ((200, 64), (500, 128)) cuts rows of block_size into rows of 64 tokens until step 200, and of 128 until step 500; the tokens of a step are the same; (): none
        later_tokens=(),  # weights of the loss on the 2nd, 3rd, ... token ahead, which the same logits predict, at the first step: (0.5, 0.25); (): only the next token
        later_tokens_iters=0,  # optimizer steps in which these weights fall to 0, by a straight line
        teacher="",  # workdir of a finished run with the same tokenizer, from whose predictions this one learns, too: takes a forward pass more; "": none
        teacher_weight=0.5,  # share of its predictions in the loss on the next token, above 0 to 1; the rest is that of the data
        max_iters=250_000,  # optimizer steps
        log_interval=50,  # optimizer steps between lines of metrics
        max_epochs=8.0,  # warn before step 0 when the run reads the training split more often than this
        max_consecutive_skips=50,  # stop after this many skipped steps in a row: loss or gradient not finite, or a spike
        loss_spike_sigma=0.0,  # skip a step whose loss exceeds the mean of the last 128 by this many standard deviations; 0: off
        max_hours=config_dict.placeholder(float),  # stop with a checkpoint after this many hours of training, over all starts; evaluations, saves and compilation are not counted
    )

    config.eval = config_dict.create(
        eval_interval=500,  # optimizer steps between evaluations on the val split (and one at the end)
        eval_iters=200,  # batches of batch_size rows, the same rows each time; fewer where the split is smaller
        benchmarks=(),  # JSON-lines files, plain or .gz, or folders of them, to measure the model on during training; (): none
        benchmark_interval=5000,  # optimizer steps between benchmarks (and one at the end); 0: only at the end
        benchmark_limit=500,  # items of each benchmark (of each paradigm of BLiMP), the same ones each time; 0: all
    )

    config.checkpoint = config_dict.create(
        always_save_checkpoint=True,  # True: save after every evaluation; False: only after one that is the best so far
        keep_latest=2,  # most recent checkpoints kept
        keep_best=1,  # checkpoints with the lowest val loss kept besides
    )

    config.sample = config_dict.create(
        prompts=("The ",),  # printed with their continuations and written to samples/
        interval=0,  # optimizer steps between samples (and some at the end); 0: only at the end
        max_new_tokens=120,
        temperature=0.8,  # 0: greedy
        top_k=200,  # most likely tokens to draw from; 0: all
        top_p=1.0,  # smallest set of tokens with this probability; 1: all
    )

    config.report = config_dict.create(
        interval=0,  # optimizer steps between rewritings of report.html in the workdir (and one at the end); 0: off
    )

    config.log = config_dict.create(
        tensorboard=True,  # event files in workdir/tb
        wandb=False,  # Weights & Biases; needs the extra `wandb`
        wandb_project="gptjax",
    )

    config.mesh = config_dict.create(
        data=0,  # copies of the parameters, each on fsdp devices; 0: as many as there are devices for
        fsdp=1,  # devices that share one copy of the parameters and optimizer state
        gather="step",  # with fsdp > 1, parameters are gathered once a step (fewest bytes), or for each layer when it is used (least memory)
    )
    return config
