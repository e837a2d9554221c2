"""Finished models out of their run folders."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hydramix_dist.checkpoint import EngineState, load_newest, weights_digest
from hydramix_dist.config.load import build
from hydramix_dist.config.schema import ClassifierSettings, GeneratorSettings
from hydramix_dist.data.manifest import Fit
from hydramix_dist.errors import UserError
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.models.generator import Generator
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run, read_status


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator in evaluation mode on the CPU, its settings, the sha256 of its weights, and its run's identity."""

    network: Generator
    settings: GeneratorSettings
    weights_sha256: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier in evaluation mode on the CPU, its settings, class names, and how it wants images fitted."""

    network: nn.Module
    settings: ClassifierSettings
    classes: tuple[str, ...]
    stored_side: int
    fit: Fit


def load_generator(store: Store) -> TrainedGenerator:
    """Return the generator of a finished run. Raises UserError where the folder holds none, or an unfinished one."""
    identity, state = _finished(store, "generator")
    settings = build(GeneratorSettings, identity["settings"], store.path("run.json"))
    network = Generator(settings.network)
    _load(network, state, store)
    return TrainedGenerator(network.eval().requires_grad_(False), settings, weights_digest(state.weights), identity)


def load_classifier(store: Store) -> TrainedClassifier:
    """Return the classifier of a finished run. Raises UserError where the folder holds none, or an unfinished one."""
    identity, state = _finished(store, "classifier")
    settings = build(ClassifierSettings, identity["settings"], store.path("run.json"))
    network = build_classifier(settings, len(identity["classes"]))
    _load(network, state, store)
    return TrainedClassifier(
        network.eval().requires_grad_(False),
        settings,
        tuple(identity["classes"]),
        int(identity["stored_side"]),
        identity["fit"],
    )


def _finished(store: Store, kind: str) -> tuple[dict[str, Any], EngineState]:
    record = read_run(store)
    if record["kind"] != kind:
        raise UserError(f"{store.url} holds a {record['kind']} run, a {kind} run is needed")
    state = read_status(store).get("state")
    if state != "succeeded":
        raise UserError(f"the {kind} run in {store.url} is not finished (state: {state}); run its command again first")
    checkpoint = load_newest(store, weights_of=kind)
    if checkpoint is None:
        raise UserError(f"the {kind} run in {store.url} has no checkpoint")
    if checkpoint.fallbacks:  # older weights are not what this run is known to have ended with
        raise UserError(
            f"the last checkpoint of the {kind} run in {store.url} is damaged; delete its result.json and run its "
            "command again, it trains the last stretch anew"
        )
    return record["identity"], checkpoint.engines[kind]


def _load(network: torch.nn.Module, state: EngineState, store: Store) -> None:
    state.check_fits(
        {name: tuple(t.shape) for name, t in network.state_dict().items()}, f"the checkpoint in {store.url}"
    )
    network.load_state_dict(dict(state.weights))
