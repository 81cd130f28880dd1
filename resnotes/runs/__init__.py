"""Runs: a specification in, a finished run out; trained only if it is not there yet."""

from resnotes.runs.folder import Run, histories
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import RunStore, check_same_data, load_data
from resnotes.training.recipe import Recipe

__all__ = ["Recipe", "Run", "RunSpec", "RunStore", "check_same_data", "histories", "load_data"]
