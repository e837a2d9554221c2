"""A finished classifier on new images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.config.store import store_settings
from hydramix_dist.data.decode import Pixels, Refusal, decode, fit_square, resized
from hydramix_dist.data.held_out import BATCH
from hydramix_dist.errors import StoreAwayError, UserError
from hydramix_dist.evaluation.results import RESULTS_FILE, load_results
from hydramix_dist.models.trained import load_classifier
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run
from hydramix_dist.training.loop import prepare_device
from hydramix_dist.training.scoring import predict

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif"}


@dataclass(frozen=True)
class Prediction:
    """One image's answer: the class and its probability in [0, 1], or why the image could not be read."""

    image: str
    label: str | None
    probability: float | None
    error: str | None


def choose_classifier(run: Store, arm: str | None) -> Store:
    """Return the classifier's folder of a run: the run itself, or a pilot's classifier.

    Of a pilot: the named arm, else the one with the best mean at the largest N; of its seeds the first, for the test
    set must not choose among them. Raises UserError for a folder without a classifier or an unknown arm.
    """
    if read_run(run)["kind"] != "pilot":
        if arm is not None:
            raise UserError(f"{run.url} is a single run; --arm is for a pilot's folder")
        return run
    if not run.exists(RESULTS_FILE):
        raise UserError(f"the pilot in {run.url} has no results yet; run hydramix pilot --resume --out {run.url}")
    results = load_results(run)
    known = [summary.arm for summary in results.summaries]
    if not known:
        raise UserError(
            f"the pilot in {run.url} has no finished classifier yet; run hydramix pilot --resume --out {run.url}"
        )
    if arm is not None and arm not in known:
        raise UserError(f"--arm '{arm}' has no finished run in {run.url}; there are {', '.join(dict.fromkeys(known))}")
    shots = max(summary.shots for summary in results.summaries if arm in (None, summary.arm))
    best = max((s for s in results.summaries if s.shots == shots and arm in (None, s.arm)), key=lambda s: s.mean)
    seed = next(r.seed for r in results.runs if r.arm == best.arm and r.shots == shots)
    return run.child(f"classifiers/{best.arm}-n{shots}-seed{seed}")


def classify(classifier: Store, images: "Images") -> list[Prediction]:
    """Return a prediction for each image, in order. Images of any size and mode are fitted as at import.

    They are read ahead and scored in batches, so that memory does not grow with their number.
    """
    trained = load_classifier(classifier)
    device = prepare_device(RuntimeSettings(precision="fp32"))
    network = trained.network.to(device)

    def pixels(name: str) -> Pixels | str:
        try:
            # The same two steps as the training images went through: to the stored side, then to the classifier's.
            stored = fit_square(decode(images.store.read(name)), trained.stored_side, trained.fit)
            return resized(np.asarray(stored), trained.settings.side)
        except StoreAwayError:  # which is no word about this image
            raise
        except (Refusal, OSError, UserError) as error:
            return str(error)

    predictions: list[Prediction] = []
    with ThreadPoolExecutor(store_settings().requests) as threads:
        for first in range(0, len(images.names), BATCH):
            names = images.names[first : first + BATCH]
            read = list(threads.map(pixels, names))
            whole = [image for image in read if not isinstance(image, str)]
            best: Iterator[tuple[int, float]] = iter(())
            if whole:
                images_NCHW = torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2).contiguous()
                top_N = predict(network, [images_NCHW], device).max(1)
                best = iter(zip(top_N.indices.tolist(), top_N.values.tolist(), strict=True))
            for name, image in zip(names, read, strict=True):
                if isinstance(image, str):
                    predictions.append(Prediction(images.store.path(name), None, None, image))
                else:
                    label, probability = next(best)
                    predictions.append(Prediction(images.store.path(name), trained.classes[label], probability, None))
    return predictions


@dataclass(frozen=True)
class Images:
    """Images to classify: names below a folder, or "" for the store's own object."""

    store: Store
    names: tuple[str, ...]


def find_images(where: str) -> Images:
    """Return the image itself, or all images below a folder or prefix, sorted. Raises UserError where there is none."""
    store = Store(where)
    if not store.exists():
        raise UserError(f"{where} does not exist; give an image or a folder of images")
    names = store.list()
    if names == [""]:  # the image itself
        return Images(store, ("",))
    found = tuple(name for name in names if PurePosixPath(name).suffix.lower() in _SUFFIXES)
    if not found:
        raise UserError(f"{where} holds no image (looked for {', '.join(sorted(_SUFFIXES))})")
    return Images(store, found)
