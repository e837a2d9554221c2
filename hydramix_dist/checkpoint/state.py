"""The full state of one model and its optimizer, by parameter name, free of ranks and shards."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import safetensors.torch
from torch import Tensor

from hydramix_dist.errors import UserError


@dataclass(frozen=True)
class EngineState:
    """Weights and buffers by name (fp32, counters int64), optimizer moments by moment and name, and the step count."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    step: int = 0

    def files(self, name: str) -> dict[str, bytes]:
        """Return the two safetensors files of this state: `<name>.safetensors` and `<name>.optimizer.safetensors`."""
        moments = {f"{moment}/{key}": t for moment, tensors in self.moments.items() for key, t in tensors.items()}
        return {
            f"{name}.safetensors": _serialise(self.weights),
            f"{name}.optimizer.safetensors": _serialise(moments),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], name: str, step: int) -> "EngineState":
        """Return the state held by the two files of `name`."""
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in safetensors.torch.load(files[f"{name}.optimizer.safetensors"]).items():
            moment, parameter = key.split("/", 1)
            moments.setdefault(moment, {})[parameter] = tensor
        return cls(safetensors.torch.load(files[f"{name}.safetensors"]), moments, step)

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
        """Raise UserError where these weights are not those of a model with the given names and shapes."""
        own = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        for name in sorted(own.keys() | shapes.keys()):
            if own.get(name) != shapes.get(name):
                have, need = own.get(name, "none"), shapes.get(name, "none")
                raise UserError(
                    f"{what} belongs to another model: weight '{name}' has shape {have}, this model needs {need}"
                )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of weights as safetensors bytes, names sorted: the name of a trained model in records."""
    return hashlib.sha256(_serialise({name: weights[name] for name in sorted(weights)})).hexdigest()


def _serialise(tensors: Mapping[str, Tensor]) -> bytes:
    # safetensors refuses strided memory such as channels_last, and tensors on a GPU cost a copy anyway.
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
