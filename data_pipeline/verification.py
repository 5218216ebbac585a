"""Verifies token stores while training begins: reading it all would delay the first step."""

import logging

from data_pipeline import background
from data_pipeline.token_store import Stores

_log = logging.getLogger(__name__)


class Verification:
    """Runs `TokenStore.verify` of all stores once, in a thread, from construction on."""

    def __init__(self, stores: Stores):
        self._stores = list(stores.sources.values())
        self._future = background.start("verify-store", self._verify)

    def _verify(self) -> None:
        for store in self._stores:
            store.verify()

    def check(self) -> None:
        """Raises DataError if the store has been found to be damaged; does not wait."""
        if self._future.done():
            self._future.result()

    def wait(self) -> None:
        """Waits for the end; DataError if the store is damaged."""
        if not self._future.done():
            paths = ", ".join(str(store.path) for store in self._stores)
            _log.info("Waiting until %s is compared with its hashes.", paths)
        self._future.result()
