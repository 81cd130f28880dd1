"""The run store: a specification in, a finished run out; trained only if it is not there yet.

The way of a specification: `get_all` has a `sweep` of the store look what is at hand, and an executor, or this process,
get the others: `_trained` holds a run's lock, and `_train` makes its folder with `resnotes.training.loop.train`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import torch

from resnotes import datasets, distributed, models, paths, progress, provenance
from resnotes.datasets import Classification, Data
from resnotes.errors import ResnotesError, RunError
from resnotes.files import TEMPORARY, lock, write_atomic
from resnotes.models.pretrained import load_pretrained
from resnotes.runs.folder import FORMAT, NO_WEIGHTS, Run, finish, histories, initial_network, is_finished
from resnotes.runs.spec import RunSpec
from resnotes.runs.sweep import Outcomes, as_completed, in_order, outcome
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
        return Run(folder) if is_finished(folder) else None

    def find_all(self, specs: Iterable[RunSpec], *, recorded: bool = False) -> list[Run]:
        """The finished runs among `specs`, in their order."""
        return [run for spec in specs if (run := self.find(spec, recorded=recorded))]

    def finished(self, *, recorded: bool = False) -> list[Run]:
        """All finished runs, by name."""
        root = self.recorded if recorded else self.root
        return [Run(folder) for folder in sorted(root.glob("*")) if is_finished(folder)]

    def get(self, spec: RunSpec, *, device: str = "auto") -> Run:
        """The finished run of `spec`: from the store, from the recorded runs, or trained now.

        Of two processes that ask for the same run, one trains; the other waits, and loads.

        Raises:
            RunError: the store's run was made on other data than is at hand now, or is damaged, or the store may not
                be written to, or has no room; or a network was registered, and is not, or is another one now.
            UsageError: what `resnotes.training.loop.train` raises.
            resnotes.errors.DatasetError: the data set, or the file of pretrained weights, is missing or damaged.
            resnotes.errors.TrainingDiverged: the loss became NaN or infinite.
        """
        data = load_data(spec)
        return self._at_hand(spec, data) or self._trained(spec, data, device)

    def get_all(self, specs: Iterable[RunSpec], *, device: str = "auto", workers: int | None = None) -> list[Run]:
        """`get` for each of `specs`, in their order; a run that fails does not keep the others from being trained.

        Args:
            specs: what is asked for.
            device: where missing runs are trained.
            workers: train so many at once, in processes with one thread each: where images are small, two runs
                with a thread each finish sooner than one after the other with two. By default as many as
                PyTorch has threads here, and one on a GPU. Always one where processes train together
                (`resnotes.distributed`).

        Raises:
            ResnotesError: what `get` raises; where several runs failed, one error that names them all.
        """
        specs = list(specs)
        executor = local_workers(device, workers)
        return list(in_order(specs, self.sweep(specs, device=device, executor=executor)))

    def start(self, specs: Iterable[RunSpec], *, device: str = "auto", workers: int | None = None) -> Iterator[Run]:
        """`get_all` in the background: the runs in their order, each as soon as it is there.

        Other processes train them, also between one run taken and the next. In this one, training would draw from
        the random generator that everything else here draws from. Only where processes train together
        (`resnotes.distributed`), and of networks and data sets that were registered, which other processes do not
        know, they are trained here, each when it is taken. Training ends when the iterator is closed.
        """
        specs = list(specs)
        executor = local_workers(device, workers) or (Workers(workers or 1) if distributed.size() == 1 else None)
        return in_order(specs, self.sweep(specs, device=device, executor=executor))

    def sweep(self, specs: Iterable[RunSpec], *, device: str = "auto", executor: Executor | None = None) -> Outcomes:
        """`get` for each different one of `specs`: first those at hand, then each as it is finished, or has failed.

        Args:
            specs: what is asked for.
            device: where missing runs are trained.
            executor: trains them from now on, in processes that share this store's folder and the data; shut down in
                the end, or when the iterator is closed. None for this process: each run when it is taken, as are
                those of networks and data sets that were registered, which other processes do not know.
        """
        outcomes = self._sweep({spec.name: spec for spec in specs}, device, executor)
        next(outcomes)  # to its first `yield`: one that has not begun could be closed without ending the executor
        return outcomes

    def _sweep(self, asked: dict[str, RunSpec], device: str, executor: Executor | None) -> Generator[Any]:
        with executor or contextlib.nullcontext():
            sources = {spec.training_data: spec for spec in asked.values()}
            loaded = {source: load_data(spec) for source, spec in sources.items()}  # each once: that may take long
            data = {name: loaded[spec.training_data] for name, spec in asked.items()}
            found = {name: outcome(spec, self._at_hand, data[name]) for name, spec in asked.items()}
            missing = [asked[name] for name, each in found.items() if each is None]
            store = RunStore(self.root.absolute(), self.recorded.absolute())  # wherever others work
            training = {
                spec.name: executor.submit(store.get, spec, device=device)
                for spec in missing
                if executor and spec.source is None and datasets.registered(spec.dataset) is None
            }
            yield
            yield from filter(None, found.values())
            with progress.bar(total=len(missing), desc="runs", unit="run") as bar:
                for spec in (spec for spec in missing if spec.name not in training):
                    yield outcome(spec, self._trained, data[spec.name], device)
                    bar.update()
                for name in as_completed(training, bar):
                    yield outcome(asked[name], self._awaited, data[name], training[name])

    def _at_hand(self, spec: RunSpec, data: Data) -> Run | None:
        """The finished run in the store, or else the recorded one, if that was made on this data and has weights.

        Of processes that train together the first decides: another may come late enough to find a run finished.
        """
        run = self.find(spec)
        if run is None and (kept := self.find(spec, recorded=True)):
            usable = kept.fingerprint == data.fingerprint and kept.facts["weights"] != NO_WEIGHTS
            run = kept if usable else None
        if not distributed.agreed(run is not None):
            return None
        run = run or Run(self.root / spec.name)
        check_same_data(run, data)
        return run

    def _awaited(self, spec: RunSpec, data: Data, training: Future[Run]) -> Run:
        """A run that another process has finished: a network file system may show it somewhat later."""
        try:
            training.result()
        except ResnotesError:
            raise
        except CancelledError as gone:
            raise RunError("not trained, as the connection to the scheduler broke") from gone
        except Exception as unexpected:
            raise RunError(f"{type(unexpected).__name__}: {unexpected}") from unexpected
        patience = time.monotonic() + VISIBLE_SECONDS
        while (run := self._at_hand(spec, data)) is None:
            if time.monotonic() > patience:
                raise RunError(f"it was trained, but is not in {self.root}; do all machines share that folder?")
            time.sleep(0.1)
        return run

    def _trained(self, spec: RunSpec, data: Data, device: str) -> Run:
        """The run, trained under its lock, unless another process was faster."""
        try:
            # Of processes that train one run together, the first holds the lock, and writes.
            locked = lock(self.root / ".locks" / f"{spec.name}.lock") if distributed.rank() == 0 else None
            with locked or contextlib.nullcontext():
                if distributed.agreed(self.find(spec) is None):
                    self._train(spec, data, device)
        except OSError as error:
            if error.filename is not None and not Path(error.filename).is_relative_to(self.root):  # of a builder's
                raise RunError(f"{spec.name} cannot be trained: {error}") from error
            raise RunError(
                f"cannot write to the run store: {error}, in {self.root}; set RESNOTES_RUNS to a folder of yours"
                " that has room, on a file system with locks"
            ) from error
        run = Run(self.root / spec.name)
        check_same_data(run, data)
        return run

    def _train(self, spec: RunSpec, data: Data, device: str) -> None:
        """Make the run's folder; `run.json` last, so that a run is finished or visibly is not."""
        folder = self.root / spec.name
        first = distributed.rank() == 0
        shape = {"channels": data.in_channels, "classes": data.num_classes}
        network = self._deepened(spec, data, device) if spec.start else initial_network(spec, shape)
        pretrained = None if spec.pretrained is None else load_pretrained(network, spec.pretrained)
        if first:
            for leftover in folder.glob(TEMPORARY):  # of a process that was killed while it wrote
                leftover.unlink()
            write_atomic(folder / "spec.json", spec.to_json())
        training = train(network, data, spec.recipe, seed=spec.seed, device=device, folder=folder, label=spec.name)
        if first:
            save_weights(network, folder / "model.safetensors")
            on_gpu = training.device.startswith("cuda")
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
                "machine": torch.cuda.get_device_name(training.device) if on_gpu else provenance.processor(),
                "device": training.device,
                "processes": distributed.size(),
                "precision": training.precision,
                "threads": training.threads,
                "seconds": round(sum(row.seconds for row in training.history), 1),
                "resumed": training.resumed,
                "weights": "float32",
            }
            finish(folder, facts)
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        distributed.agreed(True)  # the others wait until it is finished

    def _deepened(self, spec: RunSpec, data: Data, device: str) -> models.Network:
        """The network of `spec.start`, trained, and deepened by identity blocks."""
        assert spec.start is not None
        shallow = self.get(spec.start, device=device).model()
        assert isinstance(data, Classification)  # or the shallow network could not have learned it
        sample = data.train_subset(min(2000, len(data.train_images))).train_images
        return models.deepen(shallow, int(spec.model.rpartition("-")[2]), data.normalization(sample))
