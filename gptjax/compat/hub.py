"""Uploads an exported folder to the Hugging Face Hub: the only place that sends a model away."""

import re
from pathlib import Path

from configs.errors import UserError
from configs.extras import imports_of_extra

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(name: str) -> None:
    """Raises UserError if `name` is no name of a repository, or if the package is missing."""
    with imports_of_extra("remote"):
        import huggingface_hub  # noqa: F401
    if not _NAME.fullmatch(name):
        raise UserError(f"--push_to={name} must be USER/NAME, as on huggingface.co.")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Uploads the files of `folder` as one commit; returns the address of the repository.

    It is created, `private` or not, if it does not exist; an existing one stays as it is. Who the
    user is comes from `hf auth login`, or HF_TOKEN.

    Raises:
        UserError: the Hub cannot be reached or refuses.
    """
    with imports_of_extra("remote"):
        import huggingface_hub
    api = huggingface_hub.HfApi(library_name="gptjax")
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload a model of gptjax"
        )
    except Exception as error:  # of the Hub, the network, the login
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: the Hub did not take {folder} ({reason}). The folder is complete: log in "
            f"with `hf auth login` and upload it with `hf upload {name} {folder}`."
        ) from error
    return address
