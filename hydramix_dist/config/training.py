"""The settings of one training by itself, as `hydramix train` takes them; ready ones lie in `configs/`."""

from typing import Annotated

from pydantic import Field, model_validator

from hydramix_dist.config.base import Count, Seed, Settings
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import (
    Augmentation,
    ClassifierSettings,
    GeneratorSettings,
    MixSettings,
    RuntimeSettings,
)


class TrainingSettings(Settings):
    """What every training by itself has: images, subset, machine."""

    data: Annotated[
        str | None, Field(description="folder or archive of class folders, or an imported set; null: built-in photos")
    ] = None
    shots: Annotated[Count, Field(description="N, labelled images a class")] = 5
    seed: Annotated[Seed, Field(description="draws the subset and everything random in the training")] = 0
    validation: Annotated[float, Field(ge=0, lt=1, description="share of the N-shot subset held out; needs N >= 5")] = (
        0.0
    )
    runtime: RuntimeSettings = RuntimeSettings()
    distributed: DistributedSettings = DistributedSettings()

    @model_validator(mode="after")
    def _validation_fits(self) -> "TrainingSettings":
        if self.validation and self.shots < 5:
            raise ValueError(f"a validation part needs at least 5 images a class, shots is {self.shots}")
        return self


class GeneratorTrainingSettings(TrainingSettings):
    """A generator by itself: `hydramix train generator`."""

    generator: GeneratorSettings = GeneratorSettings()


class ClassifierTrainingSettings(TrainingSettings):
    """A classifier by itself: `hydramix train classifier`."""

    test_limit: Annotated[int | None, Field(ge=1, description="test images used, evenly over classes; null: all")] = (
        None
    )
    augmentation: Annotated[Augmentation, Field(description="crop and flip, or TrivialAugment before them")] = "basic"
    generator_run: Annotated[
        str | None,
        Field(
            description="folder of a finished generator run on the same subset, whose mixes are seen too; null: none"
        ),
    ] = None
    pixels: Annotated[MixSettings | None, Field(description="mixes of pixels instead of a generator's; null: none")] = (
        None
    )
    classifier: ClassifierSettings = ClassifierSettings()

    @model_validator(mode="after")
    def _mixes_have_one_source(self) -> "ClassifierTrainingSettings":
        if self.generator_run is not None and self.pixels is not None:
            raise ValueError(
                "generator_run and pixels are both given; mixes come from one of them: set the other to null"
            )
        return self
