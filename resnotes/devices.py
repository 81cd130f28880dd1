"""Where networks compute, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from resnotes.errors import UsageError


def resolve_device(device: str = "auto") -> torch.device:
    """``"auto"`` is the first GPU of CUDA if there is one, else the CPU; ``"mps"``, Apple's, has to be asked for.

    Raises:
        UsageError: neither the CPU nor a GPU that is there.
    """
    mps = torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}.get(found.type, 0)
    if found.type == "cpu" or (found.index or 0) < there:
        return found
    raise UsageError(
        f"unknown device {device!r}; expected auto, cpu, cuda, cuda:N or mps, on a machine with"
        f" {torch.cuda.device_count()} GPUs of CUDA and {'one' if mps else 'none'} of MPS"
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` is bfloat16 where the hardware multiplies in it, else float32, as always on MPS.

    Raises:
        UsageError: bfloat16 on MPS.
    """
    if device.type == "mps":
        if precision == "bfloat16":
            raise UsageError("expected precision float32 or auto on mps, found bfloat16")
        return "float32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Emulated bfloat16 would work on any processor, more slowly than float32.
        found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        supported = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if supported else "float32"


def layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How images and weights lie in memory while `network` is trained: channels last, which is faster, where it can be.

    On a CPU with AVX2 and nothing newer, oneDNN has wrong gradients or none for the weights of strided 1x1
    convolutions of fewer than 8 channels that lie last (https://github.com/uxlfoundation/oneDNN/issues/6035). MPS has
    none for some of its layers.
    """
    if device.type == "mps":
        return torch.contiguous_format
    wrong = device.type == "cpu" and any(
        isinstance(module, nn.Conv2d)
        and module.in_channels < 8
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        for module in network.modules()
    )
    return torch.contiguous_format if wrong else torch.channels_last


def widest(device: torch.device) -> torch.dtype:
    """In which type sums are taken: float64, but float32 on MPS, which has no more."""
    return torch.float32 if device.type == "mps" else torch.float64


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for ``"bfloat16"``, nothing for ``"float32"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """With one CPU thread for a while: over maps so small, several mostly wait for each other.

    Where a core is busy with something else, they wait for it in each of thousands of operations.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
