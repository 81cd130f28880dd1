"""Residual networks, measured. Import the rooms you need: `from resnotes import datasets, models, runs`."""

__version__ = "0.1.0"
