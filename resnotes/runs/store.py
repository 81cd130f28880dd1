"""The run store: a specification in, a finished run out; trained only if it is not there yet."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock

from resnotes import datasets, distributed, models, paths, provenance
from resnotes.datasets import Classification, Data
from resnotes.errors import ResnotesError, RunError, TrainingDiverged, UsageError
from resnotes.files import TEMPORARY, lock, write_atomic
from resnotes.models.pretrained import load_pretrained
from resnotes.runs import sweep
from resnotes.runs.folder import FORMAT, NO_WEIGHTS, Run, finish, histories, initial_network
from resnotes.runs.spec import RunSpec
from resnotes.runs.workers import Workers, local_workers
from resnotes.training.loop import save_weights, train

__all__ = ["Run", "RunStore", "check_same_data", "histories", "load_data"]

VISIBLE_SECONDS = 120.0  # NFS clients may go on for 60 s to believe that a file is not there


def load_data(spec: RunSpec) -> Data:
    """The data that `spec` trains on.

    Its normalization is that of the training images; for segmentation that of the whole set, of a subset as well.
    """
    data = datasets.load(spec.dataset, **spec.data)
    return data if spec.train_images is None else data.train_subset(spec.train_images)


def check_same_data(run: Run, data: Data) -> None:
    """Raise a `RunError` if the run was made on other data than this."""
    if run.fingerprint != data.fingerprint:
        raise RunError(
            f"run {run.folder} was made on {run.variant} ({run.fingerprint}), but the data at hand is"
            f" {data.variant} ({data.fingerprint}); set RESNOTES_RUNS to another folder, or delete the run"
        )


def _machine(device: str) -> str:
    """What computed, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return provenance.processor()


def _data_of(specs: Iterable[RunSpec]) -> Callable[[RunSpec], Data]:
    """What `load_data` gives for each; each data set is opened once, which takes longer than finding a run."""
    sources = {spec.source: spec for spec in specs}
    loaded = {source: load_data(spec) for source, spec in sources.items()}
    return lambda spec: loaded[spec.source]


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
            RunError: the store's run was made on other data than is at hand now, or is damaged, or the store may not
                be written to, or has no room.
            UsageError: what `resnotes.training.loop.train` raises.
            resnotes.errors.DatasetError: the data set, or the file of pretrained weights, is missing or damaged.
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
                    " that has room, on a file system with locks"
                ) from error
        run = self._at_hand(spec, data)
        assert run is not None
        check_same_data(run, data)
        return run

    def _at_hand(self, spec: RunSpec, data: Data) -> Run | None:
        """The finished run in the store, or else the recorded one, if that was made on this data."""
        if (run := self.find(spec)) is None:
            run = self.find(spec, recorded=True)
            if run is not None and (run.fingerprint != data.fingerprint or run.facts["weights"] == NO_WEIGHTS):
                return None
        return run

    def get_all(self, specs: Iterable[RunSpec], *, device: str = "auto", workers: int | None = None) -> list[Run]:
        """`get` for each of `specs`, in their order; a run that fails does not keep the others from being trained.

        Args:
            specs: what is asked for.
            device: where missing runs are trained.
            workers: train so many at once, in processes with one thread each: where images are small, two runs
                with a thread each finish sooner than one after the other with two. By default as many as
                PyTorch has threads here, and one, which is this process itself, on a GPU. Always one where
                processes train together (`resnotes.distributed`).

        Raises:
            ResnotesError: what `get` raises; where several runs failed, one error that names them all.
        """
        specs = list(specs)
        executor = local_workers(device, workers)
        return list(sweep.in_order(specs, self.sweep(specs, device=device, executor=executor)))

    def start(self, specs: Iterable[RunSpec], *, device: str = "auto", workers: int | None = None) -> Iterator[Run]:
        """`get_all` in the background: the runs in their order, each as soon as it is there.

        Other processes train them, also between one run taken and the next. In this one, training would draw from
        the random generator that everything else here draws from. Only where processes train together
        (`resnotes.distributed`), they do it themselves, each run when it is taken. Training ends when the iterator is
        closed.
        """
        specs = list(specs)
        executor = local_workers(device, workers) or (Workers(1) if distributed.size() == 1 else None)
        return sweep.in_order(specs, self.sweep(specs, device=device, executor=executor))

    def sweep(
        self, specs: Iterable[RunSpec], *, device: str = "auto", executor: Executor | None = None
    ) -> sweep.Outcomes:
        """`get` for each of `specs`: first those at hand, then each as soon as it is finished, or has failed.

        Args:
            specs: what is asked for.
            device: where missing runs are trained.
            executor: trains them from now on, in processes that share this store's folder and the data; shut down in
                the end, or when the iterator is closed. None for this process: each run when it is taken.
        """
        specs = list(specs)
        data_of = _data_of(specs)

        def get(spec: RunSpec) -> Run:
            return self._get(spec, data_of(spec), device)

        def trained(spec: RunSpec) -> Run:
            if spec.name not in training:
                return get(spec)
            run = self._awaited(spec)
            check_same_data(run, data_of(spec))
            return run

        if executor is None:
            return sweep.here(specs, get)
        missing = {spec.name: spec for spec in specs if self._at_hand(spec, data_of(spec)) is None}
        store = RunStore(self.root.absolute(), self.recorded.absolute())  # wherever the others work
        training = {
            name: executor.submit(store._train_here, spec, device, data_of(spec).fingerprint)
            for name, spec in missing.items()
        }
        return sweep.elsewhere(executor, specs, training, trained)

    def _train_here(self, spec: RunSpec, device: str, fingerprint: str) -> ResnotesError | None:
        """What `sweep` has other processes do. An error that another attempt would end in as well is returned."""
        try:
            data = load_data(spec)
            if data.fingerprint != fingerprint:
                raise RunError(
                    f"{paths.data_root()} on {platform.node()} holds {data.variant} ({data.fingerprint}), expected the"
                    f" data with fingerprint {fingerprint}; set RESNOTES_DATA to a folder that all machines share"
                )
            self._get(spec, data, device)
        except (TrainingDiverged, UsageError) as error:
            return error
        return None

    def _awaited(self, spec: RunSpec) -> Run:
        """A run that another process has finished: a network file system may show it somewhat later."""
        patience = time.monotonic() + VISIBLE_SECONDS
        while (run := self.find(spec)) is None:
            if time.monotonic() > patience:
                raise RunError(
                    f"{spec.name} was trained, but is not in {self.root}; do all machines share that folder?"
                )
            time.sleep(0.1)
        return run

    def _train(self, spec: RunSpec, data: Data, device: str) -> None:
        """Train under the run's lock; `run.json` last, so that a run is finished or visibly is not."""
        if spec.pretrained and isinstance(data, Classification):
            raise UsageError(
                f"{spec.model} cannot start from {spec.pretrained}: only encoders of segmentation networks are"
                " pretrained"
            )
        folder = self.root / spec.name
        first = distributed.rank() == 0
        if first:
            for leftover in folder.glob(TEMPORARY):  # of a process that was killed while it wrote
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
            finish(folder, facts)
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        distributed.agreed(True)  # the others wait until it is finished

    def _start(self, spec: RunSpec, data: Data, shape: Mapping[str, int], device: str) -> Any:
        if spec.start is None:
            return initial_network(spec, shape)
        if not isinstance(data, Classification):
            raise UsageError(f"{spec.model} cannot start from {spec.start.model}: only classifiers are deepened")
        shallow = self.get(spec.start, device=device).model()
        sample = data.train_subset(min(2000, len(data.train_images))).train_images
        return models.deepen(shallow, int(spec.model.rpartition("-")[2]), data.normalization(sample))

    def _locked(self, name: str) -> BaseFileLock:
        return lock(self.root / ".locks" / f"{name}.lock")
