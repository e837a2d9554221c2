"""A finished classifier on new images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.data.decode import Refusal, decode, fit_square, resized
from hydramix_dist.errors import UserError
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


def classify(classifier: Store, paths: Sequence[Path]) -> list[Prediction]:
    """Return a prediction for each image, in order. Images of any size and mode are fitted as at import."""
    trained = load_classifier(classifier)
    runtime = RuntimeSettings(precision="fp32")
    device = prepare_device(runtime)
    pixels, errors = [], {}
    for path in paths:
        try:
            # The same two steps as the training images went through: to the stored side, then to the classifier's.
            stored = fit_square(decode(path.read_bytes()), trained.stored_side, trained.fit)
            pixels.append(resized(np.asarray(stored), trained.settings.side))
        except (Refusal, OSError) as error:
            errors[path] = str(error)
    if not pixels:
        return [Prediction(str(path), None, None, errors[path]) for path in paths]
    images_NCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    network = trained.network.to(device)
    best_N = predict(network, images_NCHW, device).max(1)
    answers = iter(zip(best_N.indices.tolist(), best_N.values.tolist(), strict=True))
    predictions = []
    for path in paths:
        if path in errors:
            predictions.append(Prediction(str(path), None, None, errors[path]))
        else:
            label, probability = next(answers)
            predictions.append(Prediction(str(path), trained.classes[label], probability, None))
    return predictions


def find_images(path: Path) -> list[Path]:
    """Return the image itself, or all images below a folder, sorted. Raises UserError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give an image or a folder of images")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _SUFFIXES)
    if not found:
        raise UserError(f"{path} holds no image (looked for {', '.join(sorted(_SUFFIXES))})")
    return found
