"""The full state of one model and its optimizer, by parameter name, free of ranks and shards."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hydramix_dist.checkpoint.layout import pieces
from hydramix_dist.errors import UserError


@dataclass(frozen=True)
class EngineState:
    """Weights and buffers by name (fp32, counters int64), optimizer moments by moment and name, and the step count."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    step: int = 0

    def files(self, name: str) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors of this state's two files: `<name>.safetensors` and `<name>.optimizer.safetensors`."""
        moments = {f"{moment}/{key}": t for moment, tensors in self.moments.items() for key, t in tensors.items()}
        return dict(zip(file_names(name), (self.weights, moments), strict=True))

    @classmethod
    def from_files(cls, files: Mapping[str, Mapping[str, Tensor]], name: str, step: int) -> "EngineState":
        """Return the state whose two files hold these tensors, names sorted; without the optimizer's file no moments.

        safetensors gives them in another order in each process, and processes must gather them in the same one.
        """
        of_weights, of_moments = file_names(name)
        weights, flat = dict(sorted(files[of_weights].items())), dict(sorted(files.get(of_moments, {}).items()))
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            moment, parameter = key.split("/", 1)
            moments.setdefault(moment, {})[parameter] = tensor
        return cls(weights, moments, step)

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
        """Raise UserError where these weights are not those of a model with the given names and shapes."""
        own = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        for name in sorted(own.keys() | shapes.keys()):
            if own.get(name) != shapes.get(name):
                have, need = own.get(name, "none"), shapes.get(name, "none")
                raise UserError(
                    f"{what} belongs to another model: weight '{name}' has shape {have}, this model needs {need}"
                )


def file_names(engine: str) -> tuple[str, str]:
    """Return the names of an engine's two files: weights and buffers, and the optimizer's moments."""
    return f"{engine}.safetensors", f"{engine}.optimizer.safetensors"


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of weights as safetensors bytes: the name of a trained model in records."""
    sha256 = hashlib.sha256()
    for piece in pieces(weights):
        sha256.update(piece)
    return sha256.hexdigest()
