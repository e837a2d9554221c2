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
    """A Tune trial is one training; the process is used again for the next one."""

    _running: Running
    _hanging: bool

    def setup(self, config: dict[str, Any], office: Any = None, resources: Any = None) -> None:
        """Begin the training that the office has under the trial's key."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        if resources:
            limit_device_memory(resources)
        self._office = office
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what is under way, and begin another training."""
        self._running.stop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # a neighbour may need what the last training took
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the news, plain values. Raises HangingError."""
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
        self._running.stop()

    def _begin(self, config: dict[str, Any]) -> None:
        self._hanging = False
        order: Order = ray.get(self._office.take.remote(config["key"]))
        self._running = Running(order)


class Office:
    """An actor on the driver's node: orders by key. Tune itself carries keys alone, for it copies what it carries."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}

    def post(self, key: str, order: Order) -> None:
        """Driver: leave an order."""
        self._orders[key] = order

    def take(self, key: str) -> Order:
        """Trial: take it.

        Perhaps once more: Tune gives a trial to a process that is free, though another is coming up for it.
        """
        return self._orders[key]

    def drop(self, key: str) -> None:
        """Driver: forget it."""
        self._orders.pop(key, None)
