"""Step time of the generator's training over 2 workers: DeepSpeed stages 0 to 3 against plain torch DDP.

All five run in the same two worker processes and take turns, one step each a round: same networks, phases and data, at
64 x 64 pixels with 16 mixes a worker. A step ends when both workers have ended it. The workers are Ray Train's, started
as `hydramix train` starts them; with --no-ray they are bare processes, which shows what Ray's own processes take of the
machine. Goals: stages 0 to 2 at most 1.10 times plain DDP, stage 3 at most 1.35 times.

Run: `python benchmarks/distributed_step.py [--no-ray]` (three minutes on two cores that do nothing else).
"""

from typing import Any

import common
import torch
import torch.distributed as dist
import workers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.schema import AdamSettings, SgdSettings
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.engine import Engine, TorchEngine

PLAIN = "torch DDP"
GOALS = {0: 1.10, 1: 1.10, 2: 1.10, 3: 1.35}  # times plain DDP
WARM_UP = 3  # stage 3 gathers layer by layer until it has seen the same order twice


class DdpEngine(TorchEngine):
    """A model in torch's DistributedDataParallel, with torch's optimizer: what one would write without this package."""

    def __init__(self, module: nn.Module, optimizer: AdamSettings | SgdSettings) -> None:
        # In plain order, as DeepSpeed has them: channels-last weights make DDP 3 % slower on a CPU.
        super().__init__(module.to(memory_format=torch.contiguous_format), optimizer)  # type: ignore[call-overload]
        self._parallel = DistributedDataParallel(module)

    def __call__(self, *inputs: Any) -> Any:
        return self._parallel(*inputs)

    def backward(self, loss: Tensor, share: float) -> None:
        super().backward(loss, share * dist.get_world_size())  # DDP averages


class DdpGroup(DeepSpeedGroup):
    """The same processes with `DdpEngine`; each looks at its own losses alone."""

    def engine(self, module: nn.Module, optimizer: AdamSettings | SgdSettings, state: EngineState | None) -> Engine:
        return DdpEngine(module, optimizer)

    def sum(self, values: Tensor) -> Tensor:
        return values


def measure(micro_batch: int, width: int, precision: str, repeats: int) -> dict[str, common.Times]:
    """Return this rank's times of each variant, in milliseconds."""
    groups = {PLAIN: DdpGroup({}, workers.CPU)} | {f"stage {stage}": workers.sharded(stage) for stage in GOALS}
    steps = {
        name: together(workers.one_step(workers.generator_training(group, micro_batch, width, precision), group))
        for name, group in groups.items()
    }
    return common.interleaved(steps, repeats, workers.CPU, WARM_UP)


def together(step: common.Step) -> common.Step:
    """Return the step, ended on all ranks."""

    def ended(number: int) -> None:
        step(number)
        dist.barrier()

    return ended


def main() -> None:
    """Measure, and print a table and a JSON line."""
    command = common.parser(__doc__, repeats=5)
    command.add_argument("--micro-batch", type=int, default=16, help="mixes a worker (default 16)")
    command.add_argument("--width", type=int, default=64, help="of generator and discriminator (default 64)")
    command.add_argument("--precision", default="bf16", choices=("bf16", "fp32"), help="(default bf16)")
    command.add_argument("--no-ray", action="store_true", help="bare processes instead of Ray Train's workers")
    arguments = command.parse_args()
    run = (arguments.micro_batch, arguments.width, arguments.precision, arguments.repeats)
    times = (workers.on_ranks if arguments.no_ray else workers.on_ray)(2, measure, *run)[0]

    ratios = {name: taken.over(times[PLAIN]) for name, taken in times.items()}
    rows = [
        {
            "engine": name,
            "ms": common.quartiles(times[name].wall, 0),
            "CPU ms of rank 0": common.quartiles(times[name].cpu, 0),
            "times DDP": common.quartiles(ratios[name].wall, 3),
            "by CPU time": common.quartiles(ratios[name].cpu, 3),
            "goal": f"{GOALS[int(name[-1])]:.2f}" if name != PLAIN else "",
        }
        for name in times
    ]
    where = "bare processes" if arguments.no_ray else "Ray Train workers"
    title = f"{arguments.micro_batch} mixes a worker, width {arguments.width}, {arguments.precision}, 2 {where}"
    common.show(f"{title}, one thread each", rows)
    common.record("distributed_step", workers=where, ms=times, ratio=ratios, goals=GOALS)


if __name__ == "__main__":
    main()
