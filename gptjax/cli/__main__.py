"""The command `gptjax`: `gptjax VERB ...` runs the module of that verb.

`python -m gptjax.cli VERB ...` is the same.
"""

import difflib
import runpy
import sys

from gptjax import __version__
from gptjax.cli.verbs import VERBS

_ANYWHERE = ("doctor", "completion")  # also where nothing can be trained
_WINDOWS = """\
error: gptjax does not run on native Windows: it needs the file locks and signals of POSIX, and JAX
       has no CUDA there. Use WSL 2, which has both: docs/install.md.
"""


def main() -> None:
    """Runs the verb that the command line names.

    Exit status: that of the verb; 2 for an unknown one, or native Windows.
    """
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("--help", "-h", "-help", "help"):
        print(_usage())
    elif verb in ("--version", "-V", "version"):
        print(f"gptjax {__version__}")
    elif verb not in VERBS:
        nearest = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        sys.exit(_status_2(f"error: {verb!r} is no verb{hint}: see gptjax --help\n"))
    elif sys.platform == "win32" and verb not in _ANYWHERE:
        sys.exit(_status_2(_WINDOWS))
    else:
        sys.argv[1:] = arguments
        runpy.run_module(VERBS[verb][0], run_name="__main__", alter_sys=True)


def _status_2(text: str) -> int:
    sys.stderr.write(text)
    return 2


def _usage() -> str:
    lines = [f"  {verb:<11} {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "Pre-trains a small GPT on one GPU, and uses it.\n",
            "  gptjax VERB ...        gptjax VERB --help        gptjax --version\n",
            *lines,
            "\nFor example: gptjax train quickstart; gptjax generate runs/quickstart",
        ]
    )


if __name__ == "__main__":
    main()
