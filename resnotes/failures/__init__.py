"""Failure cases of semantic segmentation, found and named by rule, after Zhao et al. 2017 (arXiv 1612.01105), Sec. 3.1.

`study`: all of it for predictions from anywhere. `mining`: failures and their kinds. `measures`: how many of each kind;
recall against size; whether the rules name the true cause. `removal`: which
class leans on which.
"""

from resnotes.failures.measures import Tables, clustered, counts, recall_by_size, study, validate
from resnotes.failures.mining import KINDS, confused_pairs, mine
from resnotes.failures.removal import COVERS, covered, leaning

__all__ = [
    "COVERS",
    "KINDS",
    "Tables",
    "clustered",
    "confused_pairs",
    "counts",
    "covered",
    "leaning",
    "mine",
    "recall_by_size",
    "study",
    "validate",
]
