"""Files that others made, or that something has damaged: only the documented errors come of them, and no code is run.

Examples are the same every time. `RESNOTES_FUZZ=5000` draws so many others for each test.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.cifar10 import Originals, Tree, as_tar, as_zip, decoded_folders, load, tree
from kit.pairs import labels, picture, save
from kit.runs import SPEC, TINY, finished

from resnotes.datasets import Classification, camvid
from resnotes.datasets.pairs import Pair, read
from resnotes.errors import DatasetError, RunError, UsageError
from resnotes.models import build
from resnotes.models.pretrained import load_pretrained
from resnotes.runs import profiles
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import Run, RunStore

__all__ = ["finished"]  # a fixture

ROOT = Path(profiles.__file__).parents[3]
MANY = int(os.environ.get("RESNOTES_FUZZ", "0"))


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=MANY or examples,
        derandomize=not MANY,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# Damage

NUMBERS = [b"-1", b"1e999", b"NaN", b"null", b"9" * 400, b"1.5", b'"', b"[[[[", b"{}", b"../../x", b"\0", b"\xff\xfe"]
changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "digit"]),
        st.integers(0, 2**20),
        st.one_of(st.integers(0, 255).map(lambda byte: bytes([byte])), st.sampled_from(NUMBERS)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(whole: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """`whole` after these changes, each somewhere in it."""
    content = bytearray(whole)
    for kind, where, some in changes:
        at = where % (len(content) + 1)
        match kind:
            case "flip" if content:
                content[at % len(content)] ^= 1 << some[0] % 8
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + 1 + some[0]]
            case "insert":
                content[at:at] = some
            case "repeat":
                content[at:at] = content[at : at + 40] * 3
            case "digit":  # in place of the next number
                digits = [i for i in range(at, min(at + 200, len(content))) if chr(content[i]).isdigit()]
                if digits:
                    content[digits[0] : digits[0] + 1] = some
    return bytes(content)


# Specifications and runs


def reads_as_a_specification_or_not(content: bytes | str) -> None:
    try:
        spec = RunSpec.from_json(content)
    except RunError as error:
        assert str(error).startswith("no run specification: ")
    else:
        assert RunSpec.from_json(spec.to_json()).name == spec.name
        assert (Path("store") / spec.name).parent == Path("store")


@fuzzed(400)
@given(changes)
def test_a_damaged_specification(changes: list[tuple[str, int, bytes]]) -> None:
    reads_as_a_specification_or_not(damaged(SPEC.to_json().encode(), changes))


@pytest.fixture
def forged(finished: Run, tmp_path: Path) -> Callable[[str, bytes], Run]:
    """A run in which a file was replaced by someone who knows of the checksums."""
    whole = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    folder = tmp_path / SPEC.name
    folder.mkdir()

    def forge(file: str, content: bytes) -> Run:
        facts = {**finished.facts, "files": {**finished.facts["files"], file: hashlib.sha256(content).hexdigest()}}
        for name, data in {**whole, "run.json": json.dumps(facts).encode(), file: content}.items():
            (folder / name).write_bytes(data)
        return Run(folder)

    return forge


def reads_as_a_run_or_not(run: Run) -> None:
    for reads in (
        lambda: run.spec,
        lambda: run.final.test_error,
        lambda: (run.variant, run.fingerprint),
        lambda: run.model(),
        lambda: run.model(1),
    ):
        try:
            reads()
        except RunError as error:
            assert str(run.folder) in str(error) or "no run specification" in str(error)


@pytest.mark.parametrize("file", ["spec.json", "history.csv", "run.json", "model.safetensors"])
@fuzzed(80)
@given(changes)
def test_a_forged_run(
    forged: Callable[[str, bytes], Run], finished: Run, file: str, changes: list[tuple[str, int, bytes]]
) -> None:
    whole = (finished.folder / file).read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little") if file.endswith("s") else len(whole)  # of safetensors, the header
    reads_as_a_run_or_not(forged(file, damaged(whole[:head], changes) + whole[head:]))


@pytest.mark.parametrize("file", ["spec.json", "run.json", "model.safetensors"])
@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"start":' * 100_000], ids=["lists", "objects"])
def test_what_is_nested_too_deeply(forged: Callable[[str, bytes], Run], file: str, nested: bytes) -> None:
    with pytest.raises(RunError, match="no run specification: maximum recursion"):
        RunSpec.from_json(nested)
    reads_as_a_run_or_not(forged(file, (len(nested).to_bytes(8, "little") if file.endswith("s") else b"") + nested))


# Profiles


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Loads a profile, which may fail in the way that is documented."""
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    path = tmp_path / "tiny.toml"

    def loads(content: bytes) -> None:
        path.write_bytes(content)
        try:
            specs = profiles.load("tiny").studies.values()
        except UsageError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            for study in specs:
                for spec in study.all_specs():
                    reads_as_a_specification_or_not(spec.to_json())

    return loads


QUICK = (ROOT / "resnotes" / "runs" / "profiles" / "quick.toml").read_bytes()


@fuzzed(100)
@given(changes)
def test_a_damaged_profile(profile: Callable[[bytes], None], changes: list[tuple[str, int, bytes]]) -> None:
    profile(damaged(QUICK, changes))


@pytest.mark.parametrize(
    "options", ["-" * 100_000 + "1", "1" + "+1" * 20_000, "(" * 300, "9" * 5000, "{[]}", "\\u0000"]
)
def test_a_profile_with_options_that_no_parser_likes(profile: Callable[[bytes], None], options: str) -> None:
    profile(TINY.replace("width=4", f"width={options}").encode())


# Weights of others


def small() -> Any:
    return build("pspnet-small", num_classes=3, head_width=2, width=2, depths=(1, 1))


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Loads weights from a file with this content, which may fail in the ways that are documented."""
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    (root / "weights").mkdir(exist_ok=True)
    network = small()

    def loads(content: bytes) -> None:
        (root / "weights" / "some.th").write_bytes(content)
        try:
            load_pretrained(network, "some.th")
        except (DatasetError, UsageError) as error:
            assert "\n" not in str(error)

    return loads


# What PyTorch remarks while it refuses them.
STRANGE_PICKLES = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol:UserWarning", "ignore:Defining your `__torch_function__`:UserWarning"
)


@STRANGE_PICKLES
@pytest.mark.parametrize("form", ["archive", "before 1.6"])
@fuzzed(150)
@given(changes)
def test_damaged_weights(published: Callable[[bytes], None], form: str, changes: list[tuple[str, int, bytes]]) -> None:
    encoder = small().encoder.state_dict()
    whole = saved(encoder, _use_new_zipfile_serialization=form != "before 1.6")
    published(damaged(whole, changes))


# Archives and images

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)


def loaded(root: Path, cache: Path) -> Classification | None:
    """What is read, which is forgotten then; None where that is refused."""
    try:
        data = load(root)
    except DatasetError as error:
        assert "\n" not in str(error)
        assert decoded_folders(cache) == []
        return None
    for folder in decoded_folders(cache):
        shutil.rmtree(cache / folder)
    return data


def outside(cache: Path) -> list[Path]:
    """All that is near the cache but not in it."""
    return sorted(path for path in cache.parent.rglob("*") if cache not in (path, *path.parents))


SMALL_TREE: Tree = tree("png", 1)


@pytest.mark.parametrize("packed", ["zip", "tar.gz"])
@fuzzed(100)
@given(st.lists(st.sampled_from(["..", ".", "", "train", "cat", "\\", "C:", "~", "é"]) | words))
def test_names_of_members_lead_nowhere(root: Path, cache: Path, packed: str, name: list[str]) -> None:
    before = outside(cache)
    path = root / f"cifar10.{packed}"
    files = SMALL_TREE | {"/".join([*name, "9.png"]): SMALL_TREE["train/cat/0000.png"]}
    if packed == "zip":
        as_zip(files, path)
    else:
        as_tar(files, path, "w:gz")
    data = loaded(root, cache)
    assert data is None or len(data.train_images) in (10, 11)
    path.unlink()
    assert outside(cache) == before


@pytest.mark.parametrize("packed", ["zip", "tar", "tar.xz"])
@fuzzed(60)
@given(changes)
def test_a_damaged_archive(root: Path, cache: Path, packed: str, changes: list[tuple[str, int, bytes]]) -> None:
    """Damage that went unnoticed left every class in its place."""
    path = root / f"cifar10.{packed}"
    if packed == "zip":
        as_zip(SMALL_TREE, path)
    else:
        as_tar(SMALL_TREE, path, "w:" + packed[4:])
    path.write_bytes(damaged(path.read_bytes(), changes))
    data = loaded(root, cache)
    assert data is None or len(data.train_images) == len(data.train_labels) >= 10


@fuzzed(60)
@given(changes)
def test_a_damaged_archive_of_the_original(
    root: Path, cache: Path, originals: Originals, changes: list[tuple[str, int, bytes]]
) -> None:
    """Each batch has a published checksum: what can be read is what was published."""
    path = as_tar(originals(), root / "cifar-10-python.tar.gz", "w:gz")
    path.write_bytes(damaged(path.read_bytes(), changes))
    data = loaded(root, cache)
    assert not data or data.train_labels.tolist() == [label for label in range(10) for _ in range(5)]


@pytest.mark.parametrize("kind", ["jpg", "png"])
@fuzzed(100)
@given(st.sampled_from([11, 150]), st.booleans(), changes)
def test_damaged_images_and_label_maps(
    tmp_path: Path, kind: str, highest: int, of_labels: bool, changes: list[tuple[str, int, bytes]]
) -> None:
    pair = Pair(tmp_path / f"image.{kind}", tmp_path / "labels.png")
    save(pair.image, picture(0))
    save(pair.annotation, labels(0, highest))
    victim = pair.annotation if of_labels else pair.image
    victim.write_bytes(damaged(victim.read_bytes(), changes))
    reads_as_a_pair_or_not(pair, highest)


def reads_as_a_pair_or_not(pair: Pair, highest: int) -> None:
    try:
        image, found = read(pair, highest, camvid.COLORS)
    except DatasetError as error:
        assert "\n" not in str(error)
        assert str(pair.image) in str(error) or str(pair.annotation) in str(error)
    else:
        assert (image.dtype, found.dtype, image.shape) == (np.uint8, np.uint8, (3, *found.shape))
        assert found.max() <= highest


# Code in files


class _Runs:
    """Something that leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def _weights(root: Path, content: bytes) -> None:
    (root / "weights").mkdir()
    (root / "weights" / "some.th").write_bytes(content)
    load_pretrained(small(), "some.th")


def _checkpoint(root: Path, content: bytes) -> None:
    folder = root / "runs" / SPEC.name
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(content + hashlib.sha256(content).digest())
    RunStore(root / "runs", root / "recorded").get(SPEC, device="cpu")


CODE: dict[str, Callable[[Any], bytes]] = {
    "a pickle": pickle.dumps,
    "torch.save": saved,
    "torch.save before 1.6": lambda value: saved(value, _use_new_zipfile_serialization=False),
}


@STRANGE_PICKLES
@pytest.mark.parametrize("form", CODE)
@pytest.mark.parametrize("reader", [_weights, _checkpoint])
def test_code_in_a_file_is_never_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, form: str, reader: Callable[[Path, bytes], None]
) -> None:
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    mark = root / "mark"
    content = CODE[form](_Runs(mark))
    with pytest.raises((RunError, DatasetError)):
        reader(root, content)
    assert not mark.exists()
    pickle.loads(CODE["a pickle"](_Runs(mark)))  # it is there to be run
    assert mark.exists()
