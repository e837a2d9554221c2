"""Small worlds for the tests: shot sets, settings and image folders with which a training takes a second."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from hydramix_dist.checkpoint import EngineState, load_newest, weights_digest
from hydramix_dist.config.load import build
from hydramix_dist.config.schema import ClassifierSettings, GeneratorSettings, RuntimeSettings
from hydramix_dist.data.draws import uniform
from hydramix_dist.data.held_out import HeldOut
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.errors import Interrupted
from hydramix_dist.mixing.mixer import Mixer
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.trained import TrainedGenerator
from hydramix_dist.store import Store
from hydramix_dist.store.journal import Journal
from hydramix_dist.telemetry import JsonlSink, Recorder
from hydramix_dist.training.classifier import ClassifierInputs, ClassifierTraining, train_classifier
from hydramix_dist.training.generator import GeneratorTraining, generator_identity, train_generator
from hydramix_dist.training.group import Alone, Group
from hydramix_dist.training.loop import Context, Training

SIDE = 32
ALONE: Group = Alone(torch.device("cpu"))
HYDRAMIX = Path(sys.executable).with_name("hydramix")
RUNTIME = RuntimeSettings(device="cpu", precision="fp32", channels_last=False, threads=1, checkpoints=3)
FAST = RUNTIME.model_copy(update={"precision": "bf16", "channels_last": True})


# ---- images


def pictures(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    """Return smooth random images, uint8 [count, 3, side, side], all different."""
    coarse = uniform(seed, "pictures", range(count), 3 * 64).view(count, 3, 8, 8) * 255
    return torch.nn.functional.interpolate(coarse, side, mode="bilinear").byte()


def label_maps(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    """Return label maps, int32 [count, side, side], each of 4 to 8 upright and lying stripes numbered 0..n-1."""
    cuts = (uniform(seed, "maps", range(count), 1)[:, 0] * 3 + 2).long()
    rows = torch.arange(side)
    maps = [(rows[:, None] // (side // int(n) + 1)) * 2 + (rows[None] // (side // 2)) for n in cuts]
    return torch.stack([torch.unique(m, return_inverse=True)[1] for m in maps]).int()


def shot_set(per_class: Sequence[int] = (3, 3), side: int = SIDE, seed: int = 0, segments: bool = True) -> ShotSet:
    """Return a shot set with the given numbers of images a class, classes taking turns as far as they reach."""
    labels = [label for turn in range(max(per_class)) for label, n in enumerate(per_class) if turn < n]
    count = len(labels)
    return ShotSet(
        images_NCHW=pictures(count, side, seed),
        labels_N=torch.tensor(labels),
        ids=tuple(f"image-{i}" for i in range(count)),
        segments_NHW=label_maps(count, side, seed) if segments else None,
        classes=tuple(f"class-{i}" for i in range(len(per_class))),
    )


def image_folder(root: Path, train: Mapping[str, int], test: int, side: int = SIDE) -> Path:
    """Write class folders with train and test images; a class is told by its colour, noisily. Return the root."""
    for label, (name, count) in enumerate(train.items()):
        for split, number in (("train", count), ("test", test)):
            folder = root / split / name
            folder.mkdir(parents=True)
            images = pictures(number, side, seed=2 * label + (split == "test")).float() * 0.9
            images[:, label % 3] += 15
            for i, image in enumerate(images.byte()):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    return root


# ---- settings


def generator_settings(**changes: Any) -> GeneratorSettings:
    """Return the settings of a training of 12 steps, with `changes` to the top keys (sections as mappings)."""
    tree: dict[str, Any] = {
        "network": {"side": SIDE, "width": 4, "blocks": 2, "mix_after": "block1"},
        "discriminator": {"width": 4, "score": "sigmoid", "augment": False},
        "mix": {"count": 3},
        "batch": 4,
        "images": 48,
        "milestones": [0.5],
    }
    return build(GeneratorSettings, tree | changes, "test")


def classifier_settings(**changes: Any) -> ClassifierSettings:
    """Return the settings of a training of 12 steps with dropout, with `changes` to the top keys."""
    tree: dict[str, Any] = {"network": "wrn-10-1", "dropout": 0.3, "side": 16, "batch": 4, "images": 48}
    return build(ClassifierSettings, tree | {"optimizer": {"lr": 0.05}} | changes, "test")


# ---- trainings


def stops_after(steps: int) -> Callable[[], bool]:
    """Return a `should_stop` that asks for a stop at the end of the given step, counted from 1 in this attempt."""
    calls = 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        return calls >= steps

    return should_stop


def never() -> bool:
    return False


@contextlib.contextmanager
def context(
    folder: Path | Store,
    role: str,
    runtime: RuntimeSettings = RUNTIME,
    should_stop: Callable[[], bool] = never,
    group: Group = ALONE,
) -> Iterator[Context]:
    """Yield what surrounds a training in a folder."""
    store = folder if isinstance(folder, Store) else Store(folder)
    with Journal(store, "metrics.jsonl") if group.rank == 0 else contextlib.nullcontext() as journal:
        sinks = [] if journal is None else [JsonlSink(journal.write)]
        yield Context(
            group,
            store,
            Recorder(sinks, run="tiny", role=role, arm="tiny"),
            runtime,
            lambda done, total: None,
            should_stop,
        )


def run_generator(
    folder: Path | Store,
    settings: GeneratorSettings | None = None,
    runtime: RuntimeSettings = RUNTIME,
    should_stop: Callable[[], bool] = never,
    shots: ShotSet | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Train, or go on training, a generator in a folder; return its result."""
    settings, shots = settings or generator_settings(), shots or shot_set()
    identity = generator_identity("data", shots.ids, 5, settings)
    with context(folder, "generator", runtime, should_stop, group) as surroundings:
        return train_generator(shots, settings, 5, identity, "nowhere", surroundings)


def generator_training(
    settings: GeneratorSettings | None = None,
    shots: ShotSet | None = None,
    runtime: RuntimeSettings = RUNTIME,
    states: Mapping[str, EngineState] | None = None,
) -> GeneratorTraining:
    """Return a generator training at its first step, outside any folder."""
    return GeneratorTraining(settings or generator_settings(), runtime, shots or shot_set(), 5, ALONE, states or {})


def classifier_training(
    settings: ClassifierSettings | None = None,
    inputs: ClassifierInputs | None = None,
    runtime: RuntimeSettings = RUNTIME,
) -> ClassifierTraining:
    """Return a classifier training at its first step, outside any folder."""
    return ClassifierTraining(settings or classifier_settings(), runtime, inputs or classifier_inputs(), 5, ALONE, {})


def batch(training: Training, step: int) -> dict[str, Any]:
    """Return a step's whole batch, as one process alone computes it."""
    return training.batch(training.length.pieces(step, 0, 1, None)[0])


def classifier_inputs(mixed: bool = True, validation: bool = False, bf16: bool = False) -> ClassifierInputs:
    """Return inputs with mixes of an untrained generator: its weights do not matter, that it is the same does."""
    return ClassifierInputs(
        shots=shot_set(side=16, segments=False),
        augmentation="basic",
        mixer=mixer(bf16=bf16) if mixed else None,
        test=HeldOut(pictures(20, 16, seed=1), torch.arange(20) % 2),
        validation=HeldOut(pictures(6, 16, seed=2), torch.arange(6) % 2) if validation else None,
    )


def mixer(shots: ShotSet | None = None, settings: GeneratorSettings | None = None, bf16: bool = False) -> Mixer:
    """Return a mixer with an untrained generator."""
    settings = settings or generator_settings()
    torch.manual_seed(3)
    return Mixer(Generator(settings.network), shots or shot_set(), settings.mix, 5, "basic", bf16=bf16)


def run_classifier(
    folder: Path | Store,
    settings: ClassifierSettings | None = None,
    runtime: RuntimeSettings = RUNTIME,
    should_stop: Callable[[], bool] = never,
    inputs: ClassifierInputs | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Train, or go on training, a classifier in a folder; return its result."""
    settings = settings or classifier_settings()
    inputs = inputs or classifier_inputs(bf16=runtime.precision == "bf16")
    with context(folder, "classifier", runtime, should_stop, group) as surroundings:
        return train_classifier(inputs, settings, 5, {"settings": "the test's"}, "nowhere", surroundings)


def assert_near(now: Mapping[str, EngineState], then: Mapping[str, EngineState]) -> None:
    """Fail unless two trainings' last states, by engine, differ by rounding alone.

    Up to 2.4e-2 of a tensor's norm was seen after 12 steps of Adam; moments that are lost or swapped are off by 1. A
    bias that instance norm takes out again is left aside: its gradient is nothing but rounding, which Adam makes large.
    """
    assert now.keys() == then.keys()
    for name, state in now.items():
        other = then[name]
        assert state.step == other.step and state.moments.keys() == other.moments.keys()
        for mine, theirs in [
            (state.weights, other.weights),
            *((state.moments[m], other.moments[m]) for m in state.moments),
        ]:
            assert mine.keys() == theirs.keys()
            for key in (key for key in mine if name == "classifier" or "weight" in key):
                difference = (mine[key] - theirs[key]).double().norm() / theirs[key].double().norm().clamp(min=1e-6)
                assert difference < 5e-2, f"{name} {key}: {difference}"


def until_interrupted(train: Callable[[], Any]) -> None:
    """Train, which must end with an interruption."""
    try:
        train()
    except Interrupted:
        return
    raise AssertionError("the training was not interrupted")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TornError(Exception):
    """What a `TornStore` fails with."""


class TornStore(Store):
    """A store that does `whole` writes and removals and then fails for ever, as if its process had been killed."""

    def __init__(self, url: Path, whole: int) -> None:
        super().__init__(url)
        self.done, self._whole = 0, whole

    @contextlib.contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        self._count()
        with super().writer(path) as file:
            yield file

    def delete(self, path: str = "") -> None:
        self._count()
        super().delete(path)

    def _count(self) -> None:
        if self.done == self._whole:
            raise TornError
        self.done += 1


# ---- a pilot

PILOT: dict[str, Any] = {
    "shots": [5],
    "seeds": [0, 1],
    "verdict": False,
    "generators": {
        "hydramix": {
            "network": {"side": SIDE, "width": 4, "blocks": 2, "mix_after": "block1"},
            "discriminator": {"width": 4},
            "mix": {"count": 3},
            "batch": 4,
            "group": 4,
            "images": 240,
        }
    },
    "classifier": {
        "network": "wrn-10-1",
        "dropout": 0.2,
        "side": 16,
        "batch": 4,
        "images": 480,
        "optimizer": {"lr": 0.02},
    },
    "arms": {"baseline": {}, "hydramix": {"generator": "hydramix"}},
    "runtime": {"device": "cpu", "precision": "fp32", "channels_last": False, "checkpoints": 4},
    "concurrent": 2,
}


def write_preset(path: Path, **changes: Any) -> Path:
    """Write the tiny pilot's settings, with `changes` to the top keys, as YAML; return the path."""
    path.write_text(yaml.safe_dump(PILOT | changes))
    return path


def hydramix(*arguments: str | Path, check: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does; `check` is the exit code it must end with."""
    command = [str(HYDRAMIX), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
    assert check is None or done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_hydramix(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command line in a session of its own."""
    return subprocess.Popen(
        [str(HYDRAMIX), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def measured(run: Path | str) -> dict[tuple[str, int, int], Any]:
    """Return what a pilot measured, without times: by (arm, shots, seed) the confusion and the test curve."""
    results = json.loads(Store(run).read("results.json"))
    return {(r["arm"], r["shots"], r["seed"]): (r["confusion"], r["test_curve"]) for r in results["runs"]}


def weights_of(run: Path | str) -> dict[str, str]:
    """Return the digest of each training's last weights in a pilot's folder."""
    store, found = Store(run), {}
    for folder in sorted({path.split("/checkpoints/")[0] for path in store.list() if "/checkpoints/" in path}):
        checkpoint = load_newest(store.child(folder))
        for name, state in checkpoint.engines.items() if checkpoint else ():
            found[f"{folder}/{name}"] = weights_digest(state.weights)
    return found


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below one."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        below.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(below.get(pid, []))
    for child in found:
        found.extend(below.get(child, []))
    return found


def workers_of(pid: int) -> list[int]:
    """Return the ids of a pilot's worker processes."""
    lines = {p: Path(f"/proc/{p}/cmdline") for p in descendants(pid)}
    return [p for p, line in lines.items() if line.exists() and "spawn_main" in line.read_text()]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def trained_generator(settings: GeneratorSettings | None = None, seed: int = 3) -> TrainedGenerator:
    """Return a generator as out of a run's folder; its weights are random, which no test of draws minds."""
    settings = settings or generator_settings()
    torch.manual_seed(seed)
    network = Generator(settings.network).eval().requires_grad_(False)
    return TrainedGenerator(network, settings, weights_digest(network.state_dict()), {})
