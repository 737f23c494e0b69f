"""Every option of an experiment: its type, range, default and meaning in one place.

The meaning stands below each field and becomes its description in `configs/schema.json`. Field
names are the keyword arguments of the builders that take them. Defaults are the paper's values for
Cityscapes (section 4 of Tao, Sapra, Catanzaro 2020) where it states any, else the released code's
(`configs/README.md` lists those); no builder has a default that differs. Importable without torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..imported import is_reference
from ..words import shortened, words_of_list

TRUNKS = (
    "hrnet_w48",
    "hrnet_w32",
    "hrnet_w18",
    "hrnet_w18_small",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
)

DECODERS = ("ocr", "deeplabv3plus", "fcn")
LOSSES = (
    "cross_entropy",
    "rmi",
    "ohem",
    "bootstrapped",
    "bce",
    "relaxed_boundary",
    "dice",
    "focal",
    "lovasz",
)
LOGGERS = ("tensorboard", "wandb", "mlflow")
# What the user's own functions and classes are named by; see utils/imported.py.
REFERENCE = "module:name"

# The scales of a training step where model.train_scales is left out.
TRAIN_SCALES = {
    "single": (1.0,),
    "hierarchical": (0.5, 1.0),
    "hierarchical_dual": (0.5, 1.0),
    "explicit": (0.5, 1.0, 2.0),
}

# Types that several fields share.
# YAML and JSON know lists; a configuration, which never changes, holds tuples.


def _tuple(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value


Listed = BeforeValidator(_tuple)
Precision = Literal["fp32", "bf16", "fp16", "fp64"]
Combine = Literal["average", "max"]
Over = Literal["logits", "probabilities"]
Policy = Literal["auto", "human", "union", "drop"]
Positive = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(gt=0, le=100_000)]  # a time limit must fit into a timedelta
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
Workers = Annotated[int, Field(ge=0, le=1024)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Channels = Annotated[int, Field(ge=1, le=65536)]
Pixels = Annotated[int, Field(ge=1, le=65536)]
Size = Annotated[tuple[Pixels, Pixels], Listed]
Zoom = Annotated[float, Field(ge=0.01, le=100)]
Sigma = Annotated[float, Field(gt=0, le=100)]
Names = Annotated[tuple[str, ...], Listed]


def _once_each(scales: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(scales)) != len(scales):
        raise ValueError("names a scale twice")
    return scales


def _scale_list(value: Any) -> Any:
    """A list of scales, which may also be written as text, 0.5,1,2 or 0.5 1 2."""
    if not isinstance(value, str):
        return _tuple(value)
    try:
        return tuple(float(word) for word in words_of_list(value))
    except ValueError:
        return value


_SCALE = {"type": "number", "minimum": 0.01, "maximum": 16}
Scales = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=16)], ...],
    Field(min_length=1, max_length=16),
    AfterValidator(_once_each),
    BeforeValidator(_scale_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": _SCALE, "minItems": 1, "maxItems": 16},
                {"type": "string", "pattern": r"^[0-9.,\s]+$"},
            ]
        }
    ),
]


Ratios = Annotated[
    tuple[Annotated[float, Field(ge=0.05, lt=1)], Annotated[float, Field(ge=0.05, lt=1)]],
    BeforeValidator(_tuple),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "number", "minimum": 0.05, "exclusiveMaximum": 1},
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]


def _square(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    return value


_SIDE = {"type": "integer", "minimum": 1}
Tile = Annotated[
    Size,
    BeforeValidator(_square),
    WithJsonSchema(
        {"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}
    ),
]


def _integer(value: Any) -> Any:
    if value is not None and type(value) is not int:
        raise PydanticCustomError("whole_number", "expected a whole number")
    return value


# `Literal[1]` alone would take true and 1.0 for 1.
Integer = BeforeValidator(_integer)


class UnknownChoice(ValueError):
    """A word that is none of the choices."""

    def __init__(self, word: str, choices: tuple[str, ...]) -> None:
        self.word, self.choices = word, choices
        super().__init__(f"'{shortened(word)}' is none of {', '.join(choices)}")


def _known_trunk(name: str) -> str:
    is_of_timm = name.startswith("timm:") and len(name) > len("timm:")
    if name not in TRUNKS and not is_of_timm and not is_reference(name):
        raise UnknownChoice(name, (*TRUNKS, "timm:NAME", REFERENCE))
    return name


def _one_of(choices: tuple[str, ...]) -> AfterValidator:
    """A check that a text is one of `choices` or names something of the user's own."""

    def check(name: str) -> str:
        if name not in choices and not is_reference(name):
            raise UnknownChoice(name, (*choices, REFERENCE))
        return name

    return AfterValidator(check)


def _reference(name: str) -> str:
    if not is_reference(name):
        raise ValueError(f"expected module:name, such as my_parts:make, got '{shortened(name)}'")
    return name


# Choices by name, to which the user's own parts join.
_OWN = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"}
Reference = Annotated[str, AfterValidator(_reference), WithJsonSchema(_OWN)]
Trunk = Annotated[
    str,
    AfterValidator(_known_trunk),
    WithJsonSchema(
        {"anyOf": [{"enum": list(TRUNKS)}, {"type": "string", "pattern": "^timm:.+"}, _OWN]}
    ),
]
DecoderName = Annotated[
    str, _one_of(DECODERS), WithJsonSchema({"anyOf": [{"enum": list(DECODERS)}, _OWN]})
]
LossName = Annotated[
    str, _one_of(LOSSES), WithJsonSchema({"anyOf": [{"enum": list(LOSSES)}, _OWN]})
]
LoggerName = Annotated[
    str, _one_of(LOGGERS), WithJsonSchema({"anyOf": [{"enum": list(LOGGERS)}, _OWN]})
]


class ConfigSection(BaseModel):
    """A group of options.

    Unknown keys are mistakes, values are never converted from another type, and nothing changes
    after loading.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ExperimentSection(ConfigSection):
    """What the run is called and where it is kept."""

    name: str = Field(default="run", min_length=1)
    """Name of the run"""

    output: str = Field(default="runs/{name}", min_length=1)
    """Folder of the run; {name} stands for the name"""

    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Every random number is a function of this, the epoch, the rank and the index"""

    @model_validator(mode="before")
    @classmethod
    def _name_the_folder(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name, output = values.get("name", "run"), values.get("output", "runs/{name}")
        if isinstance(name, str) and isinstance(output, str):
            return {**values, "output": output.replace("{name}", name)}
        return values


# The data.


class ClassUniformSection(ConfigSection):
    """Class-uniform sampling: part of an epoch shows every class equally often."""

    fraction: Fraction = 0.5
    """Share of an epoch drawn class by class (0.5 in the release); 0 turns it off"""

    tile: Tile = (1024, 1024)
    """Size of the tiles in which classes are looked for: [height, width] or one side"""

    point: Literal["pixel", "centroid"] = "pixel"
    """Where a crop is placed: at a pixel of the class, or at its centre of mass as in the
    release"""


class ExtraSection(ConfigSection):
    """A second, larger source of training images with coarse or automatic labels."""

    split: str | None = Field(default=None, min_length=1)
    """Split its images come from; null: the images that the automatic labels were made from, for
    coarse labels train_extra"""

    labels: Literal["coarse", "auto"] = "auto"
    """Labels drawn coarsely by people, or automatic ones"""

    root: str | None = None
    """Folder or manifest of automatic labels, as `hmsa autolabel` wrote it"""

    probability: Fraction = 0.5
    """Share of an epoch drawn from the fine images, the rest from here (mode mixture; 0.5 in the
    paper)"""

    mode: Literal["mixture", "boost"] = "mixture"
    """mixture: the paper's draw by probability; boost: these images join the pools of
    boost_classes"""

    boost_classes: Names = ()
    """Classes whose pools these images join (mode boost)"""

    policy: dict[str, Policy] = Field(default_factory=dict)
    """Per class: take the automatic label, the human coarse one, both, or neither"""

    confidence_threshold: Fraction | None = None
    """Ignore automatic pixels below this confidence (needs confidence images); null: as they are"""

    mask_border: bool = False
    """Ignore the car's bonnet and the rectification border of Cityscapes frames"""


class DataSection(ConfigSection):
    """Which images, how they are augmented, sampled and read."""

    # Where the images and labels are.
    dataset: Literal["folder", "cityscapes", "mapillary"] = "cityscapes"
    """Layout of the data set"""

    root: str = Field(default="data/cityscapes", min_length=1)
    """Folder of the data set"""

    classes: str | None = Field(default=None, min_length=1)
    """YAML list of classes (folder) or configuration JSON (mapillary); null: the one in the data
    set's folder"""

    train_split: str = Field(default="train", min_length=1)
    """Split to train on"""

    val_split: str = Field(default="val", min_length=1)
    """Split to validate on"""

    cv: Annotated[Literal[0, 1, 2] | None, Integer] = None
    """Cross-validation split by city; null: the official one"""

    # How a training sample is augmented.
    crop: Size = (1024, 2048)
    """Training crop [height, width]"""

    scale_range: Annotated[tuple[Zoom, Zoom], Listed] = (0.5, 2.0)
    """Random scale, from and to"""

    flip: Fraction = 0.5
    """Probability of a horizontal flip"""

    color: float = Field(default=0.25, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter; 0 turns it off"""

    hue: float = Field(default=0.25, ge=0, le=0.5)
    """Largest hue shift as a fraction of the circle; 0 turns it off"""

    blur: Literal["none", "gaussian", "bilateral"] = "gaussian"
    """Kind of blur"""

    blur_probability: Fraction = 1.0
    """Share of images that are blurred"""

    blur_sigma: Annotated[tuple[Sigma, Sigma], Listed] | None = None
    """Range of the blur's sigma in pixels; null: the release's for that kind of blur"""

    place: Literal["random", "centre"] = "random"
    """Where an image smaller than the crop lies; release: centre"""

    interpolation: Literal["linear", "cubic", "nearest"] = "linear"
    """How images are enlarged; release: cubic"""

    long_edge: Pixels | None = None
    """Resize images so that their long edge is this; null: native size"""

    augment_on_device: bool = False
    """Colour and blur on the training device, in the batch"""

    augment: Reference | None = None
    """module:name of a function or an albumentations Compose that changes each crop at the end; it
    draws from the sample's own random numbers"""

    # How images and labels are read.
    batch_size: Count = 1
    """Images per process and forward pass"""

    workers: Workers = 4
    """Loader processes per training process; 0 loads in the process itself"""

    max_pixels: Count = 200_000_000
    """Images with more pixels are refused before they are decoded"""

    cache: Literal["none", "memmap", "zstd", "zlib", "jpeg"] = "none"
    """Cache of decoded images: raw, compressed without loss, or JPEG shrunk to long_edge"""

    cache_dir: str | None = None
    """Folder of caches; null: .hmsa in the data set's folder, else ~/.cache/hmsa"""

    verify: Literal["none", "sample", "all"] = "sample"
    """How many files are checked before training"""

    # What an epoch is drawn from.
    class_uniform: ClassUniformSection = Field(default_factory=ClassUniformSection)
    """Class-uniform sampling"""

    extra: ExtraSection | None = None
    """A second source of training images; null: none"""


# The network.

# Names as Python spells them, of a module and of something in it.
BUILDER = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


def _named_function(name: str) -> str:
    if re.fullmatch(BUILDER, name) is None:
        raise ValueError(
            f"'{shortened(name)}' does not name a function; write module:function, such as "
            "torchvision.models.segmentation:deeplabv3_resnet50"
        )
    return name


Builder = Annotated[
    str, AfterValidator(_named_function), WithJsonSchema({"type": "string", "pattern": BUILDER})
]


class WrapSection(ConfigSection):
    """A segmentation model of any library that attention is attached to."""

    builder: Builder
    """Function that returns the model, as module:function; it is imported and called, from the
    folder of the command too"""

    features: str = Field(min_length=1)
    """Layer whose maps the attention head reads, as in model.named_modules()"""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function"""

    weights: str | None = Field(default=None, min_length=1)
    """File of the model's weights; null: those that the function gives it"""

    multiple_of: Pixels = 32
    """Images are extended to multiples of so many pixels, by mirroring; 1: the model takes every
    size"""


class ModelSection(ConfigSection):
    """The network: trunk x decoder x multiscale."""

    trunk: Trunk = "hrnet_w48"
    """Feature network: HRNet, ResNet, timm:NAME, or module:name of one's own"""

    decoder: DecoderName = "ocr"
    """Head that turns features into logits, or module:name of one's own"""

    multiscale: Literal["single", "hierarchical", "hierarchical_dual", "explicit"] = "hierarchical"
    """How scales are combined: hierarchical attention is the paper's"""

    output_stride: Annotated[Literal[8, 16], Integer] = 8
    """Stride of the last features of a ResNet; HRNet has its own"""

    align_corners: bool = False
    """Kind of bilinear resizing: false for the authors' weights, true for HRNet-OCR's own"""

    fuse_at: Literal["image", "features"] = "image"
    """Fuse at image size (as published weights were scored), or at feature size (the paper's words,
    less memory)"""

    train_scales: Scales = (0.5, 1.0)
    """Scales of a training step; left out: 1 for single, 0.5 and 1 for hierarchical, 0.5, 1 and 2
    for explicit"""

    random_ratio: Ratios | None = None
    """Draw the ratio of neighbouring training scales anew in each step, from the smallest to the
    largest, e.g. [0.25, 0.75]; the highest and the number of train_scales stay. null: as they
    are"""

    # Weights to start from.
    trunk_weights: str | None = Field(default="auto", min_length=1)
    """Weights the trunk starts from: auto (pre-trained where they can be had, from a package, the
    cache or the network), imagenet (the same, or an error), a name, a file; null: random"""

    init_from: str | None = Field(default=None, min_length=1)
    """Checkpoint of a whole model to start from; what fits is taken and reported"""

    freeze: Annotated[tuple[Literal["trunk", "decoder"], ...], Listed] = ()
    """Parts that are not trained, their batch norms neither: [trunk, decoder] trains attention
    alone, for a model that one has"""

    wrap: WrapSection | None = None
    """A model of any library in the place of trunk and decoder, frozen, with an attention head that
    is trained; null: none"""

    # The heads.
    decoder_channels: Channels | None = None
    """Width of the decoder; null: that of the published weights, 256, and for ocr 512 with keys of
    half that"""

    aspp_rates: Annotated[
        tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=8), Listed
    ] = (6, 12, 18)
    """Dilations of deeplabv3plus's 3x3 branches at stride 16. Those wider than the features of a
    training crop (its side / 16) are never trained at their ends and harm larger images"""

    aspp_pooling: bool = True
    """Whether deeplabv3plus has its branch of image pooling, whose batch norm sees one value per
    image, few in small batches of crops"""

    attention_channels: Channels = 256
    """Width of the attention head (256 in the release; the paper does not say)"""

    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the attention head's last layer"""

    attention_reads_scales: bool = False
    """Tell the attention head which pair of scales it judges, by two constant maps"""

    head: Literal["release", "paper"] = "release"
    """Semantic head of the published checkpoints, or of the paper's text"""

    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout of the OCR decoder's features (0.05 in the release)"""

    explicit_batchnorm: bool = True
    """Batch norm in the head of attention to scale (multiscale explicit); without it the weights
    may end at one scale"""

    explicit_softmax: bool = True
    """Soft-max over scales (multiscale explicit); false: the release's raw weights"""

    @model_validator(mode="before")
    @classmethod
    def _scales_of_multiscale(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("train_scales") is not None:
            return values
        scales = TRAIN_SCALES.get(str(values.get("multiscale", "hierarchical")), (0.5, 1.0))
        return {**values, "train_scales": scales}


# The losses.


class RmiSection(ConfigSection):
    """Constants of the region mutual information loss (Zhao et al. 2019)."""

    radius: int = Field(default=3, ge=1, le=9)
    """Side of the square window whose pixels are seen as one vector"""

    pool: Literal["avg", "max", "interp"] = "avg"
    """How label and probability are made smaller first"""

    pool_size: Count = 4
    """Size and stride of that pooling; 1 pools nothing"""

    lambda_way: Annotated[Literal[0, 1], Integer] = 1
    """1: weight x bce + (1 - weight) x rmi, as in the paper's runs; 0: bce + weight x rmi"""

    weight: Fraction = 0.5
    """The lambda of lambda_way"""

    probability_epsilon: Positive = 1e-6
    """Added to every probability"""

    covariance_epsilon: Positive = 5e-4
    """Added to the diagonals of covariances"""

    log_epsilon: Positive = 1e-8
    """Added inside the logarithm of the determinant"""


class OhemSection(ConfigSection):
    """Cross-entropy of hard pixels only."""

    threshold: Share = 0.7
    """Pixels whose true class has at least this probability are left out"""

    min_kept: Share = 0.1
    """Least share of an image's valid pixels that is kept"""


class BootstrappedSection(ConfigSection):
    """Cross-entropy of the hardest pixels."""

    fraction: Share = 0.25
    """Share of an image's valid pixels that is kept"""


class RelaxedBoundarySection(ConfigSection):
    """Boundary label relaxation (Zhu et al. 2019)."""

    window: Annotated[Literal[1, 3, 5, 7, 9], Integer] = 3
    """Side of the window around a pixel whose classes all count"""

    strict_classes: Annotated[tuple[Annotated[int, Field(ge=0, le=254)], ...], Listed] = ()
    """Train ids of classes that are not relaxed"""


class DiceSection(ConfigSection):
    """One minus the Dice coefficient of each class (Milletari et al. 2016)."""

    smooth: float = Field(default=0.0, ge=0)
    """Added above and below the line of the coefficient"""


class FocalSection(ConfigSection):
    """Cross-entropy in which easy pixels count little (Lin et al. 2017)."""

    gamma: float = Field(default=2.0, ge=0)
    """How much less they count; 0 is cross-entropy"""


class LossSection(ConfigSection):
    """What is minimised."""

    main: LossName = "rmi"
    """Loss of the fused prediction, or module:name of one's own"""

    aux: LossName = "cross_entropy"
    """Loss of the auxiliary output, or module:name of one's own"""

    aux_weight: float = Field(default=0.4, ge=0)
    """Weight of the auxiliary loss (0.4 in the release; the paper does not say)"""

    scale_weight: float = Field(default=0.0, ge=0)
    """Weight of each scale's own loss (0.05 in the release, none in the paper)"""

    scale_loss: LossName | None = None
    """Loss of each scale's own prediction; null: main if it is a soft-max loss, else bce as in the
    release"""

    # Class weights.
    class_weights: Literal["none", "linear", "inverse", "log"] = "none"
    """Weigh classes in cross-entropy by how rare they are in the training labels: 1 + (1 - f),
    1 + 1 / f, or ENet's 1 / ln(1.02 + f)"""

    binary_class_weights: Literal["none", "linear", "inverse", "log"] = "none"
    """The same for binary cross-entropy, which rmi and bce have: a pixel weighs by its label"""

    image_weights: Literal["linear", "inverse", "log"] | None = None
    """Weigh classes in cross-entropy by how rare they are in each image; null: all alike"""

    # Constants of single losses.
    rmi: RmiSection = Field(default_factory=RmiSection)
    """Constants of the rmi loss"""

    ohem: OhemSection = Field(default_factory=OhemSection)
    """Constants of the ohem loss"""

    bootstrapped: BootstrappedSection = Field(default_factory=BootstrappedSection)
    """Constants of the bootstrapped loss"""

    relaxed_boundary: RelaxedBoundarySection = Field(default_factory=RelaxedBoundarySection)
    """Constants of the relaxed_boundary loss"""

    dice: DiceSection = Field(default_factory=DiceSection)
    """Constants of the dice loss"""

    focal: FocalSection = Field(default_factory=FocalSection)
    """Constants of the focal loss"""


# The training.


class OptimSection(ConfigSection):
    """Optimiser, learning rate and length of training."""

    optimizer: Literal["sgd", "adam", "adamw", "lamb"] = "sgd"
    """Optimiser; lamb exists in NVIDIA apex only"""

    backend: Literal["auto", "torch", "foreach", "fused", "apex"] = "auto"
    """Implementation of the optimiser"""

    lr: Positive = 0.01
    """Learning rate at the start"""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD"""

    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay"""

    decay_norm_and_bias: bool = True
    """Decay batch-norm parameters and biases too, as the release does"""

    head_lr_multiplier: Positive = 1.0
    """Learning rate of everything but the trunk, relative to lr"""

    attention_lr_multiplier: Positive = 1.0
    """Learning rate of the attention head, relative to that of the other heads"""

    # How long, and how the learning rate falls.
    epochs: Count = 175
    """Epochs"""

    schedule: Literal["poly", "poly2", "scl_poly", "cosine", "constant"] = "poly"
    """How the learning rate falls"""

    poly_exponent: Positive = 2.0
    """Exponent of the poly schedules"""

    schedule_per: Literal["step", "epoch"] = "step"
    """The rate changes every step, or every epoch as in the release"""

    poly_step: Count = 110
    """Epoch from which the exponent doubles (poly2)"""

    rescale_epoch: CountOrNone = 0
    """Epoch at which the rate restarts (scl_poly)"""

    rescale: Positive = 1.0
    """Factor of that restart (scl_poly)"""

    repoly: Positive = 1.5
    """Exponent after that restart (scl_poly)"""

    warmup_steps: CountOrNone = 0
    """Steps in which the learning rate rises from nothing"""

    # The global batch.
    accumulate: Count = 1
    """Batches whose gradients make one step"""

    reference_batch: Count | None = None
    """Global batch that lr was chosen for; null: whatever it is"""

    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How lr follows a batch other than the reference"""

    # What happens to gradients and weights.
    clip_norm: Positive | None = None
    """Clip the gradient's norm to this; null: never"""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Also keep an average of the weights, with this decay; null: none"""

    def schedule_arguments(self) -> dict[str, Any]:
        """The fields that describe the schedule."""
        names = (
            "schedule",
            "epochs",
            "poly_exponent",
            "schedule_per",
            "warmup_steps",
            "poly_step",
            "rescale",
            "repoly",
            "rescale_epoch",
        )
        return {name: getattr(self, name) for name in names}


class RuntimeSection(ConfigSection):
    """Where and how a training computes, and what it reports."""

    # Where and how it computes.
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA where there is one, else the CPU; mps: the GPU of a Mac, in one process"""

    precision: Precision = "fp32"
    """Autocast to bf16 or fp16, or compute in fp32 or fp64"""

    channels_last: bool = True
    """Memory format of images and weights"""

    compile: Literal["off", "trunk", "model"] = "off"
    """What torch.compile compiles"""

    activation_checkpointing: bool = False
    """Compute the trunk's stages again in the backward pass to save memory"""

    threads: Threads | None = None
    """CPU threads per process; null: torch's choice"""

    deterministic: bool = False
    """Only deterministic kernels; slower"""

    tf32: bool = True
    """TF32 in fp32 products on GPUs that have it"""

    sync_batchnorm: Literal["auto", "off"] = "auto"
    """Batch statistics over all processes when there are several"""

    # What is kept.
    checkpoint_minutes: Minutes = 10.0
    """A checkpoint at least this often"""

    keep_checkpoints: Count = 2
    """How many of the last checkpoints stay"""

    best_weights: Literal["miou", "last"] = "miou"
    """What best.pt holds: the weights of the highest validation mIoU, or those of the last
    validation, for trainings on their own validation images"""

    calibrate: bool = False
    """Calibrate the attention of best.pt when the training is done, as `hmsa calibrate` does;
    nothing without hierarchical attention"""

    calibrate_scales: Scales | None = None
    """The scales that runtime.calibrate is for; null: those of eval.scales"""

    # What is reported, and when it gives up.
    loggers: Annotated[tuple[LoggerName, ...], Listed] = ("tensorboard",)
    """Where numbers and pictures of the run are shown beside metrics.jsonl: tensorboard, wandb,
    mlflow, or module:name of one's own"""

    val_every: Count | Literal["auto"] = "auto"
    """Epochs between validations; auto: as often as costs at most 5 % of the training's computing.
    The last epoch is always validated"""

    image_every: Count = 5
    """Epochs between pictures, which are drawn after validations"""

    log_every: Count = 10
    """Steps between lines of the log"""

    max_bad_steps: Count = 20
    """Stop after so many steps in a row whose loss is not finite"""

    timeout_minutes: Minutes = 10.0
    """Give up on other processes after this"""

    profile: bool = False
    """Record a few early steps for a trace viewer: trace.json in the run's folder"""


# Using a trained network.


class InferenceSection(ConfigSection):
    """How predictions are made."""

    scales: Scales = (0.5, 1.0, 2.0)
    """Scales to combine, any list"""

    flip: bool = False
    """Average with the prediction of the mirrored image"""

    combine: Combine = "average"
    """How a single-scale model's scales are combined"""

    over: Over = "logits"
    """What is averaged"""

    tile: Size | None = None
    """Predict in tiles of [height, width]; null: whole images"""

    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Overlap of neighbouring tiles as a fraction of a tile"""

    refine: Fraction | Literal["auto"] = 1.0
    """Share of the image on which scales above 1 are computed, where the attention leaves most to
    them; auto: as much of each image as it asks for"""

    precision: Precision = "fp32"
    """Autocast to bf16 or fp16, or compute in fp32 or fp64"""


class EvalSection(InferenceSection):
    """How a split is evaluated, in training and by eval.py."""

    batch_size: Count = 1
    """Images of equal size per forward pass"""

    workers: Workers = 2
    """Loader processes per process; 0 loads in the process itself"""

    score_native: bool = False
    """With data.long_edge: compare with labels of native size instead of resized ones"""

    calibration: Literal["auto", "off"] = "auto"
    """Whether evaluation and auto-labelling use the attention biases that `hmsa calibrate` wrote
    into a checkpoint"""


class AutolabelSection(InferenceSection):
    """How autolabel.py labels images."""

    workers: Threads = 2
    """Threads that read images ahead of the network"""

    # Which pixels are kept.
    threshold: Fraction = 0.9
    """Pixels whose largest probability is below this are ignored"""

    class_thresholds: dict[str, Fraction] = Field(default_factory=dict)
    """Thresholds of single classes"""

    keep_share: Share | None = None
    """Lower a class's threshold until this share of its pixels is kept (class-balanced
    self-training); null: never"""

    keep_share_images: Count = 500
    """Images, evenly spread, from which the thresholds of keep_share are taken"""

    policy: dict[str, Policy] = Field(default_factory=dict)
    """Per class, where people drew coarse labels: write the automatic label, the human one, both,
    or neither"""

    # What is written.
    label_ids: Literal["raw", "train"] = "raw"
    """Ids in the written labels: the data set's own or train ids"""

    confidence: bool = False
    """Write 8-bit confidence images too"""

    keep_answers: bool = False
    """Also keep the network's answer for each image, class and probability of every pixel, so that
    another threshold needs no inference"""


class Sections(BaseModel):
    """All sections of an experiment."""

    model_config = ConfigSection.model_config

    experiment: ExperimentSection = Field(default_factory=ExperimentSection)
    """Name, folder, seed"""

    data: DataSection = Field(default_factory=DataSection)
    """Images, augmentation, sampling"""

    model: ModelSection = Field(default_factory=ModelSection)
    """Trunk, decoder, multiscale"""

    loss: LossSection = Field(default_factory=LossSection)
    """What is minimised"""

    optim: OptimSection = Field(default_factory=OptimSection)
    """Optimiser, learning rate, epochs"""

    runtime: RuntimeSection = Field(default_factory=RuntimeSection)
    """Device, precision, reporting"""

    eval: EvalSection = Field(default_factory=EvalSection)
    """Evaluation"""

    autolabel: AutolabelSection = Field(default_factory=AutolabelSection)
    """Auto-labelling"""
