"""Verifies a token store while training begins: reading it all would delay the first step."""

import logging

from data_pipeline import background
from data_pipeline.token_store import TokenStore

_log = logging.getLogger(__name__)


class Verification:
    """Runs `TokenStore.verify` once, in a thread, from construction on."""

    def __init__(self, store: TokenStore):
        self._path = store.path
        self._future = background.start("verify-store", store.verify)

    def check(self) -> None:
        """Raises DataError if the store has been found to be damaged; does not wait."""
        if self._future.done():
            self._future.result()

    def wait(self) -> None:
        """Waits for the end; DataError if the store is damaged."""
        if not self._future.done():
            _log.info("Waiting until %s is compared with its hashes.", self._path)
        self._future.result()
