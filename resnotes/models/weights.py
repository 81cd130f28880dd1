"""Files of weights, as PyTorch and others write them, read without running any code that is in them."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from resnotes.datasets.archives import kind_of
from resnotes.errors import DatasetError


def read_weights(path: Path, sha256: str, how: str) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file of PyTorch or of safetensors, on the CPU, and the file's SHA-256.

    Args:
        path: the file; its state dict may lie in a checkpoint, as ``"state_dict"`` or as all that is one there.
        sha256: how its checksum must begin, in hex digits; empty for any.
        how: what to do where the file is missing, damaged or another one, for the error.

    Raises:
        DatasetError: it cannot be read, has another checksum, or holds a network rather than its weights, or none, or
            weights that are not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read the weights {path} ({error.strerror}); {how}") from error
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256):
        known = len(sha256) == 64  # else it is out of a name, where it may mean something else
        expected = f"{sha256};" if known else f"{sha256}...; rename it, if {sha256} is no checksum, or"
        raise DatasetError(
            f"{path} is damaged, or another file: its {len(content):,} bytes have the SHA-256 {digest}, expected"
            f" {expected} remove it, and {how}"
        )
    try:
        if content[8:9] == b"{":  # of safetensors, whatever it is called: the length of its header, and the header
            loaded: Any = safetensors.torch.load(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        # PyTorch's own words would advise to load it without the protection against foreign code.
        if code := re.search(r"GLOBAL (\S+)|(TorchScript)", str(error)):
            raise DatasetError(
                f"{path} holds more than weights: {code[1] or code[2]}, which is code that is not run here; load it"
                f" where you trust it, and write its weights alone, torch.save(model.state_dict(), {path.name!r})"
            ) from error
        found = kind_of(path) or f"no file of weights, or damaged ({type(error).__name__})"
        raise DatasetError(f"{path} is {found}; expected a state dict of PyTorch or safetensors; {how}") from error
    state = _state_dict(path, loaded)
    if odd := [name for name, value in state.items() if not _is_plain(value)]:
        raise DatasetError(f"{path} holds NaN, or what are no plain finite numbers, first as {odd[0]}; {how}")
    return state, digest


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """What was loaded, or an entry of it, whichever is tensors by name."""
    if _is_state(loaded):
        return dict(loaded)
    entries = loaded if isinstance(loaded, Mapping) else {}
    found = {key: value for key, value in entries.items() if _is_state(value)}
    chosen = "state_dict" if "state_dict" in found or len(found) != 1 else next(iter(found))
    if chosen not in found:
        held = f"{type(loaded).__name__} {[*entries]!r:.100}"
        raise DatasetError(f"{path} holds a {held}, expected a state dict: tensors by name, or one as 'state_dict'")
    return dict(found[chosen])


def _is_state(found: Any) -> bool:
    pairs = found.items() if isinstance(found, Mapping) else ()
    return bool(pairs) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs)


def _is_plain(value: Tensor) -> bool:
    special = value.is_meta or value.is_quantized or value.is_complex() or value.layout != torch.strided
    return not special and bool(value.isfinite().all())


def without_prefix(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The weights of one network by its own names, without what wrappers have put before them, such as ``module.``.

    Args:
        state: tensors by name, of which those are taken that have the prefix of most of the network's.
        names: those of the network.
    """
    known = set(names)
    starts = ((key, at) for key in state for at in (0, *(dot.end() for dot in re.finditer(r"\.", key))))
    found = Counter(key[:at] for key, at in starts if key[at:] in known)
    prefix = max(found, key=lambda start: found[start], default="")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
