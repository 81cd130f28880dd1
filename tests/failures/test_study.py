"""Failures of predictions from anywhere: maps by hand, of several sizes, of every kind of array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnotes.errors import UsageError
from resnotes.failures import KINDS, study

CLASSES = ("water", "boat", "car", "road")
WATER, BOAT, CAR, ROAD = range(4)


def scene(ground: int, vehicle: int, height: int = 20, width: int = 24) -> NDArray[Any]:
    """A vehicle of 8 x 10 pixels on its ground."""
    label = np.full((height, width), ground)
    label[5:13, 6:16] = vehicle
    return label


TRAINING = [scene(WATER, BOAT), scene(ROAD, CAR, 30, 30)] * 20  # no car is ever on the water


def test_a_car_on_the_water_is_a_mismatched_relationship() -> None:
    labels = [scene(WATER, BOAT), scene(ROAD, CAR, 16, 40), scene(WATER, BOAT, 40, 20)]
    predictions = [scene(WATER, CAR), scene(ROAD, CAR, 16, 40), scene(WATER, BOAT, 40, 20)]
    predictions[2][5:13, 6] = WATER  # an outline that is off by one
    found = study(predictions, labels, CLASSES, TRAINING)
    described = found.failures[["kind", "image", "labelled", "predicted", "pixels", "top", "left"]]
    assert described.values.tolist() == [
        ["relationship", 0, "boat", "car", 80, 5, 6],
        ["boundary", 2, "boat", "water", 8, 5, 6],
    ]
    assert list(found.counts) == ["image", "kind", "pixels", "objects"]
    assert len(found.counts) == 3 * len(KINDS)
    there = found.counts[found.counts.pixels > 0]
    assert there.values.tolist() == [[0, "relationship", 80, 1], [2, "boundary", 8, 1]]


def test_large_objects_in_pieces_are_beyond_the_field() -> None:
    label = np.full((60, 60), WATER)
    label[5:55, 5:55] = BOAT
    prediction = label.copy()
    prediction[20:40, 5:55] = WATER
    kinds = [study([prediction], [label], CLASSES, TRAINING, field).failures.kind.item() for field in (49, 64)]
    assert kinds == ["inconspicuous", "other"]


def as_tensors(maps: list[NDArray[Any]]) -> Any:
    return [torch.from_numpy(each.astype(np.uint8)) for each in maps]


def as_lists(maps: list[NDArray[Any]]) -> Any:
    return [each.tolist() for each in maps]


def as_sixteen_bits_of_any_machine(maps: list[NDArray[Any]]) -> Any:
    return [torch.from_numpy(maps[0].astype(np.uint16)), *(each.astype(">u2") for each in maps[1:])]


def as_flipped_views(maps: list[NDArray[Any]]) -> Any:
    return (each[::-1].copy()[::-1] for each in maps)


@st.composite
def drawn_maps(draw: st.DrawFn) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Labels in blocks of 3 x 3 pixels, some ignored, and predictions that are wrong here and there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    labels, predictions = [], []
    for _ in range(draw(st.integers(1, 4))):
        label = np.kron(rng.integers(0, 4, rng.integers(1, 7, 2)), np.ones((3, 3), np.int64))
        predictions.append(np.where(rng.random(label.shape) < 0.3, rng.integers(0, 4, label.shape), label))
        labels.append(np.where(rng.random(label.shape) < 0.1, 255, label))
    return predictions, labels


@settings(max_examples=25, deadline=None)
@given(drawn_maps(), st.sampled_from([as_tensors, as_lists, as_sixteen_bits_of_any_machine, as_flipped_views]))
def test_maps_of_every_kind_give_the_same(
    maps: tuple[list[NDArray[Any]], list[NDArray[Any]]], given_as: Callable[[list[NDArray[Any]]], Any]
) -> None:
    predictions, labels = maps
    expected = study(predictions, labels, CLASSES, TRAINING, 5, stride=2)
    found = study(given_as(predictions), given_as(labels), list(CLASSES), given_as(TRAINING), 5, stride=2)
    for ours, theirs in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    wrong = sum(int(((p != y) & (y != 255)).sum()) for p, y in zip(predictions, labels, strict=True))
    assert expected.failures.pixels.sum() == expected.counts.pixels.sum() == wrong


FINE = scene(WATER, BOAT)


@pytest.mark.parametrize(
    ("predictions", "labels", "training", "message"),
    [
        ([FINE], [FINE, FINE], TRAINING, "one map of predictions for each of labels, found 1 and 2 maps"),
        ([FINE.T], [FINE], TRAINING, r"of one shape, found \[24, 20\] and \[20, 24\] in image 0"),
        (FINE, FINE, TRAINING, r"expected predictions \[H, W\] of each image, not empty; found \[24\]"),
        ([FINE], [FINE[:0]], TRAINING, r"expected labels .* not empty; found \[0, 24\]"),
        ([FINE / 2], [FINE], TRAINING, "expected predictions of an integer type, found torch.float64"),
        ([FINE], [FINE == 1], TRAINING, "expected labels of an integer type, found torch.bool"),
        ([[[1, 2], [3]]], [FINE], TRAINING, "expected predictions as an array of numbers, found a list"),
        ([FINE + 3], [FINE], TRAINING, "expected predictions of 0 to 3; found 3 to 4"),
        ([FINE], [FINE - 1], TRAINING, "expected labels of 0 to 3, or 255; found -1 to 0"),
        ([FINE], [FINE], [FINE + 3], "expected training_labels of 0 to 3, or 255; found 3 to 4"),
        ([FINE], [FINE], [], "at least one map of training_labels, found none"),
    ],
)
def test_what_does_not_fit_is_refused(predictions: Any, labels: Any, training: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        study(predictions, labels, CLASSES, training)
