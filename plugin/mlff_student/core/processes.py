"""Processes that end with the process that started them."""

import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """Let a worker die with the process that started it, also when that one is killed: it would
    wait for work, and hold its memory, forever, or write on where the job is gone on with.
    """

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
