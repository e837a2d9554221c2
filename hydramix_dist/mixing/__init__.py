"""Mixing as pure functions on tensors: which images form a mix, and which of them each cell is taken from."""
