"""What all tests share: strict broadcasting, the CPU, and one prepared store."""

import atexit
import copy
import os
import shutil
import tempfile
import types

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported
# Processes, and programs that tests start, share what they compile; the checkout stays clean.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gptjax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Its plugin would import it after the last test. Before Python 3.11.8, parsing a module then fails
# if a finalizer reports an exception meanwhile, for a traceback is parsed, too (cpython#106905).
import hypothesis  # noqa: F401
import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import debug
from data_pipeline import child
from data_pipeline.prepare import prepare
from data_pipeline.sources import parquet_footer
from data_pipeline.token_store import TokenStore
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions

# Tests of child.py itself, and of files that kill it, have a real process, which takes 0.3 s.
parquet_footer.child = types.SimpleNamespace(call=lambda f, x: f(x), Died=child.Died)
jax.config.update("jax_numpy_rank_promotion", "raise")  # a silent broadcast hides a wrong shape


@pytest.fixture(scope="session")
def session_config(tmp_path_factory):
    """configs/debug.py on the bundled shard, prepared once into a folder of this session."""
    config = debug.get_config()
    config.workdir = str(tmp_path_factory.mktemp("runs") / "debug")  # not the checkout's runs/
    config.data.cache_dir = str(tmp_path_factory.mktemp("stores"))
    config.data.prepare_workers = 1
    prepare(config)
    return config


@pytest.fixture(scope="session")
def debug_config(session_config):
    """The prepared debug configuration: copy it before you change it."""
    return session_config


@pytest.fixture(scope="session")
def store(session_config):
    """The token store of `session_config`."""
    return TokenStore.open(prepare(session_config))


@pytest.fixture(scope="session")
def steps(session_config, store):
    """The functions of the debug configuration on one device, compiled when first called."""
    model_config = GPTConfig.from_config(session_config, store.tokenizer.vocab_size)
    mesh = make_mesh(1, jax.devices()[:1])
    return StepFunctions(session_config, model_config, store.tokenizer.token_bytes, mesh)


@pytest.fixture(scope="session")
def initial(steps):
    """The state that a run of the debug configuration begins with."""
    return steps.init_state()


@pytest.fixture(scope="session")
def two_sources(session_config, tmp_path_factory):
    """Two small parquet files with other texts of the bundled shard: prose, and its endings."""
    folder = tmp_path_factory.mktemp("sources")
    texts = pq.ParquetFile(session_config.data.source).read_row_group(0)["text"].to_pylist()
    sources = {"prose": [t[:700] for t in texts[:120]], "ends": [t[-300:] for t in texts[120:260]]}
    for name, chosen in sources.items():
        ids = [f"{name}-{i}" for i in range(len(chosen))]
        pq.write_table(pa.table({"text": chosen, "id": ids}), folder / f"{name}.parquet", 40)
    return [str(folder / f"{name}.parquet") for name in sources]


@pytest.fixture
def mixture_config(session_config, two_sources, tmp_path):
    """configs/debug.py for 8 steps, each logged, of three rows of prose for each two of ends."""
    config = copy.deepcopy(session_config)
    config.workdir = str(tmp_path / "run")
    config.data.source = ""
    config.data.mixture = tuple(zip(two_sources, (0.6, 0.4), strict=True))
    config.data.val_fraction = 0.1
    config.train.max_iters = 8
    config.train.log_interval = 1
    config.sample.prompts = ()
    return config


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which sends nothing by itself."""
    reason = "needs the extra `clients`"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium (Debian: apt install chromium)")
    switches = """--no-sandbox --disable-gpu --disable-quic --no-first-run
        --disable-background-networking --disable-component-update --disable-sync""".split()
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=switches)
        yield opened
        opened.close()


def pytest_collection_modifyitems(items):
    """The longest files begin first, so that no process is left alone with one at the end."""
    longest = ["test_kill.py", "test_faults.py", "test_resume.py"]
    items.sort(key=lambda item: [*longest, item.path.name].index(item.path.name))
