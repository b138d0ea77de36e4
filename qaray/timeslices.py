"""How long Linux lets this process compute at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

LONGEST = 0.1  # seconds: the most that Linux grants
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # the system call's number; glibc has a function for it since 2.41


class _Attributes(ctypes.Structure):
    """struct sched_attr of linux/sched/types.h, its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def compute_in_long_slices() -> None:
    """This thread and what it starts from now on compute in slices of up to ``LONGEST``, and interrupt nobody.

    Ray's helpers wake some thousand times a second. By default each takes the processor from an engine's thread, at the
    latest at the scheduler's next tick, and leaves it with cold caches; now they wait, and do in one go what has
    gathered. What they do may come so much later: where a core is free, nothing does. Linux from 6.12; before it grants
    no slices (``runtime`` of a task that is not real-time) they only do not interrupt.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _Attributes(ctypes.sizeof(_Attributes), os.SCHED_BATCH, 0, nice, 0, int(LONGEST * 1e9), 0, 0)
    with contextlib.suppress(OSError, AttributeError):  # no such library
        ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, ctypes.byref(wanted), 0)  # where refused: as it was
