"""Mean IoU and pixel accuracy over a set of images, from one confusion matrix.

Matrices of several batches or images are added up; the scores of a set are those of the sum, and not the mean of the
images' scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resnotes.analysis.maps import as_classes, check_classes
from resnotes.errors import UsageError
from resnotes.models.segmentation import IGNORED


def confusion_matrix(predictions: Any, labels: Any, num_classes: int, *, ignore_index: int = IGNORED) -> Tensor:
    """How many pixels of each class were predicted as which.

    Args:
        predictions: integers 0 to ``num_classes - 1``, of any shape: a tensor, an array or lists.
        labels: the same, of the same shape, or `ignore_index`.
        num_classes: number of classes.
        ignore_index: label of pixels that do not count.

    Returns:
        int64 ``[num_classes, num_classes]``; a row for each label, a column for each prediction.

    Raises:
        UsageError: shapes that differ, another type, or values outside the range.
    """
    predictions, labels = as_classes(predictions, "predictions"), as_classes(labels, "labels")
    if predictions.shape != labels.shape:
        raise UsageError(
            f"predictions and labels must have one shape, found {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    check_classes(labels, "labels", num_classes, ignore_index)
    counted = labels != ignore_index
    rows, columns = labels[counted], predictions[counted]
    check_classes(columns, "predictions", num_classes)
    return torch.bincount(rows * num_classes + columns, minlength=num_classes**2).view(num_classes, num_classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, float64 ``[C]``; NaN for a class that is neither labelled nor predicted.

    Args:
        confusion: int64 ``[C, C]``, as `confusion_matrix` has it.
    """
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return intersection.double() / union  # 0 / 0 is NaN


def mean_iou(confusion: Tensor) -> float:
    """Mean over the classes of `class_iou`, without those that are NaN; NaN if no pixel was counted.

    A class that is only predicted counts, with 0.
    """
    return float(class_iou(confusion).nanmean())


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of the counted pixels that were predicted right; NaN if there is none."""
    return float(confusion.diagonal().sum().double() / confusion.sum())
