"""Prints a script with which a shell completes verbs, names of configurations, keys and files.

gptjax completion bash >> ~/.bashrc
gptjax completion zsh >> ~/.zshrc
gptjax completion fish > ~/.config/fish/completions/gptjax.fish
"""

from configs import base, cli
from configs.errors import UserError
from configs.validate import leaves
from gptjax.cli.verbs import VERBS, WITH_CONFIG

_BASH = """\
_gptjax() {
  local words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="%(verbs)s --help --version"
  else
    case "${COMP_WORDS[1]}" in %(with_config)s) words="%(names)s %(keys)s" ;; esac
    case "$2" in -*) words="--help --quiet" ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$2"))
  if [[ "${COMPREPLY[0]}" = *= ]] && type compopt > /dev/null 2>&1; then compopt -o nospace; fi
}
complete -o default -F _gptjax gptjax
"""
_ZSH = """\
autoload -Uz compinit && compinit
_gptjax() {
  if (( CURRENT == 2 )); then
    compadd -- %(verbs)s --help --version
    return
  fi
  case $words[2] in %(with_config)s) compadd -- %(names)s; compadd -S "" -- %(keys)s ;; esac
  case $words[CURRENT] in -*) compadd -- --help --quiet ;; esac
  _files
}
compdef _gptjax gptjax
"""
_FISH = """\
%(described)s
complete -c gptjax -n "__fish_seen_subcommand_from %(config_verbs)s" -a "%(names)s %(keys)s"
complete -c gptjax -l help
complete -c gptjax -n __fish_use_subcommand -l version
complete -c gptjax -n "not __fish_use_subcommand" -l quiet
"""


def script(shell: str) -> str:
    """Returns the script for `shell`; UserError: it is none of bash, zsh and fish."""
    scripts = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
    if shell not in scripts:
        raise UserError(f"name the shell, one of {', '.join(scripts)}: gptjax completion bash")
    described = (
        f"complete -c gptjax -f -n __fish_use_subcommand -a {verb} -d {what!r}"
        for verb, (_, what) in VERBS.items()
    )
    return scripts[shell] % {
        "verbs": " ".join(VERBS),
        "with_config": "|".join(WITH_CONFIG),
        "config_verbs": " ".join(WITH_CONFIG),
        "names": " ".join(cli.bundled()),
        "keys": " ".join(f"{key}=" for key in leaves(base.get_config())),
        "described": "\n".join(described),
    }


def _main(arguments: list[str]) -> None:
    shell, *others = arguments[1:] or [""]
    if others:
        raise UserError(f"{others[0]!r} is not used: one shell at a time.")
    print(script(shell), end="")


if __name__ == "__main__":
    cli.run_argv(_main, positional=True)
