"""The plain torch engine: its full state is all there is, and steps from it are the steps that would have been."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hydramix_dist.checkpoint import EngineState, weights_digest
from hydramix_dist.config.schema import AdamSettings, RuntimeSettings, SgdSettings
from hydramix_dist.errors import UserError
from hydramix_dist.training.engine import TorchEngine
from hydramix_dist.training.loop import prepare_device

OPTIMIZERS = [AdamSettings(lr=0.01), SgdSettings(lr=0.01), SgdSettings(lr=0.01, momentum=0.0)]


def network(channels_last: bool = False) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    return net.to(memory_format=torch.channels_last) if channels_last else net


def loss_of(engine: TorchEngine, step: int) -> Tensor:
    x_BCHW = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    return engine.module(x_BCHW).square().sum()


def train(engine: TorchEngine, first: int, end: int) -> TorchEngine:
    for step in range(first, end):
        engine.backward(loss_of(engine, step), 1.0)
        engine.step(0.01 / (step + 1))
    return engine


def same(a: EngineState, b: EngineState) -> bool:
    return (
        weights_digest(a.weights) == weights_digest(b.weights)
        and a.moments.keys() == b.moments.keys()
        and all(weights_digest(a.moments[m]) == weights_digest(b.moments[m]) for m in a.moments)
        and a.step == b.step
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["adam", "sgd", "sgd-plain"])
def test_state_handed_over_equals_going_on(optimizer: AdamSettings | SgdSettings, channels_last: bool) -> None:
    undisturbed = train(TorchEngine(network(channels_last), optimizer), 0, 6)
    half = train(TorchEngine(network(channels_last), optimizer), 0, 2).full_state()
    files = half.files("net")
    resumed = train(
        TorchEngine(network(channels_last), optimizer, EngineState.from_files(files, "net", half.step)), 2, 6
    )
    assert same(undisturbed.full_state(), resumed.full_state())
    assert undisturbed.full_state().step == 6


def test_state_is_a_copy() -> None:
    engine = train(TorchEngine(network(), AdamSettings()), 0, 2)
    state = engine.full_state()
    before = weights_digest(state.weights), weights_digest(state.moments["exp_avg"])
    train(engine, 2, 4)
    assert before == (weights_digest(state.weights), weights_digest(state.moments["exp_avg"]))


def test_state_covers_every_parameter_and_buffer_in_full_precision() -> None:
    engine = train(TorchEngine(network(), AdamSettings()), 0, 1)
    state, module = engine.full_state(), engine.module
    assert state.weights.keys() == module.state_dict().keys()
    parameters = {name for name, _ in module.named_parameters()}
    assert state.moments.keys() == {"exp_avg", "exp_avg_sq"}
    assert all(moment.keys() == parameters for moment in state.moments.values())
    kinds = {name: t.dtype for name, t in state.weights.items()}
    assert {d for n, d in kinds.items() if "batches" not in n} == {torch.float32}
    assert kinds["1.num_batches_tracked"] == torch.int64


def test_step_applies_the_rate_it_is_given_and_clears_gradients() -> None:
    engine = TorchEngine(network(), SgdSettings(lr=123.0, momentum=0.0, weight_decay=0.0))
    engine.backward(loss_of(engine, 0), 1.0)
    linear = engine.module.get_submodule("4")
    assert isinstance(linear, nn.Linear) and linear.weight.grad is not None
    expected = linear.weight.detach() - 0.25 * linear.weight.grad
    engine.step(0.25)
    torch.testing.assert_close(linear.weight.detach(), expected)
    assert all(p.grad is None for p in engine.module.parameters())


def test_gradients_of_several_losses_add() -> None:
    def gradient(*losses: Callable[[TorchEngine], Tensor]) -> Tensor:
        engine = TorchEngine(network().eval(), SgdSettings())
        for loss in losses:
            engine.backward(loss(engine), 1.0)
        weight = engine.module.get_parameter("4.weight")
        assert weight.grad is not None
        return weight.grad

    first, second = (lambda e: loss_of(e, 0)), (lambda e: loss_of(e, 1))
    torch.testing.assert_close(gradient(first, second), gradient(first) + gradient(second))


def test_state_of_another_model_is_refused() -> None:
    state = TorchEngine(nn.Linear(3, 2), AdamSettings()).full_state()
    with pytest.raises(UserError, match=r"belongs to another model: weight '0\.bias'"):
        TorchEngine(network(), AdamSettings(), state)


def test_a_gpu_that_is_not_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also where there is one
    with pytest.raises(UserError, match="torch sees no GPU"):
        prepare_device(RuntimeSettings(device="cuda"))
