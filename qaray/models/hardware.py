"""Device capabilities: peak rates by name, supported precision, memory and cores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import torch

# FLOP/s of dense bfloat16 matrix products (float16 without bfloat16) and memory bandwidth in bytes/s, from the vendors'
# data sheets. A longer name comes before a shorter one that it contains.
PEAKS = {
    "B200": (2250e12, 8.0e12),
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100 80GB": (312e12, 2.0e12),
    "A100": (312e12, 1.56e12),
    "A10G": (70e12, 600e9),
    "L40S": (362e12, 864e9),
    "L4": (121e12, 300e9),
    "V100": (125e12, 900e9),
    "T4": (65e12, 320e9),
}


def peaks(name: str) -> tuple[float, float] | None:
    """Peak (FLOP/s, bytes/s) of a device by its driver's name, None if unknown."""
    words = name.replace("-", " ").split()
    for known, rates in PEAKS.items():
        if all(part in words for part in known.split()):
            return rates
    return None


def peak_flops(name: str) -> float | None:
    """Peak FLOP/s of a device by its driver's name, None if unknown."""
    found = peaks(name)
    return found[0] if found else None


def device_name(device: torch.device) -> str:
    """The driver's name of a GPU, or the model name of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as stream:
            named = next((line for line in stream if line.startswith("model name")), "")
    except OSError:
        named = ""
    return named.partition(":")[2].strip() or "CPU"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype by name; ``auto`` is bfloat16 if the hardware supports it, else float16 on GPUs and float32 on CPUs."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 matrix instructions; without them, such products are ten times slower."""
    try:
        with open("/proc/cpuinfo") as stream:
            flags = next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def available_memory() -> int:
    """Free host memory in bytes, within the limit of the process's cgroup."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            free = min(free, int((group / limit).read_text()) - int((group / used).read_text()))
    return max(0, free)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
