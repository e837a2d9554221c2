"""Mixing as a drop-in for anybody's own torch loop.

Legend: B batch, C channels, H W pixels, N images of the subset.
"""

import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hydramix_dist.config.schema import Augmentation
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.draws import derived_seed, integers, uniform
from hydramix_dist.data.manifest import MANIFEST
from hydramix_dist.data.shots import ShotSet, load_shots
from hydramix_dist.errors import UserError
from hydramix_dist.mixing.mixer import Mixer
from hydramix_dist.models.trained import TrainedGenerator, load_generator
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run


class HydraMixTransform:
    """Replaces whole batches, with probability `share`, by mixes of the same classes.

    `images, labels = transform(images, labels)`: labels stay; images stay as they are, or each becomes a mix of K
    images of its label's class, drawn from the few-shot subset that the generator was trained on. Draws are pure
    functions of the seed and of how many batches and images were asked for before.
    """

    def __init__(
        self,
        generator: TrainedGenerator,
        shots: ShotSet,
        *,
        share: float = 0.5,
        augmentation: Augmentation = "basic",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take a trained generator and its subset. Raises UserError for a share outside [0, 1]."""
        if not 0 <= share <= 1:
            raise UserError(f"share {share} is not in [0, 1]")
        self.classes = shots.classes
        self._share, self._seed = share, derived_seed(seed, "transform", 0)
        self._device = torch.device(device)
        self._shots = shots.to(self._device)
        network = copy.deepcopy(generator.network).to(self._device)  # the caller's stays as it is
        self._mixer = Mixer(network, self._shots, generator.settings.mix, self._seed, augmentation, bf16=False)
        self._batches, self._images = 0, 0

    @classmethod
    def from_run(
        cls,
        run: str,
        *,
        data: str | None = None,
        share: float = 0.5,
        augmentation: Augmentation = "basic",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Return a transform from a run's folder: a generator's, or one of a pilot's classifiers that trained on mixes.

        `data` is the imported image set, where it no longer lies where the run found it. Raises UserError where the
        folder holds no finished run with a generator, or the data is another set.
        """
        store = _generator_folder(Store(run))
        generator = load_generator(store)
        url = data or read_run(store)["facts"]["data_url"]
        if data is None and not Store(url).exists(MANIFEST):
            raise UserError(f"the image set of this run is not at {url} any more; give data=, where it lies now")
        dataset = Dataset.open(url)
        if dataset.fingerprint != generator.identity["data"]:
            raise UserError(f"{url} is not the image set that the generator in {store.url} was trained on")
        row_of = {image: row for row, image in enumerate(dataset.ids("train"))}
        rows = [row_of[image] for image in generator.identity["subset"]]
        shots = load_shots(dataset, rows, generator.settings.network.side, generator.settings.segments)
        return cls(generator, shots, share=share, augmentation=augmentation, seed=seed, device=device)

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch of the same shape, dtype, range and device.

        Floats are taken for [-1, 1], uint8 for 0..255; labels are integers [B]. Raises UserError for images that are
        not square or have not three channels, for labels of another form, and for one that the subset does not know.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or images_BCHW.shape[2] != images_BCHW.shape[3]:
            raise UserError(f"images have shape {tuple(images_BCHW.shape)}; give square colour images [B, 3, S, S]")
        if labels_B.shape != images_BCHW.shape[:1] or labels_B.is_floating_point() or not len(labels_B):
            raise UserError(
                f"labels have shape {tuple(labels_B.shape)} and type {labels_B.dtype}; give one whole number for "
                f"each of the {len(images_BCHW)} images, at least one"
            )
        step, first = self._batches, self._images
        self._batches, self._images = step + 1, first + len(images_BCHW)
        if float(uniform(self._seed, "share", [step], 1)) >= self._share:
            return images_BCHW, labels_B
        numbers = np.arange(first, self._images)
        mixed_BCHW = self._mixer.mix(self._anchors(labels_B, numbers), numbers, step, images_BCHW.shape[-1])
        if images_BCHW.dtype == torch.uint8:
            mixed_BCHW = ((mixed_BCHW + 1) * 127.5).round().clamp(0, 255)
        return mixed_BCHW.to(images_BCHW.device, images_BCHW.dtype), labels_B

    def _anchors(self, labels_B: Tensor, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """Return a row of the subset for each label, uniform over the class."""
        labels_B = labels_B.to(self._device).long()
        members, counts = self._shots.members
        if bool((labels_B < 0).any()) or bool((labels_B >= len(counts)).any()) or bool((counts[labels_B] == 0).any()):
            raise UserError(f"a label is not one of the subset's {len(counts)} classes: {labels_B.unique().tolist()}")
        u_B = uniform(self._seed, "anchor", numbers, 1)[:, 0].to(self._device)
        return members[labels_B, integers(u_B, counts[labels_B])]


def _generator_folder(store: Store) -> Store:
    """Return the folder of the generator itself, also for a pilot's classifier folder."""
    record = read_run(store)
    if record["kind"] == "generator":
        return store
    pilot, inside, _ = store.url.rpartition("/classifiers/")
    if record["kind"] == "classifier" and record["identity"].get("generator") and inside:
        return Store(pilot).child(f"generators/{record['identity']['generator']}")
    raise UserError(
        f"{store.url} has no generator; give the folder of a generator (generators/... of a pilot), or of a classifier "
        "that trained on a generator's mixes"
    )
