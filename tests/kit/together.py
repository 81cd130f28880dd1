"""`resnotes train` on a profile of its own; tests/test_together.py has torchrun start it in several processes.

    torchrun --nproc-per-node 2 tests/together.py FOLDER

What each process saw is left in FOLDER.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from resnotes import cli, datasets, files
from resnotes.datasets import Segmentation
from resnotes.datasets.segmentation import Stacked
from resnotes.runs import profiles, store, workers
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import RunStore
from resnotes.runs.sweep import Outcomes
from resnotes.training import checkpoint, loop
from resnotes.training.loop import Training

SMALL = """
[small]
dataset = "scenes"
data = { train = 8, test = 4 }
models = [
  "pspnet-small width=4 depths=(1,1) head_width=4 dropout=0.0",
  "fcn-small width=4 depths=(1,1) head_width=4 dropout=0.0",
]
seeds = [0, 1]
[small.recipe]
iterations = 4
batch_size = 8
precision = "float32"
snapshots = [3]
[small.recipes."pspnet-small width=4 depths=(1,1) head_width=4 dropout=0.0"]
frozen_bn = true
"""
AGAIN = SMALL.replace("[small", "[again").replace("[0, 1]", "[0]")

load = datasets.load


def unequal(name: str, root: Path | None = None, **options: Any) -> datasets.Data:
    """Scenes of which all but the first have two labelled rows."""
    data = load(name, root, **options)
    if not isinstance(data, Segmentation):
        return data
    for split in (data.train, data.test):
        assert isinstance(split, Stacked)
        split.labels[1:, 2:] = data.ignore_index
    return data


def specs(folder: Path) -> list[RunSpec]:
    """The runs of two studies, as `FOLDER/tiny.toml` has them: the second asks for some of the first again."""
    (folder / "tiny.toml").write_text(SMALL + AGAIN)
    profiles.FOLDER = folder
    profile = profiles.load("tiny")
    return [spec for study in profile.studies.values() for spec in study.all_specs()]


def main(folder: Path) -> None:
    rank = os.environ["RANK"]
    seen: dict[str, list[str]] = {"trained": [], "got": [], "written": []}
    train, sweep, write = store.train, RunStore.sweep, files.write_atomic

    def training_noted(network: Any, *arguments: Any, label: str, **options: Any) -> Training:
        seen["trained"].append(label)
        record = train(network, *arguments, label=label, **options)
        torch.save(network.state_dict(), folder / f"{label}-{rank}.pt")
        return record

    def swept_noted(store: RunStore, specs: list[RunSpec], **options: Any) -> Outcomes:
        RunStore.sweep = sweep
        started = list(store.start(specs[:1], device="cpu", workers=2))
        swept = list(store.sweep(specs, **options))
        got = store.get_all(specs, device="cpu", workers=2)
        seen["got"] = [run.name for run in [*started, *got]]
        return (outcome for outcome in swept)

    def writing_noted(path: Path, content: str | bytes) -> Path:
        seen["written"].append(path.name)
        return write(path, content)

    def refused(*_: Any) -> None:
        raise AssertionError("another process, where several train together")

    profiles.FOLDER = folder
    datasets.load = unequal
    loop.CHECKPOINT_SECONDS = 0
    store.train, RunStore.sweep, workers.ProcessPoolExecutor = training_noted, swept_noted, refused
    for module in (files, store, loop, checkpoint):
        module.write_atomic = writing_noted
    sys.argv = ["resnotes", "train", "--profile", "tiny", "--device", "cpu"]
    try:
        cli.main()
    finally:
        (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
