"""Learned mixing of a few labelled images per class: training, fair comparison, report."""

__version__ = "0.1.0"
