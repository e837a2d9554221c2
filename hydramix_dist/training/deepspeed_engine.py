"""Several processes for one training: DeepSpeed shards optimizer, gradients and weights over them (ZeRO stages 0 to 3).

The only module that knows DeepSpeed. Its own checkpoints are not used: they are pickles bound to stage and number of
ranks. `full_state` gathers everything whole and by name, and an engine of any stage and size is made from that.

Legend: R ranks.
"""

import contextlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.deepspeed import engine_config
from hydramix_dist.config.schema import AdamSettings, SgdSettings
from hydramix_dist.training.engine import Engine, gradient_norm, make_optimizer
from hydramix_dist.training.stopwatch import Stopwatch

T = TypeVar("T")


class DeepSpeedGroup:
    """The processes that `torch.distributed` has brought together, with DeepSpeed engines."""

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        """Take what `read_deepspeed` gave, and this process's device. `torch.distributed` must be initialised."""
        _prepare(device)
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.preparing = Stopwatch(device)
        self._config = config

    @property
    def description(self) -> dict[str, str | int]:
        """Return the number of processes, and DeepSpeed with its stage and version."""
        stage, version = self._config["zero_optimization"]["stage"], importlib.metadata.version("deepspeed")
        return {"workers": self.world_size, "engine": f"deepspeed-zero{stage}", "deepspeed": version}

    def engine(self, module: nn.Module, optimizer: AdamSettings | SgdSettings, state: EngineState | None) -> Engine:
        """Return a DeepSpeed engine around a model that lies on the device, the same model on all ranks.

        Raises UserError where the state belongs to another model.
        """
        return DeepSpeedEngine(module, optimizer, state, self._config)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, same shape, on the device."""
        total = values.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """Return the equally shaped tensors of all ranks, [R, ...], on the device, on every rank."""
        own = rows.detach().to(self.device).contiguous()
        all_R = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(all_R, own)
        return torch.stack(all_R)

    def exchange(self, value: T) -> list[T]:
        """Return every rank's plain value, in the order of ranks, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


class DeepSpeedEngine:
    """One model whose optimizer, gradients or weights are sharded over all ranks, as the stage says."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: AdamSettings | SgdSettings,
        state: EngineState | None,
        config: Mapping[str, Any],
    ) -> None:
        """Take the model, on its device, with the state loaded into it, and the state's moments into the optimizer.

        Raises UserError where the state belongs to another model.
        """
        import deepspeed

        # Weights are loaded before DeepSpeed sees them: later it holds copies that would stay behind.
        if state is not None:
            state.check_fits({name: tuple(t.shape) for name, t in module.state_dict().items()}, "the checkpoint")
            module.load_state_dict(dict(state.weights))
        # DeepSpeed broadcasts weights as bytes, which channels-last ones cannot be seen as, and its flat buffers hold
        # them in plain order anyway. Images keep their order, and the convolutions follow the images.
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the stubs lack it
        self._module = module
        self._step = 0 if state is None else state.step
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._optimizer = make_optimizer(list(self._parameters.values()), optimizer)
        self._measuring = False
        self._norms: list[Tensor] = []  # of the gradients that the optimizer is given in one step
        self._optimizer.register_step_pre_hook(self._note_gradients)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=engine_config(config))
        self._stage = int(self._engine.zero_optimization_stage())
        self._passed = False
        if state is not None and state.moments:
            self._load_moments(state)

    @property
    def module(self) -> nn.Module:
        """Return the bare model."""
        return self._module

    def __call__(self, *inputs: Any) -> Any:
        """Return the model's outputs."""
        self._passed = True
        return self._engine(*inputs)

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of `share` times `loss`, once for what the engine was called for since the last time."""
        # Stage 3 tells first gradients from further ones by the calls: a second backward would replace the first.
        if not self._passed:
            raise RuntimeError("backward() without a call of the engine since the last backward()")
        self._passed = False
        # DeepSpeed averages over ranks; shares sum to 1 over all ranks.
        self._engine.backward(loss * (share * dist.get_world_size()), scale_wrt_gas=False)

    def step(self, lr: float, *, measured: bool = False) -> Tensor | float | None:
        """Apply the gradients, summed over all ranks, at rate `lr` and clear them; return their norm if `measured`.

        Raises FloatingPointError on all ranks where DeepSpeed left the step out for a gradient that is not finite.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._measuring, self._norms = measured, []
        self._engine.step()
        if not self._engine.was_step_applied():
            raise FloatingPointError(f"step {self._step}: a gradient is not finite; the step was not taken")
        self._step += 1
        return self._gradient_norm() if measured else None

    def _note_gradients(self, *_: Any) -> None:
        if self._measuring:
            learning = (p for group in self._optimizer.param_groups for p in group["params"])
            self._norms.append(gradient_norm(learning))

    def _gradient_norm(self) -> Tensor | float | None:
        """Return the norm of the last step's gradients, as the optimizer saw them: summed over ranks, and whole."""
        if self._stage == 3:  # where it steps group by group, and DeepSpeed measures anyway
            norm: float | None = self._engine.get_global_grad_norm()
            return norm
        (own,) = self._norms
        if self._stage > 0:  # of this rank's part alone
            square = own.square()
            dist.all_reduce(square)
            own = square.sqrt()
        return own

    def full_state(self) -> EngineState | None:
        """Return copies of weights, moments and step count, whole and in fp32, on the CPU; None but on rank 0.

        All ranks gather, one tensor at a time, and only rank 0 keeps what it gets.
        """
        weights: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            with self._gathered(tensor) as whole:
                _keep(weights, name, whole)
        with self._all_learning():
            for moment in self._moment_names():
                kept = moments.setdefault(moment, {})
                for name, parameter in self._parameters.items():
                    _keep(kept, name, self._moment(parameter, moment))
        return EngineState(weights, moments, self._step) if dist.get_rank() == 0 else None

    @contextlib.contextmanager
    def _gathered(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield a weight or buffer, whole."""
        if self._stage < 3:  # every rank has all weights
            yield tensor
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):  # does nothing for a buffer
            yield tensor

    @contextlib.contextmanager
    def _all_learning(self) -> Iterator[None]:
        """Let all parameters learn meanwhile: stage 3 has no moments for those that another phase has frozen."""
        frozen = [p for p in self._parameters.values() if not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def _moment_names(self) -> list[str]:
        """Return the names of the optimizer's moments, none before its first step.

        Sorted: gathering is a collective, and the optimizer holds loaded moments in the order in which they were read.
        """
        first: dict[str, Any] = next(iter(self._optimizer.state.values()), {})
        return sorted(name for name, value in first.items() if name != "step" and value is not None)

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """Return one moment of one parameter, whole."""
        from deepspeed.utils import safe_get_full_optimizer_state

        held: Tensor = (
            self._optimizer.state[parameter][moment]
            if self._stage == 0
            else safe_get_full_optimizer_state(parameter, moment)
        )
        return held

    def _load_moments(self, state: EngineState) -> None:
        """Put the state's moments into the optimizer, which has none before its first step."""
        for held in self._held_by_optimizer():
            self._optimizer.state[held] = {moment: torch.zeros_like(held.detach()) for moment in state.moments}
            if isinstance(self._optimizer, torch.optim.Adam):
                self._optimizer.state[held]["step"] = torch.tensor(float(state.step), device=held.device)
        if self._stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()  # what DeepSpeed does at the first step
        with self._all_learning():
            for moment, tensors in state.moments.items():
                for name, parameter in self._parameters.items():
                    self._set_moment(parameter, moment, tensors[name])

    def _held_by_optimizer(self) -> list[Tensor]:
        """Return the tensors that the optimizer steps: this rank's part of all weights in one, or the weights."""
        if self._stage == 0:
            return list(self._parameters.values())
        sharded = self._engine.optimizer
        held: list[Tensor] = (
            sharded.fp32_partitioned_groups_flat if self._stage == 3 else sharded.single_partition_of_fp32_groups
        )
        return held

    def _set_moment(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._stage == 0:
            self._optimizer.state[parameter][moment].copy_(whole)
        elif self._stage < 3:
            safe_set_full_optimizer_state(parameter, whole, moment)
        else:
            # The setter for whole values fails on one rank where their number is no multiple of the number of ranks.
            safe_set_local_optimizer_state(parameter, _part(whole, dist.get_rank(), dist.get_world_size()), moment)


def _part(whole: Tensor, rank: int, world_size: int) -> Tensor:
    """Return a rank's part of a tensor, flat; all parts have one size, the last ones filled up with zeros."""
    flat = whole.flatten()
    size = -(-flat.numel() // world_size)
    own = flat[rank * size : (rank + 1) * size]
    return torch.cat((own, own.new_zeros(size - own.numel())))


def _keep(kept: dict[str, Tensor], name: str, whole: Tensor) -> None:
    if dist.get_rank() == 0:
        kept[name] = whole.detach().to("cpu", copy=True)


def _prepare(device: torch.device) -> None:
    """Load DeepSpeed for a device."""
    # Read when DeepSpeed is imported and when an engine is made; else it warns, or takes a GPU of its own choice.
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device() if device.type == "cuda" else 0)
    import deepspeed.ops

    # DeepSpeed calls two collectives by names that torch has since renamed; torch says so at every engine's first step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # On a CPU it would compile a faster collective, which takes a minute, or fails where there is no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
