"""What the drop-in transform refuses, and where it looks for the generator of a run."""

import json

import pytest
import tiny
import torch

from hydramix_dist.errors import UserError
from hydramix_dist.mixing.transform import HydraMixTransform
from hydramix_dist.store import Store


@pytest.mark.parametrize("shape", [(4, 3, 32, 24), (4, 1, 32, 32), (3, 32, 32)])
def test_images_that_are_not_square_or_not_in_colour_are_said(shape: tuple[int, ...]) -> None:
    mix = HydraMixTransform(tiny.trained_generator(), tiny.shot_set(), share=0.0)
    with pytest.raises(UserError, match="square colour images"):
        mix(torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape[0], dtype=torch.int64))


def test_a_classifiers_generator_lies_beside_it_on_object_stores_too() -> None:
    record = {"schema_version": 1, "kind": "classifier", "identity": {"generator": "0123abcd"}, "facts": {}}
    for url in ("memory://transform/pilot/classifiers/hydramix-n5-seed0", "memory://transform/classifiers/alone"):
        Store(url).put("run.json", json.dumps(record).encode())
        pilot = url.partition("/classifiers")[0].removeprefix("memory://")
        with pytest.raises(UserError, match=f"{pilot}/generators/0123abcd holds no run"):
            HydraMixTransform.from_run(url)
    Store("memory://transform/copied").put("run.json", json.dumps(record).encode())
    with pytest.raises(UserError, match="has no generator; give the folder"):
        HydraMixTransform.from_run("memory://transform/copied")


@pytest.mark.parametrize("labels", [torch.zeros(3).long(), torch.zeros(4, 1).long(), torch.zeros(4)])
def test_labels_of_another_form_are_said(labels: torch.Tensor) -> None:
    mix = HydraMixTransform(tiny.trained_generator(), tiny.shot_set(), share=1.0)
    with pytest.raises(UserError, match="one whole number for each of the 4 images"):
        mix(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), labels)
    with pytest.raises(UserError, match="at least one"):
        mix(torch.zeros(0, 3, 32, 32), torch.zeros(0).long())


def test_the_callers_generator_stays_as_it_is() -> None:
    generator = tiny.trained_generator()
    before = [parameter.data_ptr() for parameter in generator.network.parameters()]
    HydraMixTransform(generator, tiny.shot_set(), share=1.0)
    assert [parameter.data_ptr() for parameter in generator.network.parameters()] == before
