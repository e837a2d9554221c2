"""Where one mixed image came from, as a JSON-ready record from which the same image is made again, to the byte.

Images are rendered one at a time, in fp32 on the CPU: a batch's size, or bf16, would change the last bits.

Legend: K images in a mix, C channels, H W pixels, h w feature cells.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hydramix_dist.data.augment import Views
from hydramix_dist.data.augmenter import Draws
from hydramix_dist.data.trivial_augment import TrivialDraws
from hydramix_dist.errors import UserError
from hydramix_dist.mixing.compose import Composition
from hydramix_dist.mixing.masks import Regions, masks_from_regions
from hydramix_dist.models.generator import mix_features
from hydramix_dist.models.pixels import to_float, to_uint8
from hydramix_dist.models.trained import TrainedGenerator

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Rendered:
    """A mix with what it was made of: sources [K, 3, H, W] and mix [3, H, W] (uint8), mask [K, h, w] in [0, 1]."""

    sources_KCHW: Tensor
    mask_Khw: Tensor
    mix_CHW: Tensor


def make_record(
    composition: Composition, index: int, ids: Sequence[str], generator: TrainedGenerator
) -> dict[str, Any]:
    """Return the record of mix `index` of a composition drawn from a shot set with these `ids`."""
    sources_K = composition.sources_BK[index].cpu()
    draws, map_HW = composition.draws.at(sources_K), composition.regions.map_BHW[index]
    views, trivial, weights_BLK = draws.views, draws.trivial, composition.regions.weights_BLK
    return {
        "schema_version": SCHEMA_VERSION,
        "generator_sha256": generator.weights_sha256,
        "sources": [ids[row] for row in composition.rows_N[sources_K].tolist()],
        "views": _rows(views.oy, views.ox, views.flip),
        "trivial": None if trivial is None else _rows(trivial.operation, trivial.level, trivial.negative),
        "layout": int(composition.layout_B[index]),
        "mask": _png(map_HW),
        "weights": None if weights_BLK is None else weights_BLK[index, : int(map_HW.max()) + 1].tolist(),
    }


def render(record: Mapping[str, Any], generator: TrainedGenerator, images: Mapping[str, Tensor]) -> Rendered:
    """Return the mix of a record, from the unaugmented images [3, H, W] (uint8) of its source ids.

    Raises UserError where the record is of a newer version, the generator is not the recorded one, or a source image is
    not given.
    """
    if record["schema_version"] > SCHEMA_VERSION:
        raise UserError(
            f"the record has schema {record['schema_version']}, this one reads up to {SCHEMA_VERSION}; update it"
        )
    if record["generator_sha256"] != generator.weights_sha256:
        raise UserError(
            f"the record was made by generator {record['generator_sha256'][:12]}, this one is "
            f"{generator.weights_sha256[:12]}; the image cannot be made again without the recorded weights"
        )
    missing = [source for source in record["sources"] if source not in images]
    if missing:
        raise UserError(f"source image '{missing[0]}' of the record is not in the data set")
    oy, ox, flip = (torch.tensor(column) for column in zip(*record["views"], strict=True))
    trivial = None
    if record["trivial"] is not None:
        trivial = TrivialDraws(*(torch.tensor(column) for column in zip(*record["trivial"], strict=True)))
    draws = Draws(Views(oy, ox, flip), trivial)
    images_KCHW = draws.apply(torch.stack([images[source] for source in record["sources"]]))
    mix = generator.settings.mix.model_copy(update={"count": len(record["sources"])})
    weights = record.get("weights")  # absent before masks had shares
    regions = Regions(_from_png(record["mask"])[None], None if weights is None else torch.tensor(weights)[None])
    mask_1Khw = masks_from_regions(regions, mix, generator.network.feature_side)
    with torch.no_grad():
        f_KDhw = generator.network.encode(to_float(images_KCHW))
        mixed_1CHW = generator.network.decode(mix_features(f_KDhw[None], mask_1Khw))
    return Rendered(images_KCHW, mask_1Khw[0], to_uint8(mixed_1CHW)[0])


def image_sha256(image_CHW: Tensor) -> str:
    """Return the sha256 (hex) of an image's pixels, uint8 [3, H, W], in row-major H, W, C order."""
    return hashlib.sha256(image_CHW.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()


def _rows(*fields_K: Tensor) -> list[list[Any]]:
    """Return the K images' values, one list an image."""
    return [list(values) for values in zip(*(field_K.tolist() for field_K in fields_K), strict=True)]


def _png(map_HW: Tensor) -> str:
    """Return a map of small integers as a base64 PNG of 8 or, where they need it, 16 bits: lossless, some 100 bytes."""
    buffer = io.BytesIO()
    labels_HW = map_HW.cpu().numpy()
    Image.fromarray(labels_HW.astype(np.uint8 if labels_HW.max() < 256 else np.uint16)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_png(text: str) -> Tensor:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return torch.from_numpy(np.array(image)).long()
