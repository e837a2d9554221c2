"""Step times at the sizes of the `quick` preset under each runtime setting: the figures behind their defaults.

Variants are interleaved, one step each in turn, so that a drifting machine touches all alike; quoted are medians of
milliseconds and the ratio to the default. Run: `python benchmarks/steps.py [--compile]`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.config.schema import PilotSettings, RuntimeSettings
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.mixer import Mixer
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.placement import placed
from hydramix_dist.training.classifier import ClassifierInputs, ClassifierTraining, HeldOut
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.loop import Training

STEPS, WARM_UP = 15, 3
Step = Callable[[int], None]


def photographs_like(side: int) -> ShotSet:
    """Return 10 classes x 5 images of smooth noise with block segments: speed does not depend on what they show."""
    torch.manual_seed(0)
    coarse = torch.rand(50, 3, side // 8, side // 8)
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear").mul(255).to(torch.uint8)
    blocks = torch.arange(6).view(1, 2, 3).float()
    segments = torch.nn.functional.interpolate(blocks[None], size=side)[0].int().expand(50, side, side).contiguous()
    labels = torch.arange(50) % 10
    return ShotSet(images, labels, tuple(map(str, range(50))), segments, tuple(map(str, range(10))))


def one_step(training: Training) -> Step:
    """Return a function that takes one step of a training."""

    def step(number: int) -> None:
        batch = training.batch(number)
        for phase in training.phases:
            for name, engine in training.engines.items():
                engine.module.requires_grad_(name == phase.engine)
            total, _ = phase.loss(batch)
            training.engines[phase.engine].backward(total)
            training.engines[phase.engine].step(phase.lr(0.0))

    return step


def interleaved(steps: dict[str, Step]) -> dict[str, float]:
    """Return the median milliseconds of each variant's step, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(STEPS + WARM_UP):
        for name, step in steps.items():
            began = time.perf_counter()
            step(number)
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, medians: dict[str, float]) -> None:
    """Print a table with ratios to the first variant, and a JSON line."""
    first = next(iter(medians.values()))
    print(f"\n{title}")
    for name, value in medians.items():
        print(f"  {name:<28} {value:8.1f} ms   {value / first:5.2f} x")
    print(json.dumps({"benchmark": title, "median_ms": {k: round(v, 2) for k, v in medians.items()}}))


def main() -> None:
    """Measure generator and classifier steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="also torch.compile (its first steps take a minute)")
    compile_too = parser.parse_args().compile
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = build(PilotSettings, read_yaml(configs_root() / "pilot" / "quick.yaml"), "quick.yaml")
    generator, classifier = settings.generators["hydramix"], settings.classifier
    shots = photographs_like(generator.network.side)
    runtimes = {
        "bf16 channels-last (default)": RuntimeSettings(),
        "bf16 contiguous": RuntimeSettings(channels_last=False),
        "fp32 channels-last": RuntimeSettings(precision="fp32"),
        "fp32 contiguous": RuntimeSettings(precision="fp32", channels_last=False),
    }
    if compile_too:
        runtimes["bf16 channels-last compile"] = RuntimeSettings(compile=True)

    trainings = {n: GeneratorTraining(generator, r, shots, 0, device, {}) for n, r in runtimes.items()}
    show(
        f"generator step, K={generator.mix.count}, batch {generator.batch}, 1 thread",
        interleaved({n: one_step(t) for n, t in trainings.items()}),
    )

    held_out = HeldOut(shots.images_NCHW, shots.labels_N)
    inputs = ClassifierInputs(shots, "basic", None, held_out, None)
    plain = {n: one_step(ClassifierTraining(classifier, r, inputs, 0, device, {})) for n, r in runtimes.items()}
    show(f"classifier step, {classifier.network}, batch {classifier.batch}, 1 thread", interleaved(plain))

    mixed = classifier.model_copy(update={"mix_share": 1.0})
    network = placed(Generator(generator.network), device, channels_last=True)
    mixer = Mixer(network, shots.to(device), generator.mix, 0, "basic", bf16=True)
    with_mixes = ClassifierInputs(shots, "basic", mixer, held_out, None)
    trivial = ClassifierInputs(shots, "trivial", None, held_out, None)
    arms = {
        "real images": one_step(ClassifierTraining(classifier, RuntimeSettings(), inputs, 0, device, {})),
        "real images, TrivialAugment": one_step(
            ClassifierTraining(classifier, RuntimeSettings(), trivial, 0, device, {})
        ),
        "mixed images": one_step(ClassifierTraining(mixed, RuntimeSettings(), with_mixes, 0, device, {})),
    }
    show("classifier step by kind of batch", interleaved(arms))


if __name__ == "__main__":
    main()
