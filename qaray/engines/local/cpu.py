"""How a process that computes on CPUs is set up: its threads, and the memory that it frees."""

from __future__ import annotations

import ctypes

import torch

from qaray.models.hardware import cores


def set_up(threads: int | None, actors: int) -> None:
    """This thread computes on ``threads``, by default on its share of the cores among ``actors`` on this machine."""
    torch.set_num_threads(threads or default_threads(actors))
    _keep_freed_memory()


def compute_on(threads: int) -> None:
    """The calling thread computes on so many from now on, whatever another one chooses."""
    torch.set_num_threads(threads)
    torch.get_num_threads()  # takes the number up: a thread does so once, when it first computes


def default_threads(actors: int) -> int:
    """CPU threads of one of ``actors`` on this machine."""
    return max(1, cores() // max(1, actors))


def _keep_freed_memory() -> None:
    """Tells the C library to keep freed memory for the next tensor.

    By default each tensor of more than some hundred kilobytes is fetched from the system anew, page by page: on a CPU
    that costs decoding up to half of its time. Does nothing where the C library is not glibc.
    """
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20), (arena_max, 1)):
        mallopt(option, value)
