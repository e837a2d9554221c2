"""Mixes to look at: what went into each, and how near it comes to a real image.

Legend: N images, K images in a mix, C channels, H W pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.compose import Composer
from hydramix_dist.mixing.masks import needs_segments
from hydramix_dist.mixing.record import Rendered, image_sha256, make_record, render
from hydramix_dist.models.trained import TrainedGenerator


@dataclass(frozen=True)
class Probe:
    """One mix of a fixed sample number, with its record.

    `segments_HW` is the layout image's label map under its view (None for grids), `nearest_CHW` the training image,
    mirrored or not, closest to the mix, and `distance` their root mean square difference in pixel values 0..255.
    """

    rendered: Rendered
    record: dict[str, Any]
    class_name: str
    segments_HW: Tensor | None
    nearest_CHW: Tensor
    distance: float


def probe(generator: TrainedGenerator, shots: ShotSet, seed: int, count: int) -> list[Probe]:
    """Return `count` mixes, going round the classes; a pure function of generator, subset and seed."""
    composer = Composer(shots, generator.settings.mix, generator.network.feature_side, seed, "probe")
    first_of_class = [int((shots.labels_N == c).nonzero()[0]) for c in shots.labels_N.unique().tolist()]
    numbers = np.arange(count)
    anchors_B = torch.tensor([first_of_class[i % len(first_of_class)] for i in range(count)])
    composition = composer.compose(anchors_B, numbers, 0)
    images = dict(zip(shots.ids, shots.images_NCHW, strict=True))
    probes = []
    for i in range(count):
        record = make_record(composition, i, shots.ids, generator)
        rendered = render(record, generator, images)
        record["image_sha256"] = image_sha256(rendered.mix_CHW)
        nearest_CHW, distance = _nearest(rendered.mix_CHW, shots.images_NCHW)
        segments_HW = None
        if shots.segments_NHW is not None and needs_segments(generator.settings.mix):
            view_1 = composition.sources_BK[i, composition.layout_B[i]][None]
            segments_HW = composition.draws.at(view_1).apply_to_maps(shots.segments_NHW[composition.rows_N[view_1]])[0]
        class_name = shots.classes[int(shots.labels_N[anchors_B[i]])]
        probes.append(Probe(rendered, record, class_name, segments_HW, nearest_CHW, distance))
    return probes


def _nearest(mix_CHW: Tensor, images_NCHW: Tensor) -> tuple[Tensor, float]:
    both_NCHW = torch.cat((images_NCHW, images_NCHW.flip(-1)))
    rms_N = (both_NCHW.float() - mix_CHW.float()).square().mean(dim=(1, 2, 3)).sqrt()
    at = int(rms_N.argmin())
    return both_NCHW[at], float(rms_N[at])
