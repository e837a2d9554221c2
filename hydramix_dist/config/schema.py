"""The settings of every training and of the pilot, as frozen typed models.

Defaults are the method's published setting where one is known, otherwise "our choice"; `docs/method.md`
says which is which. Ready combinations lie in `configs/`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from hydramix_dist.config.base import Count, Seed, Settings, Share, Weight
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.errors import nearest

MaskKind = Literal["whole", "grid", "segments-independent", "segments-contiguous", "chimera-grid", "chimera-segments"]
Augmentation = Literal["basic", "trivial"]


class SegmentSettings(Settings):
    """Felzenszwalb's segmentation, run once per image on the unaugmented image."""

    scale: Annotated[float, Field(gt=0, description="larger value: larger segments")] = 60.0
    min_size: Annotated[int, Field(ge=1, description="smallest segment, pixels")] = 60
    sigma: Annotated[float, Field(ge=0, description="width of the smoothing before segmentation, pixels")] = 0.8


class MaskSettings(Settings):
    """How the mask over the K sources is drawn and brought to feature resolution."""

    kind: Annotated[MaskKind, Field(description="rule that gives cells to sources")] = "segments-independent"
    assign: Annotated[
        Literal["one", "shares"], Field(description="a region comes from one source, or from random shares of all K")
    ] = "one"
    downsample: Annotated[
        Literal["nearest", "area"], Field(description="hard one-hot cells, or box averages in [0,1]")
    ] = "nearest"
    grid: Annotated[int, Field(ge=1, le=256, description="cells a side of the grid kinds")] = 4

    @model_validator(mode="after")
    def _shares_are_independent(self) -> "MaskSettings":
        if self.assign == "shares" and self.kind not in ("whole", "grid", "segments-independent"):
            raise ValueError(f"assign 'shares' is defined for whole, grid and segments-independent, not '{self.kind}'")
        return self


class MixSettings(Settings):
    """Which images are mixed and under which mask."""

    count: Annotated[int, Field(ge=1, le=255, description="K, images in one mix; a record keeps sources as bytes")] = 3
    self_pairs: Annotated[
        bool, Field(description="a partner may be the anchor itself (ChimeraMix), instead of K different images")
    ] = False
    mask: MaskSettings = MaskSettings()

    @model_validator(mode="after")
    def _chimera_is_two(self) -> "MixSettings":
        if self.mask.kind.startswith("chimera") and self.count != 2:
            raise ValueError(f"mask kind '{self.mask.kind}' is defined for count 2, not {self.count}")
        return self


class GeneratorNetworkSettings(Settings):
    """Shape of encoder and decoder."""

    side: Annotated[int, Field(ge=16, description="image side the generator works at, pixels")] = 64
    width: Annotated[int, Field(ge=1, description="channels after the first convolution")] = 64
    downsamplings: Annotated[int, Field(ge=1, le=4, description="stride-2 stages; channels double at each")] = 2
    blocks: Annotated[int, Field(ge=0, description="residual blocks in all")] = 4
    mix_after: Annotated[
        str, Field(description="layer after which features are fused: stem, down1.., block1.., or up1..")
    ] = "block2"
    decoder_blocks: Annotated[
        Literal["apply", "skip"], Field(description="'skip': the released code, whose decoder bypasses its blocks")
    ] = "apply"

    def layer_names(self) -> list[str]:
        """Return the names of the generator's layers in order; features can be fused after any but the last."""
        return [
            "stem",
            *(f"down{i + 1}" for i in range(self.downsamplings)),
            *(f"block{i + 1}" for i in range(self.blocks)),
            *(f"up{i + 1}" for i in range(self.downsamplings)),
            "head",
        ]

    @model_validator(mode="after")
    def _consistent(self) -> "GeneratorNetworkSettings":
        allowed = self.layer_names()[:-1]
        if self.mix_after not in allowed:
            raise ValueError(f"mix_after '{self.mix_after}' is none of {', '.join(allowed)}")
        factor = max(8, 2**self.downsamplings)  # 8: three pyramid levels of the perceptual loss
        if self.side % factor:
            raise ValueError(f"side {self.side} is not divisible by {factor}")
        return self


class DiscriminatorSettings(Settings):
    """The patch discriminator and what it is shown."""

    width: Annotated[int, Field(ge=1, description="channels after the first convolution")] = 64
    score: Annotated[
        Literal["sigmoid", "linear"], Field(description="least squares on a sigmoid (released) or on the bare score")
    ] = "linear"
    augment: Annotated[
        bool, Field(description="random differentiable augmentation of each real and mixed image before D")
    ] = True
    real_per_batch: Annotated[
        bool, Field(description="one draw a step picks the real source (released), instead of one a sample")
    ] = False


class LossSettings(Settings):
    """Weights of the generator's loss terms."""

    reconstruction: Annotated[Weight, Field(description="mean squared error between reconstructions and sources")] = (
        1000.0
    )
    perceptual: Annotated[Weight, Field(description="L1 between their Laplacian pyramids, no pretrained network")] = 1.0
    adversarial: Annotated[Weight, Field(description="the discriminator's judgement of the mix")] = 1.0


class AdamSettings(Settings):
    """Adam, for generator and discriminator alike."""

    lr: Annotated[float, Field(gt=0, description="rate before the first milestone")] = 2e-4
    beta1: Annotated[Share, Field(description="memory of the mean gradient")] = 0.5
    beta2: Annotated[Share, Field(description="memory of the squared gradient")] = 0.999


class GeneratorSettings(Settings):
    """One generator training. All of it, with the data, is part of the generator's key."""

    network: GeneratorNetworkSettings = GeneratorNetworkSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    mix: MixSettings = MixSettings()
    segments: SegmentSettings = SegmentSettings()
    loss: LossSettings = LossSettings()
    optimizer: AdamSettings = AdamSettings()
    batch: Annotated[int, Field(ge=1, description="mixes a step, over all workers")] = 64
    group: Annotated[
        int | None,
        Field(
            ge=1,
            description="mixes that share as many images of one class: a divisor of batch, at least mix.count; null: "
            "each mix has its own sources",
        ),
    ] = None
    images: Annotated[int, Field(ge=1, description="length of the training: mixes seen")] = 1_000_000
    milestones: Annotated[
        tuple[Share, ...], Field(description="shares of the training at which the rate drops", strict=False)
    ] = (0.3, 0.6, 0.8)
    decay: Annotated[float, Field(gt=0, le=1, description="factor on the rate at each milestone")] = 0.2

    @model_validator(mode="after")
    def _discriminator_fits(self) -> "GeneratorSettings":
        # Four stride-2 layers; instance norm needs more than one cell after them.
        if self.network.side < 32:
            raise ValueError(f"network.side {self.network.side} is below 32, the least the discriminator can take")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> "GeneratorSettings":
        if self.group is None:
            return self
        if self.batch % self.group:
            raise ValueError(f"batch {self.batch} is not a multiple of group {self.group}; choose one, or group null")
        if self.group < self.mix.count:
            raise ValueError(
                f"group {self.group} is below mix.count {self.mix.count}, and a mix takes its images from its group; "
                f"set group to null or to a divisor of batch {self.batch} from {self.mix.count} on"
            )
        if self.mix.self_pairs:
            raise ValueError("mix.self_pairs needs group null: in a group, a partner is another image of the group")
        return self


class SgdSettings(Settings):
    """SGD with Nesterov momentum and a cosine schedule to zero."""

    lr: Annotated[float, Field(gt=0, description="rate at the first step")] = 4.6e-3
    momentum: Annotated[Share, Field(description="Nesterov momentum")] = 0.9
    weight_decay: Annotated[Weight, Field(description="pull of every weight towards zero")] = 5.3e-3


class ClassifierSettings(Settings):
    """One classifier training."""

    network: Annotated[str, Field(description="wrn-DEPTH-WIDTH or resnet50")] = "wrn-16-8"
    dropout: Annotated[float, Field(ge=0, lt=1, description="inside the blocks of a wide ResNet")] = 0.3
    side: Annotated[int, Field(ge=16, description="image side the classifier works at, pixels")] = 32
    optimizer: SgdSettings = SgdSettings()
    batch: Annotated[int, Field(ge=2, description="images a step, over all workers")] = 10
    images: Annotated[int, Field(ge=2, description="length of the training: images seen")] = 1_000_000
    mix_share: Annotated[float, Field(ge=0, le=1, description="probability that a whole batch is mixed")] = 0.5
    mix_until: Annotated[Share, Field(description="share of the training after which no batch is mixed any more")] = 1.0
    batch_norm: Annotated[
        Literal["synchronised", "local"],
        Field(
            description="statistics over the whole batch of all workers, or over each worker's part (then the number "
            "of workers changes the results)"
        ),
    ] = "synchronised"

    @model_validator(mode="after")
    def _network_exists(self) -> "ClassifierSettings":
        if self.network != "resnet50":
            form = re.fullmatch(r"wrn-(\d+)-(\d+)", self.network)
            if form is None:
                raise ValueError(f"network '{self.network}' is not known: wrn-DEPTH-WIDTH (as wrn-16-8) or resnet50")
            depth, width = map(int, form.groups())
            if depth < 10 or (depth - 4) % 6 or width < 1:
                raise ValueError(
                    f"network '{self.network}' does not exist: the depth is one of 10, 16, 22, 28, 34, ... (6n + 4) "
                    "and the width at least 1"
                )
        return self


class RuntimeSettings(Settings):
    """How the machine is used; precision and threads change the last bits of the numbers."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU where there is one")] = "auto"
    precision: Annotated[Literal["bf16", "fp32"], Field(description="bf16: autocast, losses in fp32")] = "bf16"
    channels_last: Annotated[bool, Field(description="images and weights in NHWC order in memory")] = True
    compile: Annotated[bool, Field(description="torch.compile; resuming is then not bit-equal")] = False
    threads: Annotated[int, Field(ge=1, description="CPU threads of each process that trains")] = 1
    micro_batch: Annotated[
        int | None,
        Field(
            ge=1,
            description="samples computed at a time, where memory is small; null: a worker's whole part of a batch",
        ),
    ] = None
    checkpoints: Annotated[
        int, Field(ge=1, description="saves spread over a training; the test curve has as many points")
    ] = 5
    keep: Annotated[int, Field(ge=1, description="newest checkpoints kept")] = 2


class ArmSettings(Settings):
    """One method in a comparison: an augmentation, and a generator or none."""

    augmentation: Annotated[Augmentation, Field(description="crop and flip, or TrivialAugment before them")] = "basic"
    generator: Annotated[str | None, Field(description="key under `generators`; null: none is trained")] = None
    pixels: Annotated[
        MixSettings | None,
        Field(
            description="mixes of pixels instead of a generator's: keys as in `generators.<name>.mix`, segments with "
            "the default settings; null: none"
        ),
    ] = None
    classifier: Annotated[
        dict[str, Any],
        Field(description="classifier settings of this arm alone, keys as in `classifier`; `{images: 60000}`"),
    ] = {}


class PilotSettings(Settings):
    """The whole comparison: arms x shots x seeds on one data set."""

    shots: Annotated[tuple[Count, ...], Field(min_length=1, strict=False, description="N, labelled images a class")] = (
        5,
    )
    seeds: Annotated[
        tuple[Seed, ...], Field(min_length=1, strict=False, description="one subset and one training of every arm each")
    ] = (0, 1, 2)
    validation: Annotated[float, Field(ge=0, lt=1, description="share of the N-shot subset held out; needs N >= 5")] = (
        0.0
    )
    test_limit: Annotated[int | None, Field(ge=1, description="test images used, evenly over classes; null: all")] = (
        None
    )
    verdict: Annotated[bool, Field(description="false: too short to judge; the report says so")] = True
    generators: dict[str, GeneratorSettings] = {"hydramix": GeneratorSettings()}
    classifier: ClassifierSettings = ClassifierSettings()
    arms: Annotated[dict[str, ArmSettings], Field(min_length=1)] = {"baseline": ArmSettings()}
    runtime: RuntimeSettings = RuntimeSettings()
    distributed: DistributedSettings = DistributedSettings()
    concurrent: Annotated[
        int | None,
        Field(ge=1, description="trainings at a time; null: cores / threads; 1 on a GPU and with several workers each"),
    ] = None

    @model_validator(mode="after")
    def _consistent(self) -> "PilotSettings":
        for name, arm in self.arms.items():
            if not re.fullmatch(r"\w[\w.+=-]*", name):  # it names folders
                raise ValueError(f"arms has the name '{name}'; a name is of letters, digits and _ . + - =")
            if arm.generator is not None and arm.generator not in self.generators:
                known = ", ".join(self.generators) or "none"
                raise ValueError(f"arms.{name}.generator '{arm.generator}' is not under generators (known: {known})")
            if arm.generator is not None and arm.pixels is not None:
                raise ValueError(
                    f"arms.{name} has generator and pixels; an arm takes its mixes from one: set the other to null"
                )
            self.classifier_of(name)
        if self.validation and min(self.shots) < 5:
            raise ValueError(f"a validation part needs at least 5 images a class, shots has {min(self.shots)}")
        for key in ("shots", "seeds"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} lists a value twice: {values}")
        return self

    def mix_of(self, arm: str) -> MixSettings | None:
        """Return how an arm's mixes are drawn, its generator's or those of pixels; None: no mixing."""
        generator = self.arms[arm].generator
        return self.arms[arm].pixels if generator is None else self.generators[generator].mix

    def classifier_of(self, arm: str) -> ClassifierSettings:
        """Return the classifier settings of an arm: the common ones with its own changes. Raises ValueError."""
        tree = self.classifier.model_dump()
        for key, value in self.arms[arm].classifier.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
        try:
            return ClassifierSettings.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(("arms", arm, "classifier", *(str(part) for part in first["loc"])))
            if first["type"] == "extra_forbidden":
                known = SgdSettings.model_fields if len(first["loc"]) > 1 else ClassifierSettings.model_fields
                hint = nearest(str(first["loc"][-1]), known)
                raise ValueError(f"unknown key '{key}'{hint}; allowed here: {', '.join(sorted(known))}") from error
            raise ValueError(
                f"{key}: {first['msg'].removeprefix('Value error, ')} (given: {first['input']})"
            ) from error
