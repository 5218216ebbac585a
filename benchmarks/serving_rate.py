"""Tokens per second of a server, beside llama.cpp's server on the same exported model.

    python -m gptjax.export --workdir=runs/quickstart --format=gguf --out=exported/model.gguf
    python -m benchmarks.serving_rate --workdir=runs/quickstart --gguf=exported/model.gguf

Both answer the same requests, in turn, round by round: one text, and n = 16 texts of one prompt, as
llama.cpp's server computes them in 16 slots. The time is that of the whole HTTP request. llama.cpp
is the wheel xllamacpp with its defaults but for the context and the threads. Prints one line of
JSON.
"""

import argparse
import http.client
import json
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import xllamacpp

from benchmarks.measure import alternate
from benchmarks.served import served


def llama_server(gguf: str, block_size: int, n: int) -> tuple[xllamacpp.Server, int]:
    """Returns a server of `n` slots, each with room for block_size tokens, and its port."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_ctx, parameters.n_parallel = n * block_size, n
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(parameters)
    return server, urlsplit(server.listening_address).port


def rate(port: int, body: dict[str, Any]) -> float:
    """Returns the tokens drawn over a request's seconds.

    By its `usage`; llama.cpp's counts one of the n texts, none of which ends early (`ignore_eos`).
    """
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    seconds = time.perf_counter() - start
    connection.close()
    assert len(answer["choices"]) == body["n"], answer
    drawn = answer["usage"]["completion_tokens"]
    return (body["n"] * body["max_tokens"] if "ignore_eos" in body else drawn) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    with served(arguments.workdir) as server:
        for n in (1, 16):
            llama, port = llama_server(arguments.gguf, arguments.block_size, n)
            body = {"prompt": "The ", "n": n, "max_tokens": arguments.new_tokens, "seed": 1}

            def of(port: int, body: dict[str, Any]) -> Callable[[], float]:
                return lambda: rate(port, body)

            contenders = {
                "gptjax": of(server.port, body),
                "llama.cpp": of(port, body | {"ignore_eos": True, "cache_prompt": False}),
            }
            results[f"n={n}"] = {
                name: {key: round(value, 1) for key, value in values.items()}
                for name, values in alternate(contenders, arguments.rounds).items()
            }
            del llama
    print(json.dumps({"benchmark": "serving_rate", "cores": os.cpu_count(), **results}))


if __name__ == "__main__":
    main()
