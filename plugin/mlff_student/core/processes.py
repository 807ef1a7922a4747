"""Worker processes that end when the process that started them ends."""

import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """End this worker process as soon as the process that started it ends or is killed.

    Otherwise the worker would wait for work and keep its memory forever, or write into the files of
    a job that has been resumed.

    Raises
    ------
    RuntimeError
        This process was not started by `multiprocessing`.
    """
    parent = parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent is for workers that multiprocessing started")

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
