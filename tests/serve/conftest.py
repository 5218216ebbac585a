"""A server of a small random model, in this process, on a socket."""

import contextlib
import functools
import socket
import threading

import jax
import pytest
from helpers import tiny_gpt

from gptjax.inference.sampler import Sampler
from gptjax.model import gpt
from gptjax.serve import __main__
from gptjax.serve.connection import server_of
from gptjax.serve.engine import Engine
from gptjax.serve.server import build_app


@pytest.fixture(scope="session")
def serving():
    """serving(sampler, tokenizer, token=None): a context that serves on a free port: yields it."""

    @contextlib.contextmanager
    def serve(sampler, tokenizer, token=None):
        engine = Engine(sampler, tokenizer, "debug")
        web = server_of(build_app(engine, token=token, hosts=("127.0.0.1",)))
        with __main__._listen("127.0.0.1", 0) as listener:
            # The system takes little off the server for a client that does not read.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
            thread.start()
            yield listener.getsockname()[1]
            web.should_exit = True
            thread.join(timeout=5)
        assert not thread.is_alive()

    return serve


@pytest.fixture(scope="module")
def listening(store, serving):
    """listening(token=None): `serving` of a model that continues texts."""
    model_config = tiny_gpt(vocab_size=store.tokenizer.vocab_size, block_size=128, n_layer=1)
    sampler = Sampler(model_config, gpt.init(model_config, jax.random.key(0)))
    return functools.partial(serving, sampler, store.tokenizer)


@pytest.fixture(scope="module")
def port(listening):
    """The port of a server that needs no token."""
    with listening() as port:
        yield port
