"""The two kinds of training a comparison is made of, as plain values that any process can carry out."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from hydramix_dist import __version__
from hydramix_dist.config.load import dump
from hydramix_dist.config.schema import (
    ArmSettings,
    ClassifierSettings,
    GeneratorSettings,
    RuntimeSettings,
    SegmentSettings,
)
from hydramix_dist.data.dataset import Dataset, Reference
from hydramix_dist.data.held_out import HeldOut, load_held_out
from hydramix_dist.data.shots import ShotSet, load_shots
from hydramix_dist.mixing.masks import needs_segments
from hydramix_dist.mixing.mixer import Mixer, PixelMixing
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.placement import placed
from hydramix_dist.models.trained import load_generator
from hydramix_dist.orchestration.exporting import exporting_training
from hydramix_dist.store import Store
from hydramix_dist.store.journal import Journal
from hydramix_dist.store.run import digest
from hydramix_dist.telemetry import JsonlSink, Recorder, Sink
from hydramix_dist.training.classifier import ClassifierInputs, train_classifier
from hydramix_dist.training.generator import generator_identity, train_generator
from hydramix_dist.training.group import Alone, Group, together
from hydramix_dist.training.loop import Context, prepare_device

Progress = Callable[[int, int], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class GeneratorTask:
    """Train one generator on a subset (rows of the train split) into a folder."""

    kind: ClassVar[str] = "generator"
    name: str
    data: Reference
    folder_url: str
    rows: tuple[int, ...]
    seed: int
    settings: GeneratorSettings
    runtime: RuntimeSettings
    run_name: str | None  # of the run that it is, or is part of; None: its metrics are not exported

    def segment_maps(self) -> set[tuple[int, SegmentSettings]]:
        """Return the sides and settings of the segment maps it takes from the data set."""
        return {(self.settings.network.side, self.settings.segments)}

    def identity(self) -> dict[str, Any]:
        """Return what makes this run this one and no other."""
        dataset = dataset_of(self.data)
        ids = [dataset.ids("train")[row] for row in self.rows]
        return generator_identity(dataset.fingerprint, ids, self.seed, self.settings)

    def run(
        self, progress: Progress, should_stop: ShouldStop, group: Group | None = None, sinks: Sequence[Sink] = ()
    ) -> dict[str, Any]:
        """Return the training's result; with a group, as one of its processes. Errors as in `train_in_folder`.

        Records go to `sinks` as well as into the folder.
        """
        group = group or Alone(prepare_device(self.runtime))
        labels = {"run": self.run_name or "", "role": self.kind}
        with _context(self, labels, progress, should_stop, group, sinks) as (context, exported):
            shots = together(group, self._shots)
            _introduce(self, context.group, exported)
            return train_generator(shots, self.settings, self.seed, self.identity(), self.data.url, context)

    def _shots(self) -> ShotSet:
        return load_shots(dataset_of(self.data), self.rows, self.settings.network.side, self.settings.segments)


@dataclass(frozen=True)
class ClassifierTask:
    """Train one arm's classifier on a subset, with mixes of a finished generator where the arm has one."""

    kind: ClassVar[str] = "classifier"
    name: str
    data: Reference
    folder_url: str
    arm: str
    shots: int
    rows: tuple[int, ...]
    validation_rows: tuple[int, ...]
    test_rows: tuple[int, ...]  # none while settings are searched
    seed: int
    method: ArmSettings
    settings: ClassifierSettings
    runtime: RuntimeSettings
    generator_url: str | None
    generator_key: str | None
    run_name: str | None  # of the run that it is, or is part of; None: its metrics are not exported

    def segment_maps(self) -> set[tuple[int, SegmentSettings]]:
        """Return the sides and settings of the segment maps it takes from the data set, a generator's aside."""
        pixels = self.method.pixels
        return {(self.settings.side, SegmentSettings())} if pixels is not None and needs_segments(pixels) else set()

    def run(
        self, progress: Progress, should_stop: ShouldStop, group: Group | None = None, sinks: Sequence[Sink] = ()
    ) -> dict[str, Any]:
        """Return the training's result; with a group, as one of its processes. Errors as in `train_in_folder`.

        Records go to `sinks` as well as into the folder.
        """
        own = group or Alone(prepare_device(self.runtime))
        labels = {"run": self.run_name or "", "role": self.kind, "arm": self.arm}
        with _context(self, labels, progress, should_stop, own, sinks) as (context, exported):
            inputs = together(own, lambda: self._inputs(own.device))
            _introduce(self, own, exported)
            return train_classifier(inputs, self.settings, self.seed, self.identity(), self.data.url, context)

    def _inputs(self, device: torch.device) -> ClassifierInputs:
        side = self.settings.side
        return ClassifierInputs(
            shots=load_shots(dataset_of(self.data), self.rows, side, None),
            augmentation=self.method.augmentation,
            mixer=self._mixer(device),
            test=_held_out(self.data, "test", self.test_rows, side) if self.test_rows else None,
            validation=_held_out(self.data, "train", self.validation_rows, side) if self.validation_rows else None,
        )

    def identity(self) -> dict[str, Any]:
        """Return what makes this run this one and no other."""
        dataset = dataset_of(self.data)
        train, test = dataset.ids("train"), dataset.ids("test")
        return {
            "data": dataset.fingerprint,
            "classes": list(dataset.classes),
            "stored_side": dataset.side,
            "fit": dataset.manifest.fit,
            "arm": self.arm,
            "shots": self.shots,
            "seed": self.seed,
            "subset": [train[row] for row in self.rows],
            "validation": [train[row] for row in self.validation_rows],
            "test": digest([test[row] for row in self.test_rows]),
            "method": dump(self.method),
            "generator": self.generator_key,
            "settings": dump(self.settings),
        }

    def _mixer(self, device: torch.device) -> Mixer | None:
        pixels = self.method.pixels
        generator: Generator | PixelMixing
        if self.generator_url is not None:
            trained = load_generator(Store(self.generator_url))
            generator = placed(trained.network, device, channels_last=self.runtime.channels_last)
            side, segments, mix = trained.settings.network.side, trained.settings.segments, trained.settings.mix
        elif pixels is not None:
            side, segments, mix = self.settings.side, SegmentSettings(), pixels
            generator = PixelMixing(side)
        else:
            return None
        shots = load_shots(dataset_of(self.data), self.rows, side, segments if needs_segments(mix) else None)
        bf16 = self.runtime.precision == "bf16"
        return Mixer(generator, shots.to(device), mix, self.seed, self.method.augmentation, bf16=bf16)


Task = GeneratorTask | ClassifierTask


@contextlib.contextmanager
def _context(
    task: Task,
    labels: dict[str, str],
    progress: Progress,
    should_stop: ShouldStop,
    group: Group,
    sinks: Sequence[Sink],
) -> Iterator[tuple[Context, Recorder]]:
    """Yield what surrounds a training, and a recorder to the exporter alone.

    Of several processes, rank 0 alone records and tells its progress.
    """
    store = Store(task.folder_url)
    with contextlib.ExitStack() as stack:
        exported = stack.enter_context(exporting_training(task, labels, group))
        if group.rank != 0:
            silent = Recorder([], **labels)
            yield Context(group, store, silent, task.runtime, lambda images, total: None, should_stop), silent
            return
        journal = stack.enter_context(Journal(store, "metrics.jsonl"))
        recorder = Recorder([JsonlSink(journal.write), *exported, *sinks], **labels)
        context = Context(group, store, recorder, task.runtime, progress, should_stop)
        yield context, Recorder(exported, **labels)


def _introduce(task: Task, group: Group, exported: Recorder) -> None:
    """Tell what runs: once its data set is open, which may take as long as the store lets it."""
    data, device = dataset_of(task.data).fingerprint[:12], group.device.type
    about = {"data": data, "device": device, "precision": task.runtime.precision, "version": __version__}
    exported.record(0, {"run_info": 1.0}, **about)


@lru_cache(maxsize=2)
def dataset_of(data: Reference) -> Dataset:
    """Return the data set, opened once in a process."""
    return data.open()


@lru_cache(maxsize=4)
def _held_out(data: Reference, split: str, rows: tuple[int, ...], side: int) -> HeldOut:
    return load_held_out(dataset_of(data), split, rows, side)
