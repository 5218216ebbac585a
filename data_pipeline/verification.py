"""Verifies a token store while training begins: reading it all would delay the first step."""

import logging
import threading
from concurrent import futures

from data_pipeline.token_store import TokenStore

_log = logging.getLogger(__name__)


class Verification:
    """Runs `TokenStore.verify` once, in a thread, from construction on."""

    def __init__(self, store: TokenStore):
        self._future: futures.Future[int] = futures.Future()
        self._path = store.path

        def verify() -> None:
            try:
                self._future.set_result(store.verify())
            except BaseException as error:
                self._future.set_exception(error)

        # A daemon: an executor's thread would delay the end of a run that is stopped.
        threading.Thread(target=verify, name="verify-store", daemon=True).start()

    def check(self) -> None:
        """Raises DataError if the store has been found to be damaged; does not wait."""
        if self._future.done():
            self._future.result()

    def wait(self) -> None:
        """Waits for the end; DataError if the store is damaged."""
        if not self._future.done():
            _log.info("Waiting until %s is compared with its hashes.", self._path)
        self._future.result()
