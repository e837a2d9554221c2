"""The safetensors layout, written tensor by tensor: a length, a JSON header, the tensors' bytes.

safetensors' own writer into memory holds Python's lock and two more copies of all tensors for as long as it takes
(1.3 s for 512 MB), which a training in the same process feels. The bytes here are the same to the last one.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

# In the order in which the layout has the types; within a type, tensors go by name.
_TYPES = {torch.int64: "I64", torch.float32: "F32"}


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """Return the file's bytes piece by piece, without a copy of more than one tensor.

    Tensors are fp32 or int64, on any device, in any memory order. Equal tensors and metadata give equal bytes.
    Raises KeyError for another type.
    """
    types = list(_TYPES.values())
    ordered = sorted(tensors.items(), key=lambda item: (types.index(_TYPES[item[1].dtype]), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        # NumPy copies strided memory with one thread; torch would start a second team of threads beside the training's.
        yield np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1).view(np.uint8).data


def count_values(data: bytes) -> int:
    """Return how many numbers the tensors of a whole file hold in all."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return sum(prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__")
