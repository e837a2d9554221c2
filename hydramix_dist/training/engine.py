"""What a training loop needs of a model and its optimizer, whoever shards them.

Loops talk to `Engine` alone. Here is the plain torch one; a sharded engine gathers its full state into the same form.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.schema import AdamSettings, SgdSettings


class Engine(Protocol):
    """One model with its optimizer. All ranks make the same calls in the same order."""

    @property
    def module(self) -> nn.Module:
        """Return the bare model, for losses that only pass through it and for evaluation."""

    def __call__(self, *inputs: Any) -> Any:
        """Return the model's outputs, for a loss that teaches it."""

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of `share` times `loss`; the shares of all pieces of a batch, over all ranks, sum to 1."""

    def step(self, lr: float, *, measured: bool = False) -> Tensor | float | None:
        """Apply the gradients, summed over all ranks, at rate `lr` and clear them.

        Return their norm if `measured`, which is asked of all ranks or of none.
        """

    def full_state(self) -> EngineState | None:
        """Return copies of weights, moments and step count, whole and in fp32, on the CPU; None but on rank 0."""


class TorchEngine:
    """Plain torch in one process."""

    def __init__(
        self, module: nn.Module, optimizer: AdamSettings | SgdSettings, state: EngineState | None = None
    ) -> None:
        """Take the model, on its device. A state is loaded into it before the optimizer is made.

        Raises UserError where the state belongs to another model.
        """
        if state is not None:
            state.check_fits({name: tuple(t.shape) for name, t in module.state_dict().items()}, "the checkpoint")
            module.load_state_dict(dict(state.weights))
        self._module = module
        self._step = 0 if state is None else state.step
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._optimizer = make_optimizer([p for _, p in self._named], optimizer)
        if state is not None:
            self._load_moments(state)

    @property
    def module(self) -> nn.Module:
        """Return the model itself."""
        return self._module

    def __call__(self, *inputs: Any) -> Any:
        """Return the model's outputs."""
        return self._module(*inputs)

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of `share` times `loss`."""
        (loss * share).backward()

    def step(self, lr: float, *, measured: bool = False) -> Tensor | None:
        """Apply the gradients at rate `lr` and clear them; return their norm if `measured`."""
        norm = gradient_norm(parameter for _, parameter in self._named) if measured else None
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return norm

    def full_state(self) -> EngineState:
        """Return copies of weights, moments and step count on the CPU."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self._module.state_dict().items()}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._named:
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                if moment != "step" and value is not None:
                    moments.setdefault(moment, {})[name] = value.detach().cpu().clone()
        return EngineState(weights, moments, self._step)

    def _load_moments(self, state: EngineState) -> None:
        for name, parameter in self._named:
            loaded = {
                moment: torch.empty_like(parameter).copy_(tensors[name])  # in the weight's own memory format
                for moment, tensors in state.moments.items()
                if name in tensors
            }
            if loaded and isinstance(self._optimizer, torch.optim.Adam):
                loaded["step"] = torch.tensor(float(state.step), device=parameter.device)
            if loaded:
                self._optimizer.state[parameter] = loaded


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients, a scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def make_optimizer(parameters: list[nn.Parameter], settings: AdamSettings | SgdSettings) -> torch.optim.Optimizer:
    """Return torch's own optimizer of that kind."""
    # fused: one kernel for all weights; torch has it on CPU and on CUDA.
    if isinstance(settings, AdamSettings):
        return torch.optim.Adam(parameters, settings.lr, (settings.beta1, settings.beta2), fused=True)
    return torch.optim.SGD(
        parameters,
        settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )
