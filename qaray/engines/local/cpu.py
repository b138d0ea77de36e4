"""CPU settings of a process: compute threads and reuse of freed memory."""

from __future__ import annotations

import ctypes

import torch

from qaray.models.hardware import cores


def set_up(threads: int | None, actors: int) -> None:
    """Sets this thread's CPU threads, by default its share of the cores among ``actors``, and keeps freed memory."""
    torch.set_num_threads(threads or default_threads(actors))
    _keep_freed_memory()


def compute_on(threads: int) -> None:
    """Sets the number of CPU threads that the calling thread computes with, whatever other threads set."""
    torch.set_num_threads(threads)
    torch.get_num_threads()  # applies the number, which a thread reads once, when it first computes


def default_threads(actors: int) -> int:
    """CPU threads per actor if ``actors`` share this node, at least 1."""
    return max(1, cores() // max(1, actors))


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later tensors. Does nothing with another C library.

    By default, every tensor of more than a few hundred kilobytes is mapped from the system page by page, which costs
    decoding on a CPU up to half of its time.
    """
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20), (arena_max, 1)):
        mallopt(option, value)
