"""Training state without topology, written complete or not at all, verified when read."""

from hydramix_dist.checkpoint.commit import Checkpoint, load, load_newest, save
from hydramix_dist.checkpoint.state import EngineState, weights_digest

__all__ = ["Checkpoint", "EngineState", "load", "load_newest", "save", "weights_digest"]
