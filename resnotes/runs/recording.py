"""Finished runs that are kept: copied to the recorded ones, small, and evaluated again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from resnotes.datasets import Data
from resnotes.files import write_atomic
from resnotes.runs.folder import NO_WEIGHTS, Run, finish
from resnotes.runs.store import check_same_data, load_data
from resnotes.training.loop import scores_on_test


def record(run: Run, root: Path, *, weights: bool = True) -> Run:
    """Copy a finished run to the recorded ones; weights in half precision if the test error stays the same.

    Snapshots stay behind: they are many, and what is recorded is kept small. `Run.moments` says which a run has.

    Args:
        run: a finished run.
        root: of the recorded runs, `RunStore.recorded`.
        weights: False leaves them out, for studies that only need errors; `RunStore.get` does not take such a run for
            one that is finished.

    Raises:
        RunError: the run is damaged, or its data is not what is at hand.
    """
    data = load_data(run.spec)
    check_same_data(run, data)
    half = _half_type(run, data) if weights else None
    kind = NO_WEIGHTS if not weights else "float32" if half is None else str(half).removeprefix("torch.")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{run.name}.") as scratch:
        folder = Path(scratch) / run.name
        for file in ["spec.json", "history.csv", *(["model.safetensors"] if weights else [])]:
            content = run.read(file)
            if file == "model.safetensors" and half:
                content = to_safetensors(_halved(load_tensors(content), half))
            write_atomic(folder / file, content)
        finish(folder, {**run.facts, "weights": kind})
        if (root / run.name).exists():  # recorded before: nothing of that is left, such as weights
            shutil.rmtree(root / run.name)
        folder.replace(root / run.name)
    return Run(root / run.name)


def verify(run: Run) -> tuple[float, float | None]:
    """Stored and re-evaluated test error of a run, in percent; equal but for rounding on other processors.

    The second is None for a run that was recorded without weights; its other files are checked.

    Raises:
        RunError: the run is damaged, or its data is not what is at hand.
    """
    for file in run.facts["files"]:
        run.read(file)
    stored = float(run.final["test_error"])
    if run.facts["weights"] == NO_WEIGHTS:
        return stored, None
    data = load_data(run.spec)
    check_same_data(run, data)
    return stored, scores_on_test(run.model(), data, run.facts["precision"]).error


def _half_type(run: Run, data: Data) -> torch.dtype | None:
    """In what half precision the weights give the very test error, and mean IoU, that are on record; None if in none.

    bfloat16 if the run computed in it, since autocast rounds weights to it before each product anyway.
    """
    half = torch.bfloat16 if run.facts["precision"] == "bfloat16" else torch.float16
    network = run.model()
    network.load_state_dict(_halved(network.state_dict(), half))
    scores = scores_on_test(network, data, run.facts["precision"])
    changes = [scores.error - run.final["test_error"]]
    if scores.iou is not None:
        changes.append(scores.iou - run.final["test_iou"])
    return half if all(abs(change) < 0.005 for change in changes) else None


def _halved(state: Mapping[str, Tensor], half: torch.dtype) -> dict[str, Tensor]:
    """A state dict with the weights of convolutions and linear layers, nearly all of it, in type `half`."""
    return {key: value.to(half) if value.ndim > 1 else value for key, value in state.items()}
