"""What Ray Tune starts: a process that carries out one training of a sweep after another. Imports Ray at its top."""

import logging
import os
from typing import Any

import ray
import torch
from ray import tune

from hydramix_dist.orchestration.sweep.room import limit_device_memory
from hydramix_dist.orchestration.sweep.work import HangingError, Order, Running

NEWS_SECONDS = 10.0  # a training reports at most once in this time, but for validations and its end


class TrainingTrial(tune.Trainable):  # type: ignore[misc]
    """A Tune trial is one training; the process is used again for the next one.

    A training begins with the first step: Tune sets a process up for a trial that it then gives to another one, which
    is free before.
    """

    _office: Any
    _key: str
    _running: Running | None
    _hanging: bool

    def setup(self, config: dict[str, Any], office: Any = None, resources: Any = None) -> None:
        """Take the key of a training that the office has an order for."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        if resources:
            limit_device_memory(resources)
        self._office, self._key, self._running, self._hanging = office, config["key"], None, False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what is under way, and take the key of another training."""
        self._end()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # a neighbour may need what the last training took
        self._key = new_config["key"]
        return True

    def step(self) -> dict[str, Any]:
        """Return the news, plain values; the first time, begin. Raises HangingError."""
        if self._running is None:
            order: Order = ray.get(self._office.take.remote(self._key))
            self._running = Running(order)
        try:
            news = self._running.news(NEWS_SECONDS)
        except HangingError:
            self._hanging = True
            raise
        return {"news": vars(news), "done": news.outcome != "running"}

    def cleanup(self) -> None:
        """End: what is under way saves first."""
        if self._hanging:  # a thread that hangs cannot be ended but with its process
            os._exit(1)
        self._end()

    def _end(self) -> None:
        if self._running is not None and not self._running.stop():
            os._exit(1)
        self._running = None


class Office:
    """An actor on the driver's node: orders by key. Tune itself carries keys alone, for it copies what it carries."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}

    def post(self, key: str, order: Order) -> None:
        """Driver: leave an order."""
        self._orders[key] = order

    def take(self, key: str) -> Order:
        """Trial: take it."""
        return self._orders[key]

    def drop(self, key: str) -> None:
        """Driver: forget it."""
        self._orders.pop(key, None)
