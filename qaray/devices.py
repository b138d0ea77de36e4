"""What devices can do: at best, by name, and in which precision."""

from __future__ import annotations

import torch

# FLOP/s of dense bfloat16 (float16 where there is none) matrix products, from the makers' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(name: str) -> float | None:
    """FLOP/s of a device by the name that its driver gives, None where it is not known."""
    words = name.replace("-", " ").split()
    for known, flops in PEAK_FLOPS.items():
        if all(part in words for part in known.split()):
            return flops
    return None


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto``: bfloat16 where the hardware computes in it, else float16 on GPUs, float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 matrices; without such units that takes ten times as long."""
    try:
        with open("/proc/cpuinfo") as stream:
            flags = next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))
