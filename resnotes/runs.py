"""The run store: a specification in, a finished run out; trained only if it is not there yet.

A run lives in a folder named by a readable slug and the hash of its specification:

    spec.json           what was asked for
    history.csv         one row per epoch, see `resnotes.training.Epoch`
    model.safetensors   weights after the last iteration
    epoch-NNNN.safetensors  weights after other epochs, where the recipe asks for snapshots
    run.json            data variant and fingerprint, versions, device, precision, threads, wall time, commit, and the
                        checksum of the pretrained weights that it started from
    checkpoint.pt       only while the run is unfinished

`run.json` is written last, so a folder without one is unfinished. It holds the checksums of the other files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as to_safetensors
from torch import Tensor
from tqdm import tqdm

from resnotes import datasets, distributed, models, paths, progress, provenance
from resnotes.datasets import Classification, Data
from resnotes.devices import resolve_device
from resnotes.errors import RunError, UsageError
from resnotes.files import write_atomic, write_json
from resnotes.pretrained import load_pretrained
from resnotes.specs import RunSpec
from resnotes.training import save_weights, scores_on_test, train

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
        """What `run.json` says: data, versions, device, precision, threads, wall seconds, commit, errors.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            facts = json.loads((self.folder / "run.json").read_bytes())
            if facts["format"] != FORMAT:
                raise RunError(f"{self.folder / 'run.json'}: format {facts['format']}, expected {FORMAT}")
            for key in ("channels", "classes"):
                if type(count := facts["dataset"][key]) is not int or not 0 < count < 2**15:
                    raise ValueError(f"{count!r} {key}")
            _ = facts["dataset"]["variant"], facts["dataset"]["fingerprint"]
            _ = facts["precision"], facts["weights"], facts["files"]["spec.json"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"run {self.folder} is damaged (run.json: {error!r}); delete the folder to redo it"
            ) from error
        return dict(facts)

    def _read(self, file: str) -> bytes:
        """The bytes of a file of the run, if they are those that were written."""
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
        spec = RunSpec.from_json(self._read("spec.json"))
        if spec.name != self.name:
            raise RunError(f"{self.folder} holds the run {spec.name}; give the folder that name back")
        return spec

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch; the columns are those of `resnotes.training.Epoch`.

        Raises:
            RunError: it is damaged.
        """
        content = self._read("history.csv")
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
    def fingerprint(self) -> str:
        """Fingerprint of the data that was read."""
        return str(self.facts["dataset"]["fingerprint"])

    def model(self, epoch: int | None = None) -> models.Network:
        """The network in eval mode, float32, on the CPU: final weights, or those after snapshot `epoch`.

        Epoch 0 gives the initial weights, drawn again from the seed, if that is where they came from.

        Raises:
            RunError: no such snapshot, or damaged weights.
        """
        file = "model.safetensors" if epoch is None else f"epoch-{epoch:04d}.safetensors"
        try:
            network = initial_network(self.spec, self.facts["dataset"])
            if epoch == 0 and self.spec.start is None and self.spec.pretrained is None:
                return network.eval()
            network.load_state_dict(load_tensors(self._read(file)))
        except (SafetensorError, RuntimeError, UsageError) as error:
            raise RunError(f"{self.folder / file} does not fit {self.spec.model}: {error}") from error
        return network.eval()


def histories(finished: Iterable[Run]) -> pd.DataFrame:
    """The histories of several runs below each other, with columns ``model``, ``seed`` and ``dataset`` (variant).

    ``model`` is the network with its options, see `RunSpec.label`.
    """
    frames = [run.history.assign(model=run.spec.label, seed=run.spec.seed, dataset=run.variant) for run in finished]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def load_data(spec: RunSpec) -> Data:
    """The data that `spec` trains on; its normalization is that of the training images."""
    data = datasets.load(spec.dataset, **spec.data)
    return data if spec.train_images is None else data.train_subset(spec.train_images)


def initial_network(spec: RunSpec, dataset: Mapping[str, Any]) -> models.Network:
    """Fresh weights, drawn from the seed alone; `dataset` holds ``channels`` and ``classes`` (counts)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(spec.seed)
        return models.build(spec.model, num_classes=dataset["classes"], in_channels=dataset["channels"], **spec.options)


def _check_same_data(run: Run, data: Data) -> None:
    if run.fingerprint != data.fingerprint:
        raise RunError(
            f"run {run.folder} was made on {run.variant} ({run.fingerprint}), but the data at hand is"
            f" {data.variant} ({data.fingerprint}); set RESNOTES_RUNS to another folder, or delete the run"
        )


def _finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `run.json` with the checksums of the files it names."""
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in sorted(facts["files"])}
    write_json(folder / "run.json", {**facts, "files": files})


def _machine(device: str) -> str:
    """What computed, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return provenance.processor()


def _default_workers(device: str) -> int:
    """How many runs are trained at once."""
    return torch.get_num_threads() if resolve_device(device).type == "cpu" else 1


def _data_of(specs: Iterable[RunSpec]) -> Callable[[RunSpec], Data]:
    """What `load_data` gives for each; each data set is opened once, which takes longer than finding a run."""
    sources = {spec.source: spec for spec in specs}
    loaded = {source: load_data(spec) for source, spec in sources.items()}
    return lambda spec: loaded[spec.source]


def _await(run: Future[Run], all_runs: Collection[Future[Run]], bar: tqdm[Any]) -> None:
    """Wait for a run that another process trains; `bar` tells meanwhile how many of all have finished."""
    try:
        while not run.done():
            bar.n = sum(each.done() for each in all_runs)
            bar.refresh()
            wait([run], timeout=0.2)
    finally:
        bar.clear()  # before whoever takes the run goes on: that may take long, and have a bar of its own
    run.result()


def _half_type(run: Run) -> torch.dtype:
    """bfloat16 if the run computed in it, since autocast rounds weights to it before each product anyway."""
    return torch.bfloat16 if run.facts["precision"] == "bfloat16" else torch.float16


def _halved(state: Mapping[str, Tensor], half: torch.dtype) -> dict[str, Tensor]:
    """A state dict with the weights of convolutions and linear layers, nearly all of it, in type `half`."""
    return {key: value.to(half) if value.ndim > 1 else value for key, value in state.items()}


def _half_is_harmless(run: Run, data: Data) -> bool:
    """Whether weights in half precision give the very test error, and mean IoU, that are on record."""
    network = run.model()
    network.load_state_dict(_halved(network.state_dict(), _half_type(run)))
    scores = scores_on_test(network, data, run.facts["precision"])
    pairs = [(scores.error, run.final["test_error"])]
    if scores.iou is not None:
        pairs.append((scores.iou, run.final["test_iou"]))
    return all(abs(halved - stored) < 0.005 for halved, stored in pairs)


class RunStore:
    """Finished runs in a folder, and recorded ones in a second, read-only folder.

    Args:
        root: the store; default `RESNOTES_RUNS`, else ``runs/``.
        recorded: the recorded runs; default ``data/recorded/``.
    """

    def __init__(self, root: Path | None = None, recorded: Path | None = None) -> None:
        self.root = root or paths.runs_root()
        self.recorded = recorded or paths.recorded_root()

    def find(self, spec: RunSpec, *, recorded: bool = False) -> Run | None:
        """The finished run of `spec` in the store (or among the recorded runs), whatever data it was made on."""
        folder = (self.recorded if recorded else self.root) / spec.name
        return Run(folder) if (folder / "run.json").exists() else None

    def find_all(self, specs: Iterable[RunSpec], *, recorded: bool = False) -> list[Run]:
        """The finished runs among `specs`, in their order."""
        return [run for spec in specs if (run := self.find(spec, recorded=recorded))]

    def finished(self, *, recorded: bool = False) -> list[Run]:
        """All finished runs, by name."""
        root = self.recorded if recorded else self.root
        return [Run(file.parent) for file in sorted(root.glob("*/run.json"))]

    def get(self, spec: RunSpec, *, device: str = "auto") -> Run:
        """The finished run of `spec`: from the store, from the recorded runs, or trained now.

        Of two processes that ask for the same run, one trains; the other waits, and loads.

        Raises:
            RunError: the store's run was made on other data than is at hand now.
            resnotes.errors.DatasetError: the data set is missing or damaged.
            resnotes.errors.TrainingDiverged: the loss became NaN or infinite.
        """
        return self._get(spec, load_data(spec), device)

    def _get(self, spec: RunSpec, data: Data, device: str) -> Run:
        # The first process decides also what is at hand: another may come late enough to find a run finished.
        if distributed.agreed(self._at_hand(spec, data) is None):
            try:
                # Of processes that train one run together, the first holds the lock, and writes.
                with contextlib.nullcontext() if distributed.rank() else self._locked(spec.name):
                    if distributed.agreed(self.find(spec) is None):
                        self._train(spec, data, device)
            except OSError as error:
                raise RunError(
                    f"cannot write to the run store: {error}, in {self.root}; set RESNOTES_RUNS to a folder of yours"
                    " that has room"
                ) from error
        run = self._at_hand(spec, data)
        assert run is not None
        _check_same_data(run, data)
        return run

    def _at_hand(self, spec: RunSpec, data: Data) -> Run | None:
        """The finished run in the store, or else the recorded one, if that was made on this data."""
        if (run := self.find(spec)) is None:
            run = self.find(spec, recorded=True)
            if run is not None and (run.fingerprint != data.fingerprint or run.facts["weights"] == NO_WEIGHTS):
                return None
        return run

    def get_all(self, specs: Iterable[RunSpec], *, device: str = "auto", workers: int | None = None) -> list[Run]:
        """`get` for each of `specs`, in their order.

        Args:
            specs: what is asked for.
            device: where missing runs are trained.
            workers: train so many at once, in processes with one thread each: where images are small, two runs
                with a thread each finish sooner than one after the other with two. By default as many as
                PyTorch has threads here, and one, which is this process itself, on a GPU. Always one where
                processes train together (`resnotes.distributed`).
        """
        specs = list(specs)
        if (workers or _default_workers(device)) > 1:
            return list(self.start(specs, device=device, workers=workers))
        data_of = _data_of(specs)
        return [self._get(spec, data_of(spec), device) for spec in progress.bar(specs, desc="runs", unit="run")]

    def start(self, specs: Iterable[RunSpec], *, device: str = "auto", workers: int | None = None) -> Iterator[Run]:
        """`get_all` in the background: the runs in their order, each as soon as it is there.

        Other processes train them, also between one run taken and the next. In this one, training would draw from
        the random generator that everything else here draws from. Only where processes train together
        (`resnotes.distributed`), they do it themselves, each run when it is taken.
        """
        specs = list(specs)
        data_of = _data_of(specs)
        missing = [spec for spec in specs if self._at_hand(spec, data_of(spec)) is None]
        processes: ProcessPoolExecutor | contextlib.nullcontext[None] = contextlib.nullcontext()
        training: dict[str, Future[Run]] = {}
        if missing and distributed.size() == 1:
            together = min(workers or _default_workers(device), len(missing))
            processes = ProcessPoolExecutor(together, get_context("spawn"), torch.set_num_threads, (1,))
            training = {spec.name: processes.submit(self.get, spec, device=device) for spec in missing}

        def finished() -> Iterator[Run]:
            with processes, progress.bar(total=len(training), desc="runs", unit="run") as bar:
                for spec in specs:
                    if spec.name in training:
                        _await(training[spec.name], training.values(), bar)
                    yield self._get(spec, data_of(spec), device)

        return finished()

    def record(self, run: Run, *, weights: bool = True) -> Run:
        """Copy a finished run to the recorded ones; weights in half precision if the test error stays the same.

        Args:
            run: a finished run.
            weights: False leaves them out, for studies that only need errors; `get` does not take such a run for
                one that is finished.

        Raises:
            RunError: the run is damaged, or its data is not what is at hand.
        """
        data = load_data(run.spec)
        _check_same_data(run, data)
        folder = self.recorded / run.name
        files = [file for file in run.facts["files"] if weights or not file.endswith(".safetensors")]
        harmless = weights and _half_is_harmless(run, data)
        for file in files:
            content = run._read(file)
            if file.endswith(".safetensors") and harmless:
                content = to_safetensors(_halved(load_tensors(content), _half_type(run)))
            write_atomic(folder / file, content)
        kind = str(_half_type(run)).removeprefix("torch.") if harmless else "float32" if weights else NO_WEIGHTS
        _finish(folder, {**run.facts, "files": files, "weights": kind})
        return Run(folder)

    def verify(self, run: Run) -> tuple[float, float | None]:
        """Stored and re-evaluated test error of a run, in percent; equal but for rounding on other processors.

        The second is None for a run that was recorded without weights; its other files are checked.

        Raises:
            RunError: the run is damaged, or its data is not what is at hand.
        """
        for file in run.facts["files"]:
            run._read(file)
        stored = float(run.final["test_error"])
        if run.facts["weights"] == NO_WEIGHTS:
            return stored, None
        data = load_data(run.spec)
        _check_same_data(run, data)
        return stored, scores_on_test(run.model(), data, run.facts["precision"]).error

    def _train(self, spec: RunSpec, data: Data, device: str) -> None:
        """Train under the run's lock; `run.json` last, so that a run is finished or visibly is not."""
        folder = self.root / spec.name
        first = distributed.rank() == 0
        if first:
            for leftover in folder.glob(".*"):  # of a process that was killed while it wrote
                leftover.unlink()
            write_atomic(folder / "spec.json", spec.to_json())
        shape = {"channels": data.in_channels, "classes": data.num_classes}
        network = self._start(spec, data, shape, device)
        pretrained = None if spec.pretrained is None else load_pretrained(network, spec.pretrained)
        training = train(network, data, spec.recipe, seed=spec.seed, device=device, folder=folder, label=spec.name)
        if first:
            save_weights(network, folder / "model.safetensors")
            facts = {
                "format": FORMAT,
                "dataset": {
                    "variant": data.variant,
                    "fingerprint": data.fingerprint,
                    "train_images": data.sizes[0],
                    "test_images": data.sizes[1],
                    **shape,
                },
                "pretrained": pretrained,
                "versions": provenance.versions(),
                "code": provenance.code_version(),
                "machine": _machine(training.device),
                "device": training.device,
                "processes": distributed.size(),
                "precision": training.precision,
                "threads": training.threads,
                "seconds": round(sum(row.seconds for row in training.history), 1),
                "resumed": training.resumed,
                "weights": "float32",
                "files": [file.name for file in folder.iterdir() if file.suffix in {".json", ".csv", ".safetensors"}],
            }
            _finish(folder, facts)
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        distributed.agreed(True)  # the others wait until it is finished

    def _start(self, spec: RunSpec, data: Data, shape: Mapping[str, int], device: str) -> models.Network:
        if spec.start is None:
            return initial_network(spec, shape)
        shallow = self.get(spec.start, device=device).model()
        depth = int(spec.model.rpartition("-")[2])
        if not isinstance(data, Classification):
            raise UsageError(f"{spec.model} cannot start from {spec.start.model}: only classifiers are deepened")
        sample = data.train_subset(min(2000, len(data.train_images))).train_images
        network = models.deepen(shallow, depth, data.normalization(sample))
        if network.name != spec.model:
            raise UsageError(f"{spec.start.model} deepened to {depth} layers is {network.name}, not {spec.model}")
        return network

    def _locked(self, name: str) -> FileLock:
        (self.root / ".locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".locks" / f"{name}.lock")
