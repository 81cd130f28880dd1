"""Residual networks as collections of paths, after Veit, Wilber and Belongie 2016 (arXiv 1605.06431).

`lesions`: delete or reorder the blocks of a trained network, whose weights are never touched. `gradients`: split the
gradient by the length of the paths that carry it, exactly or by random signs. Both take a network of stem, blocks and
head; `adapt` gives that shape to ResNets and transformers of others. `lengths`: what such a split says; `enumeration`:
all paths through a few units; `refinement`: the rival view, of blocks that refine one estimate.
"""

from resnotes.models.adapters import adapt
from resnotes.unravel.gradients import gradients_along, path_gradients, path_norms, unit_shares
from resnotes.unravel.lengths import (
    length_distribution,
    mean_length,
    over_training,
    path_shares,
    relative_lengths,
    share_of_lengths,
)
from resnotes.unravel.lesions import (
    Lesion,
    contiguous_deletions,
    deletable,
    exchangeable,
    kendall_tau,
    lesion_errors,
    lesion_logits,
    lesion_predictions,
    pairs,
    random_deletions,
    random_reorderings,
    single_deletions,
)
from resnotes.unravel.refinement import refinement
from resnotes.unravel.study import excess, length_study, lesion_study, pair_study, select, wrong

__all__ = [
    "Lesion",
    "adapt",
    "contiguous_deletions",
    "deletable",
    "excess",
    "exchangeable",
    "gradients_along",
    "kendall_tau",
    "length_distribution",
    "length_study",
    "lesion_errors",
    "lesion_logits",
    "lesion_predictions",
    "lesion_study",
    "mean_length",
    "over_training",
    "pair_study",
    "pairs",
    "path_gradients",
    "path_norms",
    "path_shares",
    "random_deletions",
    "random_reorderings",
    "refinement",
    "relative_lengths",
    "select",
    "share_of_lengths",
    "single_deletions",
    "unit_shares",
    "wrong",
]
