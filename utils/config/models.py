"""Every option of an experiment: its type, range, default and meaning in one place.

Field names are the keyword arguments of the rooms' builders. Defaults are the paper's Cityscapes values (METHOD section 4) where it states any.
Importable without torch.
"""

from __future__ import annotations

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
TRAIN_SCALES = {
    "single": (1.0,),
    "hierarchical": (0.5, 1.0),
    "hierarchical_dual": (0.5, 1.0),
    "explicit": (0.5, 1.0, 2.0),
}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Listed = BeforeValidator(
    _tuple
)  # YAML and JSON know lists; a configuration that does not change holds tuples
Precision = Literal["fp32", "bf16", "fp16", "fp64"]
Combine = Literal["average", "max"]
Over = Literal["logits", "probabilities"]
Policy = Literal["auto", "human", "union", "drop"]
LossName = Literal["cross_entropy", "rmi", "ohem", "bootstrapped", "bce", "relaxed_boundary"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=65536)]
Size = Annotated[tuple[Pixels, Pixels], Listed]
Range = Annotated[tuple[Positive, Positive], Listed]
Names = Annotated[tuple[str, ...], Listed]


def _once_each(scales: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(scales)) != len(scales):
        raise ValueError("names a scale twice")
    return scales


_SCALE = {"type": "number", "exclusiveMinimum": 0, "maximum": 16}
Scales = Annotated[
    tuple[Annotated[float, Field(gt=0, le=16)], ...],
    Field(min_length=1, max_length=16),
    AfterValidator(_once_each),
    Listed,
    WithJsonSchema({"type": "array", "items": _SCALE, "minItems": 1, "maxItems": 16}),
]


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _integer(value: Any) -> Any:
    if value is not None and type(value) is not int:
        raise ValueError(f"expected a whole number, not {value!r}")
    return value


# `Literal[1]` alone would take true and 1.0 for 1.
Integer = BeforeValidator(_integer)

_SIDE = {"type": "integer", "minimum": 1}
Tile = Annotated[
    Size,
    BeforeValidator(_square),
    WithJsonSchema(
        {"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}
    ),
]


def _known_trunk(name: str) -> str:
    if name not in TRUNKS and not (name.startswith("timm:") and len(name) > len("timm:")):
        raise UnknownChoice(name, (*TRUNKS, "timm:NAME"))
    return name


class UnknownChoice(ValueError):
    """A word that is none of the choices."""

    def __init__(self, word: str, choices: tuple[str, ...]) -> None:
        self.word, self.choices = word, choices
        super().__init__(f"'{word}' is none of {', '.join(choices)}")


Trunk = Annotated[
    str,
    AfterValidator(_known_trunk),
    WithJsonSchema({"anyOf": [{"enum": list(TRUNKS)}, {"type": "string", "pattern": "^timm:.+"}]}),
]


class Section(BaseModel):
    """A group of options; unknown keys are mistakes, values are never converted from another type, and nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=False,
    )


class Experiment(Section):
    """What the run is called and where it is kept."""

    name: str = Field(default="run", min_length=1, description="Name of the run")
    output: str = Field(
        default="runs/{name}",
        min_length=1,
        description="Folder of the run; {name} stands for the name",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="Every random number is a function of this, the epoch, the rank and the index",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_folder(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name, output = values.get("name", "run"), values.get("output", "runs/{name}")
        if isinstance(name, str) and isinstance(output, str):
            return {**values, "output": output.replace("{name}", name)}
        return values


class ClassUniform(Section):
    """Class-uniform sampling: part of an epoch shows every class equally often."""

    fraction: Fraction = Field(
        default=0.5,
        description="Share of an epoch drawn class by class (0.5 in the release); 0 turns it off",
    )
    tile: Tile = Field(
        default=(1024, 1024),
        description="Size of the tiles in which classes are looked for: [height, width] or one side",
    )
    point: Literal["pixel", "centroid"] = Field(
        default="pixel",
        description="Where a crop is placed: at a pixel of the class, or at its centre of mass as in the release",
    )


class Extra(Section):
    """A second, larger source of training images with coarse or automatic labels."""

    split: str = Field(
        default="train_extra", min_length=1, description="Split its images come from"
    )
    labels: Literal["coarse", "auto"] = Field(
        default="auto", description="Labels drawn coarsely by people, or automatic ones"
    )
    root: str | None = Field(
        default=None, description="Folder or manifest of automatic labels, as autolabel.py wrote it"
    )
    probability: Fraction = Field(
        default=0.5,
        description="Share of an epoch drawn from the fine images, the rest from here (mode mixture; 0.5 in the paper)",
    )
    mode: Literal["mixture", "boost"] = Field(
        default="mixture",
        description="mixture: the paper's draw by probability; boost: these images join the pools of boost_classes",
    )
    boost_classes: Names = Field(
        default=(), description="Classes whose pools these images join (mode boost)"
    )
    policy: dict[str, Policy] = Field(
        default_factory=dict,
        description="Per class: take the automatic label, the human coarse one, both, or neither",
    )
    confidence_threshold: Fraction | None = Field(
        default=None,
        description="Ignore automatic pixels below this confidence (needs confidence images); null: as they are",
    )
    mask_border: bool = Field(
        default=False,
        description="Ignore the car's bonnet and the rectification border of Cityscapes frames",
    )


class Data(Section):
    """Which images, how they are augmented, sampled and read."""

    dataset: Literal["folder", "cityscapes", "mapillary"] = Field(
        default="cityscapes", description="Layout of the data set"
    )
    root: str = Field(default="data/cityscapes", min_length=1, description="Folder of the data set")
    classes: str | None = Field(
        default=None,
        description="YAML list of classes (folder) or configuration JSON (mapillary); null: the one in the data set's folder",
    )
    train_split: str = Field(default="train", min_length=1, description="Split to train on")
    val_split: str = Field(default="val", min_length=1, description="Split to validate on")
    cv: Annotated[Literal[0, 1, 2] | None, Integer] = Field(
        default=None, description="Cross-validation split by city; null: the official one"
    )
    crop: Size = Field(default=(1024, 2048), description="Training crop [height, width]")
    scale_range: Range = Field(default=(0.5, 2.0), description="Random scale, from and to")
    flip: Fraction = Field(default=0.5, description="Probability of a horizontal flip")
    color: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Strength of brightness, contrast and saturation jitter; 0 turns it off",
    )
    hue: float = Field(
        default=0.25,
        ge=0,
        le=0.5,
        description="Largest hue shift as a fraction of the circle; 0 turns it off",
    )
    blur: Literal["none", "gaussian", "bilateral"] = Field(
        default="gaussian", description="Kind of blur"
    )
    blur_probability: Fraction = Field(default=1.0, description="Share of images that are blurred")
    blur_sigma: Range | None = Field(
        default=None,
        description="Range of the blur's sigma in pixels; null: the release's for that kind of blur",
    )
    place: Literal["random", "centre"] = Field(
        default="random", description="Where an image smaller than the crop lies; release: centre"
    )
    interpolation: Literal["linear", "cubic", "nearest"] = Field(
        default="linear", description="How images are enlarged; release: cubic"
    )
    long_edge: Count | None = Field(
        default=None, description="Resize images so that their long edge is this; null: native size"
    )
    augment_on_device: bool = Field(
        default=False, description="Colour and blur on the training device, in the batch"
    )
    batch_size: Count = Field(default=1, description="Images per process and forward pass")
    workers: int = Field(
        default=4,
        ge=0,
        description="Loader processes per training process; 0 loads in the process itself",
    )
    max_pixels: Count = Field(
        default=200_000_000,
        description="Images with more pixels are refused before they are decoded",
    )
    cache: Literal["none", "memmap", "zstd", "zlib", "jpeg"] = Field(
        default="none",
        description="Cache of decoded images: raw, compressed without loss, or JPEG shrunk to long_edge",
    )
    cache_dir: str | None = Field(
        default=None,
        description="Folder of caches; null: .hmsa in the data set's folder, else ~/.cache/hmsa",
    )
    verify: Literal["none", "sample", "all"] = Field(
        default="sample", description="How many files are checked before training"
    )
    class_uniform: ClassUniform = Field(
        default_factory=ClassUniform, description="Class-uniform sampling"
    )
    extra: Extra | None = Field(
        default=None, description="A second source of training images; null: none"
    )


class Model(Section):
    """The network: trunk x decoder x multiscale."""

    trunk: Trunk = Field(
        default="hrnet_w48", description="Feature network: HRNet, ResNet, or timm:NAME"
    )
    decoder: Literal["ocr", "deeplabv3plus", "fcn"] = Field(
        default="ocr", description="Head that turns features into logits"
    )
    multiscale: Literal["single", "hierarchical", "hierarchical_dual", "explicit"] = Field(
        default="hierarchical",
        description="How scales are combined: hierarchical attention is the paper's",
    )
    output_stride: Annotated[Literal[8, 16], Integer] = Field(
        default=8, description="Stride of the last features of a ResNet; HRNet has its own"
    )
    align_corners: bool = Field(
        default=False,
        description="Kind of bilinear resizing: false for the authors' weights, true for HRNet-OCR's own",
    )
    fuse_at: Literal["image", "features"] = Field(
        default="image",
        description="Fuse at image size (as published weights were scored), or at feature size (the paper's words, less memory)",
    )
    train_scales: Scales = Field(
        default=(0.5, 1.0),
        description="Scales of a training step; left out: 1 for single, 0.5 and 1 for hierarchical, 0.5, 1 and 2 for explicit",
    )
    trunk_weights: str | None = Field(
        default=None,
        description="Weights the trunk starts from: imagenet, a name, a file; null: random",
    )
    init_from: str | None = Field(
        default=None,
        description="Checkpoint of a whole model to start from; what fits is taken and reported",
    )
    decoder_channels: Count | None = Field(
        default=None,
        description="Width of the decoder; null: that of the published weights, 256, and for ocr 512 with keys of half that",
    )
    attention_channels: Count = Field(
        default=256,
        description="Width of the attention head (256 in the release; the paper does not say)",
    )
    attention_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the attention head's last layer"
    )
    head: Literal["release", "paper"] = Field(
        default="release",
        description="Semantic head of the published checkpoints, or of the paper's text",
    )
    dropout: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Dropout of the OCR decoder's features (0.05 in the release)",
    )
    explicit_batchnorm: bool = Field(
        default=True,
        description="Batch norm in the head of attention to scale (multiscale explicit); without it the weights may end at one scale",
    )
    explicit_softmax: bool = Field(
        default=True,
        description="Soft-max over scales (multiscale explicit); false: the release's raw weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _scales_of_multiscale(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("train_scales") is not None:
            return values
        scales = TRAIN_SCALES.get(str(values.get("multiscale", "hierarchical")), (0.5, 1.0))
        return {**values, "train_scales": scales}


class Rmi(Section):
    """Constants of the region mutual information loss (Zhao et al. 2019)."""

    radius: Annotated[int, Field(ge=1, le=9)] = Field(
        default=3, description="Side of the square window whose pixels are seen as one vector"
    )
    pool: Literal["avg", "max", "interp"] = Field(
        default="avg", description="How label and probability are made smaller first"
    )
    pool_size: Count = Field(
        default=4, description="Size and stride of that pooling; 1 pools nothing"
    )
    lambda_way: Annotated[Literal[0, 1], Integer] = Field(
        default=1,
        description="1: weight x bce + (1 - weight) x rmi, as in the paper's runs; 0: bce + weight x rmi",
    )
    weight: Fraction = Field(default=0.5, description="The lambda of lambda_way")
    probability_epsilon: Positive = Field(default=1e-6, description="Added to every probability")
    covariance_epsilon: Positive = Field(
        default=5e-4, description="Added to the diagonals of covariances"
    )
    log_epsilon: Positive = Field(
        default=1e-8, description="Added inside the logarithm of the determinant"
    )


class Ohem(Section):
    """Cross-entropy of hard pixels only."""

    threshold: Share = Field(
        default=0.7,
        description="Pixels whose true class has at least this probability are left out",
    )
    min_kept: Share = Field(
        default=0.1, description="Least share of an image's valid pixels that is kept"
    )


class Bootstrapped(Section):
    """Cross-entropy of the hardest pixels."""

    fraction: Share = Field(
        default=0.25, description="Share of an image's valid pixels that is kept"
    )


class RelaxedBoundary(Section):
    """Boundary label relaxation (Zhu et al. 2019)."""

    window: Annotated[Literal[1, 3, 5, 7, 9], Integer] = Field(
        default=3, description="Side of the window around a pixel whose classes all count"
    )
    strict_classes: Annotated[tuple[Annotated[int, Field(ge=0, le=254)], ...], Listed] = Field(
        default=(), description="Train ids of classes that are not relaxed"
    )


class Loss(Section):
    """What is minimised."""

    main: LossName = Field(default="rmi", description="Loss of the fused prediction")
    aux: LossName = Field(default="cross_entropy", description="Loss of the auxiliary output")
    aux_weight: float = Field(
        default=0.4,
        ge=0,
        description="Weight of the auxiliary loss (0.4 in the release; the paper does not say)",
    )
    scale_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of each scale's own loss (0.05 in the release, none in the paper)",
    )
    scale_loss: LossName | None = Field(
        default=None,
        description="Loss of each scale's own prediction; null: main if it is a soft-max loss, else bce as in the release",
    )
    class_weights: Literal["none", "linear", "inverse"] = Field(
        default="none",
        description="Weigh classes in cross-entropy by how rare they are in the training labels: 1 + (1 - f) or 1 + 1 / f",
    )
    image_weights: Literal["linear", "inverse"] | None = Field(
        default=None,
        description="Weigh classes in cross-entropy by how rare they are in each image; null: all alike",
    )
    rmi: Rmi = Field(default_factory=Rmi, description="Constants of the rmi loss")
    ohem: Ohem = Field(default_factory=Ohem, description="Constants of the ohem loss")
    bootstrapped: Bootstrapped = Field(
        default_factory=Bootstrapped, description="Constants of the bootstrapped loss"
    )
    relaxed_boundary: RelaxedBoundary = Field(
        default_factory=RelaxedBoundary, description="Constants of the relaxed_boundary loss"
    )


class Optim(Section):
    """Optimiser, learning rate and length of training."""

    optimizer: Literal["sgd", "adamw", "lamb"] = Field(
        default="sgd", description="Optimiser; lamb exists in NVIDIA apex only"
    )
    backend: Literal["auto", "torch", "foreach", "fused", "apex"] = Field(
        default="auto", description="Implementation of the optimiser"
    )
    lr: Positive = Field(default=0.01, description="Learning rate at the start")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay")
    decay_norm_and_bias: bool = Field(
        default=True, description="Decay batch-norm parameters and biases too, as the release does"
    )
    head_lr_multiplier: Positive = Field(
        default=1.0, description="Learning rate of everything but the trunk, relative to lr"
    )
    epochs: Count = Field(default=175, description="Epochs")
    schedule: Literal["poly", "poly2", "scl_poly", "constant"] = Field(
        default="poly", description="How the learning rate falls"
    )
    poly_exponent: Positive = Field(default=2.0, description="Exponent of the poly schedules")
    schedule_per: Literal["step", "epoch"] = Field(
        default="step", description="The rate changes every step, or every epoch as in the release"
    )
    poly_step: Count = Field(
        default=110, description="Epoch from which the exponent doubles (poly2)"
    )
    rescale_epoch: int = Field(
        default=0, ge=0, description="Epoch at which the rate restarts (scl_poly)"
    )
    rescale: Positive = Field(default=1.0, description="Factor of that restart (scl_poly)")
    repoly: Positive = Field(default=1.5, description="Exponent after that restart (scl_poly)")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps in which the learning rate rises from nothing"
    )
    accumulate: Count = Field(default=1, description="Batches whose gradients make one step")
    reference_batch: Count | None = Field(
        default=None, description="Global batch that lr was chosen for; null: whatever it is"
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none", description="How lr follows a batch other than the reference"
    )
    clip_norm: Positive | None = Field(
        default=None, description="Clip the gradient's norm to this; null: never"
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Also keep an average of the weights, with this decay; null: none",
    )

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


class Runtime(Section):
    """Where and how a training computes, and what it reports."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: CUDA where there is one"
    )
    precision: Precision = Field(
        default="fp32", description="Autocast to bf16 or fp16, or compute in fp32 or fp64"
    )
    channels_last: bool = Field(default=True, description="Memory format of images and weights")
    compile: Literal["off", "trunk", "model"] = Field(
        default="off", description="What torch.compile compiles"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute the trunk's stages again in the backward pass to save memory",
    )
    threads: Count | None = Field(
        default=None, description="CPU threads per process; null: torch's choice"
    )
    deterministic: bool = Field(default=False, description="Only deterministic kernels; slower")
    tf32: bool = Field(default=True, description="TF32 in fp32 products on GPUs that have it")
    sync_batchnorm: Literal["auto", "off"] = Field(
        default="auto", description="Batch statistics over all processes when there are several"
    )
    checkpoint_minutes: Positive = Field(
        default=10.0, description="A checkpoint at least this often"
    )
    keep_checkpoints: Count = Field(default=2, description="How many of the last checkpoints stay")
    val_every: Count = Field(default=1, description="Epochs between validations")
    image_every: Count = Field(default=5, description="Epochs between pictures")
    log_every: Count = Field(default=10, description="Steps between lines of the log")
    max_bad_steps: Count = Field(
        default=20, description="Stop after so many steps in a row whose loss is not finite"
    )
    timeout_minutes: Positive = Field(
        default=10.0, description="Give up on other processes after this"
    )
    profile: bool = Field(
        default=False,
        description="Record a few early steps for a trace viewer: trace.json in the run's folder",
    )


class Inference(Section):
    """How predictions are made."""

    scales: Scales = Field(default=(0.5, 1.0, 2.0), description="Scales to combine, any list")
    flip: bool = Field(
        default=False, description="Average with the prediction of the mirrored image"
    )
    combine: Combine = Field(
        default="average", description="How a single-scale model's scales are combined"
    )
    over: Over = Field(default="logits", description="What is averaged")
    tile: Size | None = Field(
        default=None, description="Predict in tiles of [height, width]; null: whole images"
    )
    overlap: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="Overlap of neighbouring tiles as a fraction of a tile",
    )
    precision: Precision = Field(
        default="fp32", description="Autocast to bf16 or fp16, or compute in fp32 or fp64"
    )


class Eval(Inference):
    """How a split is evaluated, in training and by eval.py."""

    batch_size: Count = Field(default=1, description="Images of equal size per forward pass")
    workers: int = Field(
        default=2, ge=0, description="Loader processes per process; 0 loads in the process itself"
    )
    score_native: bool = Field(
        default=False,
        description="With data.long_edge: compare with labels of native size instead of resized ones",
    )


class Autolabel(Inference):
    """How autolabel.py labels images."""

    workers: Count = Field(default=2, description="Threads that read images ahead of the network")
    threshold: Fraction = Field(
        default=0.9, description="Pixels whose largest probability is below this are ignored"
    )
    class_thresholds: dict[str, Fraction] = Field(
        default_factory=dict, description="Thresholds of single classes"
    )
    keep_share: Share | None = Field(
        default=None,
        description="Lower a class's threshold until this share of its pixels is kept (class-balanced self-training); null: never",
    )
    keep_share_images: Count = Field(
        default=500,
        description="Images, evenly spread, from which the thresholds of keep_share are taken",
    )
    policy: dict[str, Policy] = Field(
        default_factory=dict,
        description="Per class, where people drew coarse labels: write the automatic label, the human one, both, or neither",
    )
    label_ids: Literal["raw", "train"] = Field(
        default="raw", description="Ids in the written labels: the data set's own or train ids"
    )
    confidence: bool = Field(default=False, description="Write 8-bit confidence images too")


class Sections(BaseModel):
    """All sections of an experiment."""

    model_config = Section.model_config

    experiment: Experiment = Field(default_factory=Experiment, description="Name, folder, seed")
    data: Data = Field(default_factory=Data, description="Images, augmentation, sampling")
    model: Model = Field(default_factory=Model, description="Trunk, decoder, multiscale")
    loss: Loss = Field(default_factory=Loss, description="What is minimised")
    optim: Optim = Field(default_factory=Optim, description="Optimiser, learning rate, epochs")
    runtime: Runtime = Field(default_factory=Runtime, description="Device, precision, reporting")
    eval: Eval = Field(default_factory=Eval, description="Evaluation")
    autolabel: Autolabel = Field(default_factory=Autolabel, description="Auto-labelling")
