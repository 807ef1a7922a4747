"""Processes that end with the process that started them, and tries in a copy of this process."""

import faulthandler
import os
import resource
import signal
from collections.abc import Callable
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


def signal_of(function: Callable[[], object]) -> str:
    """Call a function in a copy of this process, and return the name of the signal that ends it.

    Some C libraries end the process if a file is damaged. The files that they read are therefore
    read in a copy of the process first.

    Parameters
    ----------
    function : Callable[[], object]
        Function to try; its result and its exceptions are ignored.

    Returns
    -------
    str
        Name such as "SIGSEGV"; empty if the function ends.
    """
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):  # also what this process has not written yet
                os.dup2(nowhere, stream)
            function()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""
