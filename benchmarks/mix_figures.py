"""Figures of `mixes.py`: what a generator makes of images, and numbers that say how it differs from them.

Legend: B batch, K images in a mix, N images, A images compared with B others, C channels, D values of an image,
H W pixels, h w feature cells.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hydramix_dist.config.schema import MixSettings
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.compose import Composition
from hydramix_dist.mixing.masks import needs_segments
from hydramix_dist.models.discriminator import Discriminator
from hydramix_dist.models.generator import Generator, mix_features
from hydramix_dist.models.pixels import to_float, to_uint8
from hydramix_dist.models.trained import load_classifier
from hydramix_dist.store import Store
from hydramix_dist.training.diffaugment import draw_augmentation
from hydramix_dist.training.losses import laplacian_loss
from hydramix_dist.training.scoring import predict

Row = dict[str, object]


@dataclass(frozen=True)
class Seen:
    """The anchors' views of a composition and what becomes of them, each [B, 3, H, W] in [-1, 1], and their labels."""

    real: Tensor
    reconstructed: Tensor
    pasted: Tensor  # the sources' pixels under the mask of feature cells, without a network
    mixed: Tensor
    labels_B: Tensor


def render(made: Composition, shots: ShotSet, generator: Generator) -> Seen:
    """Return what a composition looks like before and after the generator."""
    parts = []
    for sources_bK, mask_bKhw in zip(made.sources_BK.split(50), made.mask_BKhw.split(50), strict=True):
        x_bKCHW = to_float(made.images_NCHW[sources_bK])
        f_bKDhw = generator.encode(x_bKCHW.flatten(0, 1)).unflatten(0, sources_bK.shape)
        decoded = generator.decode(torch.cat((f_bKDhw[:, 0], mix_features(f_bKDhw, mask_bKhw))))
        pasted = mix_features(x_bKCHW, F.interpolate(mask_bKhw, x_bKCHW.shape[-1], mode="nearest"))
        parts.append((x_bKCHW[:, 0], decoded[: len(sources_bK)], pasted, decoded[len(sources_bK) :]))
    real, reconstructed, pasted, mixed = (torch.cat(column) for column in zip(*parts, strict=True))
    return Seen(real, reconstructed, pasted, mixed, shots.labels_N[made.rows_N[made.sources_BK[:, 0]]])


def reconstruction_row(train: Seen, held_out: Seen) -> Row:
    """Return errors of reconstructions, and how much detail is left in what the generator makes."""
    return {
        "MSE train": _rounded((train.reconstructed - train.real).square().mean()),
        "held out": _rounded((held_out.reconstructed - held_out.real).square().mean()),
        "Laplacian train": _rounded(laplacian_loss(train.reconstructed, train.real)),
        "Lap. held out": _rounded(laplacian_loss(held_out.reconstructed, held_out.real)),
        "detail rec.": _rounded(_detail(train.reconstructed) / _detail(train.real)),
        "detail mix": _rounded(_detail(train.mixed) / _detail(train.real)),
        "colour rec.": _colour_error(train.reconstructed, train.real),
        "col. held out": _colour_error(held_out.reconstructed, held_out.real),
        "colour mix": _colour_error(train.mixed, train.pasted),
    }


def discriminator_row(discriminator: Discriminator, train: Seen, held_out: Seen, *, augment: bool) -> Row:
    """Return D's mean scores and what it is sure of; each image has an augmentation of its own, as in training."""

    def score(x_BCHW: Tensor, kind: str) -> Tensor:
        if augment:
            x_BCHW = draw_augmentation(0, f"look/shown-{kind}", range(len(x_BCHW))).apply(x_BCHW)
        scores_Bhw: Tensor = discriminator(x_BCHW)
        return scores_Bhw.flatten()

    real, mixed = score(train.real, "real"), score(train.mixed, "mixed")
    return {
        "real train": _rounded(real.mean()),
        "real held out": _rounded(score(held_out.real, "held-out").mean()),
        "rec. train": _rounded(score(train.reconstructed, "reconstructed").mean()),
        "mix train": _rounded(mixed.mean()),
        "mix held out": _rounded(score(held_out.mixed, "mixed-held-out").mean()),
        "sure of real": _rounded((real > 0.9).float().mean()),
        "sure of mix": _rounded((mixed < 0.1).float().mean()),
        "real above mix": _rounded((real[:, None] > mixed).float().mean()),
    }


def mask_figures(made: Composition, shots: ShotSet, mix: MixSettings) -> dict[str, Tensor]:
    """Return, for each mix [B], how its mask is made up; of segments only where the mask is made of them."""
    m_BKhw = made.mask_BKhw
    largest_Bhw = m_BKhw.argmax(1)
    across_B = (largest_Bhw[:, :, 1:] != largest_Bhw[:, :, :-1]).float().mean((1, 2))
    down_B = (largest_Bhw[:, 1:] != largest_Bhw[:, :-1]).float().mean((1, 2))
    figures = {
        "share of the largest source": m_BKhw.mean((2, 3)).amax(1),
        "sources in the mask": (m_BKhw > 0).any(-1).any(-1).sum(1).float(),
        "neighbouring cells of two sources": (across_B + down_B) / 2,
    }
    if shots.segments_NHW is None or not needs_segments(mix):
        return figures
    at_B = made.sources_BK.gather(1, made.layout_B[:, None])[:, 0]
    segments_BHW = made.draws.at(at_B).apply_to_maps(shots.segments_NHW[made.rows_N[at_B]])
    sizes = [torch.unique(map_HW, return_counts=True)[1].float() for map_HW in segments_BHW]
    return {
        "segments of the layout view": torch.tensor([float(len(size)) for size in sizes]),
        "share of the largest segment": torch.stack([size.max() / size.sum() for size in sizes]),
        **figures,
    }


def distances(a_ACHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Return the root mean square differences [A, B], on the scale of the pixels, to each b or, if nearer, its mirror.

    Images uint8, 0..255.
    """
    a_AD = a_ACHW.flatten(1).double()
    plain_AB = torch.cdist(a_AD, b_BCHW.flatten(1).double())
    mirrored_AB = torch.cdist(a_AD, b_BCHW.flip(-1).flatten(1).double())
    nearer_AB: Tensor = torch.minimum(plain_AB, mirrored_AB) / a_AD.shape[1] ** 0.5
    return nearer_AB


def nearest_figures(made: Composition, train: Seen, shots: ShotSet, held_out: ShotSet) -> dict[str, Tensor]:
    """Return distances to the nearest training image, of mixes and of what they are to be compared with."""
    apart_NN = distances(shots.images_NCHW, shots.images_NCHW)
    other_NN = (shots.labels_N[:, None] == shots.labels_N) & ~torch.eye(len(shots.ids), dtype=torch.bool)
    own_views = made.images_NCHW[made.sources_BK]
    own_BK = torch.stack(
        [distances(to_uint8(m)[None], views)[0] for m, views in zip(train.mixed, own_views, strict=True)]
    )
    held_out_BN = distances(held_out.images_NCHW, shots.images_NCHW)
    held_out_BN[held_out.labels_N[:, None] != shots.labels_N] = torch.inf
    return {
        "views of training images, no network": distances(to_uint8(train.real), shots.images_NCHW).amin(1),
        "reconstructions of these": distances(to_uint8(train.reconstructed), shots.images_NCHW).amin(1),
        "mixes of pixels, same masks": distances(to_uint8(train.pasted), shots.images_NCHW).amin(1),
        "mixes": distances(to_uint8(train.mixed), shots.images_NCHW).amin(1),
        "mixes, to the nearest of their sources' views": own_BK.amin(1),
        "training images, to the next of their class": apart_NN.masked_fill(~other_NN, torch.inf).amin(1),
        "held-out images, to the next of their class": held_out_BN.amin(1),
    }


def classifier_row(store: Store, train: Seen, held_out: Seen) -> Row:
    """Return a classifier's accuracies on real images and on what the generator makes of them."""
    trained = load_classifier(store)

    def accuracy(x_BCHW: Tensor, labels_B: Tensor) -> float:
        side = trained.settings.side
        if x_BCHW.shape[-1] != side:  # as mixes are brought to the classifier's side
            x_BCHW = F.interpolate(x_BCHW, size=side, mode="bilinear", align_corners=True)
        answers_B = predict(trained.network, [to_uint8(x_BCHW)], torch.device("cpu")).argmax(1)
        return round(float((answers_B == labels_B).double().mean()), 3)

    return {
        f"{part} {kind}": accuracy(x_BCHW, seen.labels_B)
        for part, seen in (("held out:", held_out), ("train:", train))
        for kind, x_BCHW in (
            ("real", seen.real),
            ("rec.", seen.reconstructed),
            ("pixel mix", seen.pasted),
            ("mix", seen.mixed),
        )
    }


def _detail(x_BCHW: Tensor) -> Tensor:
    return laplacian_loss(x_BCHW, torch.zeros_like(x_BCHW))


def _colour_error(x_BCHW: Tensor, target_BCHW: Tensor) -> float:
    """Return the root mean square difference of the means of 8 x 8 areas, on a scale of 0..255."""
    difference_BC88 = F.adaptive_avg_pool2d(x_BCHW - target_BCHW, 8)
    return round(127.5 * float(difference_BC88.square().mean().sqrt()), 1)


def _rounded(value: Tensor) -> float:
    return round(float(value), 4 if abs(float(value)) < 0.1 else 3)


def spread(values: Tensor) -> Row:
    """Return mean, 5 and 95 % of some values."""
    low, high = np.percentile(values.numpy(), (5, 95))
    return {"mean": round(float(values.mean()), 2), "5 %": round(float(low), 2), "95 %": round(float(high), 2)}
