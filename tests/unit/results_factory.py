"""Made-up pilot results for tests of statistics, verdict and page; the numbers are drawn, the shapes are real."""

import numpy as np

from hydramix_dist.config.schema import ArmSettings, GeneratorSettings, MaskSettings, MixSettings, PilotSettings
from hydramix_dist.data.draws import uniform
from hydramix_dist.evaluation.assemble import assemble
from hydramix_dist.evaluation.results import DataSummary, PilotResults, RunResult

ARMS = {
    "baseline": ArmSettings(),
    "trivialaugment": ArmSettings(augmentation="trivial"),
    "chimeramix": ArmSettings(generator="chimeramix"),
    "hydramix": ArmSettings(generator="hydramix"),
    "hydramix-trivialaugment": ArmSettings(augmentation="trivial", generator="hydramix"),
}
GENERATORS = {
    "chimeramix": GeneratorSettings(
        mix=MixSettings(count=2, self_pairs=True, mask=MaskSettings(kind="chimera-segments"))
    ),
    "hydramix": GeneratorSettings(),
}
CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def settings(
    arms: tuple[str, ...] = tuple(ARMS), shots: tuple[int, ...] = (5,), seeds: tuple[int, ...] = (0, 1, 2), **more: bool
) -> PilotSettings:
    return PilotSettings(
        arms={name: ARMS[name] for name in arms}, generators=GENERATORS, shots=shots, seeds=seeds, **more
    )


def run(
    arm: str, seed: int, accuracy: float, shots: int = 5, classes: tuple[str, ...] = CLASSES, each: int = 50
) -> RunResult:
    """Return a run whose confusion matrix has about the given accuracy; mistakes go to the next two classes."""
    jitter = uniform(seed, f"test/{arm}/{shots}", range(len(classes)), 1).numpy()[:, 0] - 0.5
    jitter -= jitter.mean()
    confusion = np.zeros((len(classes), len(classes)), int)
    for i, shift in enumerate(jitter):
        right = int(np.clip(round(each * (accuracy + 0.25 * shift)), 0, each))
        confusion[i, i] = right
        confusion[i, (i + 1) % len(classes)] += (each - right) * 2 // 3
        confusion[i, (i + 2) % len(classes)] += each - right - (each - right) * 2 // 3
    per_class = {name: float(confusion[i, i]) / each for i, name in enumerate(classes)}
    images = 24_000
    mixing = ARMS[arm].generator
    return RunResult(
        arm=arm,
        shots=shots,
        seed=seed,
        accuracy=accuracy,
        balanced_accuracy=sum(per_class.values()) / len(per_class),
        per_class=per_class,
        confusion=confusion.tolist(),
        test_curve=[(images * k // 4, accuracy * (1 - 0.5 ** (k + 0.3 * seed))) for k in range(1, 4)]
        + [(images, accuracy)],
        train_loss_curve=[(images * k // 20, 1.8 * 0.8**k + 0.05 * accuracy) for k in range(1, 21)],
        seconds=44.0 + seed + (9 if mixing else 0),
        generator_seconds=131.0 if mixing else 0.0,
        generator_key=f"{mixing}-{shots}-{seed}" if mixing else None,
        images_seen=images,
        peak_memory_bytes=1_350_000_000,
        test_images=each * len(classes),
    )


def pilot(
    accuracies: dict[str, tuple[float, ...]],
    shots: tuple[int, ...] = (5,),
    classes: tuple[str, ...] = CLASSES,
    each: int = 50,
    seeds: int | None = None,
    step: float = 0.08,
    **more: bool,
) -> PilotResults:
    """Return results in which arm A has accuracies[A][seed] at the first N and `step` more at each further one."""
    count = seeds or max(len(values) for values in accuracies.values())
    chosen = settings(tuple(accuracies), shots, tuple(range(count)), **more)
    runs = [
        run(arm, seed, round(value + step * k, 4), n, classes, each)
        for k, n in enumerate(shots)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    data = DataSummary(
        name="steel surfaces",
        classes=classes,
        counts=dict.fromkeys(classes, 50),
        side=64,
        test_images=each * len(classes),
        source="folder of class folders",
        licence="research use, cite",
        fingerprint="9f" * 32,
    )
    return assemble(
        chosen,
        runs,
        data,
        name="first-look",
        preset="quick",
        warnings=["2 near duplicates between train and test: patches_12 and patches_88, scratches_4 and scratches_90"],
        versions={"hydramix_dist": "0.1.0", "torch": "2.13.0"},
        machine={"processor": "2 cores", "device": "cpu"},
    )
