"""Measuring segmentation networks, after Zhao et al. 2017 (arXiv 1612.01105); the networks are in `resnotes.models`.

`scores`: mean IoU and pixel accuracy over a set. `prediction`: single scale, several scales, mirrored, sliding crop.
`receptive_fields`: how far a network could look, and how far it does. `augmentation`: of images with their labels.
"""

from resnotes.segmentation.augmentation import augment
from resnotes.segmentation.prediction import SCALES, predict, probabilities
from resnotes.segmentation.receptive_fields import (
    EffectiveField,
    ReceptiveField,
    effective_receptive_field,
    theoretical_receptive_field,
)
from resnotes.segmentation.scores import class_iou, confusion_matrix, mean_iou, pixel_accuracy

__all__ = [
    "SCALES",
    "EffectiveField",
    "ReceptiveField",
    "augment",
    "class_iou",
    "confusion_matrix",
    "effective_receptive_field",
    "mean_iou",
    "pixel_accuracy",
    "predict",
    "probabilities",
    "theoretical_receptive_field",
]
