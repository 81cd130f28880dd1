"""What tests of models share."""

from kit.weights import state as state
from kit.weights import weights as weights
