"""A finished run on disk: a folder named by a readable slug and the hash of its specification.

    spec.json           what was asked for
    history.csv         one row per epoch, see `resnotes.training.loop.Epoch`
    model.safetensors   weights after the last iteration
    iteration-NNNNNN.safetensors  weights after other iterations, where the recipe asks for snapshots
    run.json            data variant and fingerprint, versions, device, precision, threads, wall time, commit, and the
                        checksum of the pretrained weights that it started from
    checkpoint.pt       only while the run is unfinished

`run.json` is written last, so a folder without one is unfinished. It holds the checksums of the other files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from resnotes import models
from resnotes.errors import RunError, UsageError
from resnotes.files import write_json
from resnotes.runs.spec import RunSpec
from resnotes.training.loop import snapshot_name

FORMAT = 1  # of the run folder
NO_WEIGHTS = "none"  # what run.json says of a run that was recorded without them


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says: data, versions, device, precision, threads, wall seconds, commit.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            facts: dict[str, Any] = json.loads((self.folder / "run.json").read_bytes())
            dataset, files = facts["dataset"], facts["files"]
            counts = [dataset["channels"], dataset["classes"]]
            complete = {"precision", "weights"} <= set(facts) and {"variant", "fingerprint"} <= set(dataset)
            if facts["format"] != FORMAT or "spec.json" not in files or not complete:
                raise ValueError(f"format {facts['format']}, expected {FORMAT} with all its entries")
            if not all(type(count) is int and 0 < count < 2**15 for count in counts):
                raise ValueError(f"channels and classes {counts}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"run {self.folder} is damaged (run.json: {error!r}); delete the folder to redo it"
            ) from error
        return facts

    def read(self, file: str) -> bytes:
        """The bytes of a file of the run.

        Raises:
            RunError: there is no such file, or it is not what was written.
        """
        if file not in self.facts["files"]:
            raise RunError(f"run {self.folder} has no {file}; it has {', '.join(self.facts['files'])}")
        try:
            content = (self.folder / file).read_bytes()
        except OSError as error:
            raise RunError(f"run {self.folder} lacks {file}; delete the folder to redo it") from error
        if hashlib.sha256(content).hexdigest() != self.facts["files"][file]:
            raise RunError(f"{self.folder / file} is not what the run wrote; delete the folder to redo it")
        return content

    @cached_property
    def spec(self) -> RunSpec:
        """What was asked for.

        Raises:
            RunError: it is damaged, or the folder is named as another run's.
        """
        spec = RunSpec.from_json(self.read("spec.json"))
        if spec.name != self.name:
            raise RunError(f"{self.folder} holds the run {spec.name}; give the folder that name back")
        return spec

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch; the columns are those of `resnotes.training.loop.Epoch`.

        Raises:
            RunError: it is damaged.
        """
        content = self.read("history.csv")
        try:
            history = pd.read_csv(io.BytesIO(content))
            _ = history[["clean_error", "test_error"]].astype(float).iloc[-1]
        except (ValueError, LookupError) as error:
            raise RunError(
                f"{self.folder / 'history.csv'} is no history ({error}); delete the folder to redo it"
            ) from error
        return history

    @property
    def final(self) -> pd.Series[Any]:
        """The last row of the history: the run's result."""
        return self.history.iloc[-1]

    @property
    def variant(self) -> str:
        """The data that was read, such as ``cifar10-jpeg``."""
        return str(self.facts["dataset"]["variant"])

    @property
    def held(self) -> str:
        """What its test images are: ``held-out``, where they were cut out of the training images, or ``test``."""
        return "held-out" if self.spec.data.get("holdout") else "test"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data that was read."""
        return str(self.facts["dataset"]["fingerprint"])

    @property
    def moments(self) -> tuple[int, ...]:
        """The iterations after which there are weights, to the last; of a recorded run 0 and this one.

        Without 0 where the weights at the start came from elsewhere.
        """
        kept = [i for i in self.spec.recipe.snapshots if snapshot_name(i) in self.facts["files"]]
        drawn = [] if self.spec.start or self.spec.pretrained else [0]
        return tuple(dict.fromkeys((*drawn, *kept, self.spec.recipe.iterations)))

    def model(self, iteration: int | None = None) -> Any:
        """The network in eval mode, float32, on the CPU: final weights, or those after another of its `moments`.

        Iteration 0 gives the initial weights, drawn again from the seed, if that is where they came from.

        Raises:
            RunError: no such snapshot, or damaged weights.
        """
        final = iteration in (None, self.spec.recipe.iterations)
        file = "model.safetensors" if final else snapshot_name(iteration or 0)
        try:
            network = initial_network(self.spec, self.facts["dataset"])
            if iteration == 0 and self.spec.start is None and self.spec.pretrained is None:
                return network.eval()
            network.load_state_dict(load_tensors(self.read(file)))
        except (SafetensorError, RuntimeError, UsageError) as error:
            raise RunError(f"{self.folder / file} does not fit {self.spec.model}: {error}") from error
        return network.eval()


def histories(finished: Iterable[Run]) -> pd.DataFrame:
    """The histories of several runs below each other, with columns ``model``, ``seed`` and ``dataset`` (variant).

    ``model`` is the network with its options, see `RunSpec.label`.
    """
    frames = [run.history.assign(model=run.spec.label, seed=run.spec.seed, dataset=run.variant) for run in finished]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def initial_network(spec: RunSpec, dataset: Mapping[str, Any]) -> Any:
    """Fresh weights, drawn from the seed alone; `dataset` holds ``channels`` and ``classes`` (counts).

    Raises:
        RunError: the network was registered when the run was asked for, and now is not, or is another one.
        UsageError: what `resnotes.models.build` raises.
    """
    if (source := models.source(spec.model)) != spec.source:
        what = "is not registered here" if source is None else f"is registered with another source ({source}) here"
        raise RunError(
            f"{spec.name}: its network {spec.model} {what}; register the builder with source {spec.source} by"
            f" models.register({spec.model!r}, build)"
        )
    counts = {"num_classes": dataset["classes"], "in_channels": dataset["channels"]}
    return models.fresh(spec.model, spec.seed, **counts, **spec.options)


def is_finished(folder: Path) -> bool:
    """Whether a run is finished: `run.json` is written last."""
    return (folder / "run.json").exists()


def finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `run.json`: facts, and the checksums of the folder's other files, of which the checkpoint will go."""
    names = {"spec.json", "history.csv", *(path.name for path in folder.glob("*.safetensors"))}
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)}
    write_json(folder / "run.json", {**facts, "files": files})
