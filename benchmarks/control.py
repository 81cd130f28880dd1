"""A refactoring changes nothing: two versions of the package train the same weights, bit by bit, at the same addresses.

    python -m benchmarks.control              # the working tree against the last commit
    python -m benchmarks.control v1.0         # against any other

200 iterations of ResNet-20, on CIFAR-10 if RESNOTES_DATA has it, else on digits; some minutes. Compared are the
weights, the history, the address of that run and those of all recorded runs. It ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Runs in the version that is asked, and uses what every version has.
_PROBE = """
import hashlib, json, sys, tempfile
from pathlib import Path
from resnotes.errors import DatasetError
from resnotes.runs import RunSpec, RunStore

recipe = {"iterations": int(sys.argv[1]), "schedule": "one-cycle", "precision": "float32"}
with tempfile.TemporaryDirectory() as folder:
    for name in ("cifar10", "digits"):
        what = {"model": "resnet-20", "dataset": name, "seed": 0, "recipe": recipe, "train_images": 1000}
        spec = RunSpec.from_json(json.dumps(what))
        try:
            run = RunStore(Path(folder)).get(spec, device="cpu")
        except DatasetError:
            continue
        break
    state = run.model().state_dict()
    digest = hashlib.sha256(b"".join(key.encode() + value.numpy().tobytes() for key, value in sorted(state.items())))
    history = run.history.drop(columns="seconds").to_csv()
addresses = {
    path.parent.name: RunSpec.from_json(path.read_text()).name for path in Path("data/recorded").glob("*/spec.json")
}
print(json.dumps({"data": name, "address": spec.name, "weights": digest.hexdigest(), "history": history,
                  "recorded": addresses}))
"""


def probe(tree: Path, iterations: int) -> dict[str, Any]:
    """What the package in `tree` makes of the control run, and the addresses that it gives to its recorded runs."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(iterations)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is not the same, one line each, and every recorded run that would not be found where it lies."""
    lines = [f"{name} differ" for name in ("data", "address", "weights", "history") if before[name] != after[name]]
    for folder, address in sorted(after["recorded"].items()):
        if address != folder:
            lines.append(f"the recorded run {folder} has the address {address}")
    return lines


def checkout(revision: str, folder: Path) -> Path:
    """The files of a commit, in a folder of their own."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """See the head of this module."""
    parser = argparse.ArgumentParser(description="Compare two versions of the package, bit by bit.")
    parser.add_argument("revision", nargs="?", default="HEAD", help="what the working tree is compared with")
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        before = probe(checkout(options.revision, Path(folder)), options.iterations)
    after = probe(ROOT, options.iterations)
    found = differences(before, after)
    what = f"{options.iterations} iterations of resnet-20 on {after['data']}, {len(after['recorded'])} recorded runs"
    print("\n".join(found) if found else f"the same, bit by bit: {what}; weights {after['weights'][:16]}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
