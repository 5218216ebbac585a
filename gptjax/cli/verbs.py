"""The verbs of the command: each runs a module, which parses its own arguments."""

VERBS = {  # verb -> module, what it does
    "train": ("gptjax.main", "trains a model; run again, it continues"),
    "plan": ("gptjax.plan", "what a run will need, here or on another card"),
    "prepare": ("data_pipeline.prepare", "prepares the data alone"),
    "browse": ("data_pipeline.browse", "statistics of the data, and rows as the model sees them"),
    "watch": ("gptjax.cli.watch", "follows a run from another terminal"),
    "generate": ("gptjax.generate", "continues prompts"),
    "chat": ("gptjax.chat", "talks with a model that was tuned on conversations"),
    "evaluate": ("gptjax.evaluate", "loss, bits per byte, benchmarks"),
    "serve": ("gptjax.serve", "OpenAI's completions and chat API, and a page"),
    "report": ("gptjax.report", "an HTML page about runs, or their numbers as CSV or parquet"),
    "sweep": ("gptjax.sweep", "trains settings x seeds that a file declares"),
    "export": ("gptjax.export", "files for Hugging Face's transformers, or llama.cpp"),
    "import": ("gptjax.import_hf", "a model of Hugging Face becomes a workdir"),
    "checkpoint": ("gptjax.checkpoint", "verifies the checkpoints of a run"),
    "lm-eval": ("gptjax.lm_eval_adapter", "any task of lm-eval on a workdir"),
    "ray": ("gptjax.on_ray", "trains with the processes of a Ray cluster"),
    "doctor": ("gptjax.cli.doctor", "this machine: what runs here, and what is missing"),
    "completion": ("gptjax.cli.completion", "a script that completes verbs, names and keys"),
}
WITH_CONFIG = ("train", "plan", "prepare", "browse", "ray")  # take a configuration and its keys
