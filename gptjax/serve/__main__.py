"""Serves a run's model over HTTP, on this machine only by default.

gptjax serve runs/quickstart
"""

import logging
import signal
import socket
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from configs.extras import imports_of_extra
from data_pipeline.progress import Waiting
from gptjax.inference import Sampler, load_run
from gptjax.step.compilation_cache import keep_compiled

_log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _access(host: str, public: bool, token_file: str | None) -> str | None:
    """Returns the token that requests must send, or None.

    Raises UserError if other machines can reach `host` without an explicit permission.
    """
    if host not in _LOOPBACK and not (public and token_file):
        raise UserError(
            f"--host={host} can be reached from other machines: that needs --public and "
            "--token_file=FILE, a file with a token of your choice. Clients send it as "
            "Authorization: Bearer TOKEN (OpenAI's clients: api_key). It is sent unencrypted."
        )
    if token_file is None:
        return None
    try:
        token = Path(token_file).read_text().strip()
    except OSError as error:
        raise UserError(f"--token_file={token_file} cannot be read: {error.strerror}.") from error
    if len(token) < 16 or not token.isascii():
        raise UserError(f"{token_file} must hold a token of at least 16 ASCII characters.")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror}). Is another server running? "
            f"Choose another port: --port={port + 1}"
        ) from error


def _main(_: list[str]) -> None:
    with imports_of_extra("serve"):
        from gptjax.serve.connection import server_of
        from gptjax.serve.engine import Engine
        from gptjax.serve.server import build_app
    values = flags.FLAGS
    token = _access(values.host, values.public, values.token_file)
    workdir = Path(values.workdir)
    # uvicorn raises the signal again after its shutdown: the process ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    keep_compiled(values.compilation_cache_dir)
    _, model_config, params, tokenizer, _step = load_run(workdir)
    with _listen(values.host, values.port) as listener:
        engine = Engine(Sampler(model_config, params), tokenizer, workdir.resolve().name)
        with Waiting("compiling what requests can need"):
            engine.warm_up()
        hosts = _LOOPBACK if values.host in _LOOPBACK else None
        host = f"[{values.host}]" if ":" in values.host else values.host
        _log.info("%s: http://%s:%d/", workdir, host, listener.getsockname()[1])
        server_of(build_app(engine, token=token, hosts=hosts)).run(sockets=[listener])


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_integer("port", 8000, "Port; 0: any free one.", lower_bound=0)
    flags.DEFINE_bool("public", False, "Allow a --host that other machines can reach.")
    flags.DEFINE_string("token_file", None, "File with the token that clients must send.")
    cli.define_compilation_cache_dir()
    cli.run_argv(_main, first="workdir")
