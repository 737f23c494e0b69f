"""Every option of an experiment: its type, range, default and meaning in one place.

Field names are the keyword arguments of the rooms' builders. Defaults are the paper's Cityscapes values (METHOD section 4) where it states any.
Importable without torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema, model_validator

TRUNKS = (
    "hrnet_w48", "hrnet_w32", "hrnet_w18", "hrnet_w18_small", "resnet18", "resnet34", "resnet50", "resnet101",
)  # fmt: skip
TRAIN_SCALES = {
    "single": (1.0,),
    "hierarchical": (0.5, 1.0),
    "hierarchical_dual": (0.5, 1.0),
    "explicit": (0.5, 1.0, 2.0),
}

Precision = Literal["fp32", "bf16", "fp16", "fp64"]
Combine = Literal["average", "max"]
Over = Literal["logits", "probabilities"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=65536)]
Size = Annotated[tuple[Pixels, Pixels], Strict(False)]
Range = Annotated[tuple[Positive, Positive], Strict(False)]
Names = Annotated[tuple[str, ...], Strict(False)]


def _once_each(scales: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(scales)) != len(scales):
        raise ValueError("names a scale twice")
    return scales


Scales = Annotated[
    tuple[Annotated[float, Field(gt=0, le=16)], ...], Strict(False), Field(min_length=1, max_length=16), AfterValidator(_once_each)
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
    WithJsonSchema({"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}),
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

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=False)


class Experiment(Section):
    """What the run is called and where it is kept."""

    name: str = Field("run", min_length=1, description="Name of the run")
    output: str = Field("runs/{name}", min_length=1, description="Folder of the run; {name} stands for the name")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Every random number is a function of this, the epoch, the rank and the index")

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

    fraction: Fraction = Field(0.5, description="Share of an epoch drawn class by class (0.5 in the release); 0 turns it off")
    tile: Tile = Field((1024, 1024), description="Size of the tiles in which classes are looked for: [height, width] or one side")
    point: Literal["pixel", "centroid"] = Field(
        "pixel", description="Where a crop is placed: at a pixel of the class, or at its centre of mass as in the release"
    )


class Extra(Section):
    """A second, larger source of training images with coarse or automatic labels."""

    split: str = Field("train_extra", min_length=1, description="Split its images come from")
    labels: Literal["coarse", "auto"] = Field("auto", description="Labels drawn coarsely by people, or automatic ones")
    root: str | None = Field(None, description="Folder or manifest of automatic labels, as autolabel.py wrote it")
    probability: Fraction = Field(0.5, description="Share of an epoch drawn from this source (mode mixture; 0.5 in the paper)")
    mode: Literal["mixture", "boost"] = Field(
        "mixture", description="mixture: the paper's draw by probability; boost: these images join the pools of boost_classes"
    )
    boost_classes: Names = Field((), description="Classes whose pools these images join (mode boost)")
    policy: dict[str, Literal["auto", "human", "union", "drop"]] = Field(
        default_factory=dict, description="Per class: take the automatic label, the human coarse one, both, or neither"
    )
    confidence_threshold: Fraction | None = Field(
        None, description="Ignore automatic pixels below this confidence (needs confidence images); null: as they are"
    )
    mask_border: bool = Field(False, description="Ignore the car's bonnet and the rectification border of Cityscapes frames")


class Data(Section):
    """Which images, how they are augmented, sampled and read."""

    dataset: Literal["folder", "cityscapes", "mapillary"] = Field("cityscapes", description="Layout of the data set")
    root: str = Field("data/cityscapes", min_length=1, description="Folder of the data set")
    classes: str | None = Field(None, description="YAML list of classes (data set folder)")
    train_split: str = Field("train", min_length=1, description="Split to train on")
    val_split: str = Field("val", min_length=1, description="Split to validate on")
    cv: Annotated[Literal[0, 1, 2] | None, Integer] = Field(None, description="Cross-validation split by city (Cityscapes); null: the official splits")
    crop: Size = Field((1024, 2048), description="Training crop [height, width]")
    scale_range: Range = Field((0.5, 2.0), description="Random scale, from and to")
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip")
    color: float = Field(0.25, ge=0, le=1, description="Strength of brightness, contrast and saturation jitter; 0 turns it off")
    hue: float = Field(0.25, ge=0, le=0.5, description="Largest hue shift as a fraction of the circle; 0 turns it off")
    blur: Literal["none", "gaussian", "bilateral"] = Field("gaussian", description="Kind of blur")
    blur_probability: Fraction = Field(1.0, description="Share of images that are blurred")
    long_edge: Count | None = Field(None, description="Resize images so that their long edge is this; null: native size")
    augment_on_device: bool = Field(False, description="Colour and blur on the training device, in the batch")
    batch_size: Count = Field(1, description="Images per process and forward pass")
    workers: int = Field(4, ge=0, description="Loader processes per training process; 0 loads in the process itself")
    max_pixels: Count = Field(200_000_000, description="Images with more pixels are refused before they are decoded")
    cache: Literal["none", "memmap"] = Field("none", description="Cache of decoded images")
    cache_dir: str | None = Field(None, description="Folder of caches; null: .hmsa in the data set's folder")
    verify: Literal["none", "sample", "all"] = Field("sample", description="How many files are checked before training")
    class_uniform: ClassUniform = Field(default_factory=ClassUniform, description="Class-uniform sampling")
    extra: Extra | None = Field(None, description="A second source of training images; null: none")


class Model(Section):
    """The network: trunk x decoder x multiscale."""

    trunk: Trunk = Field("hrnet_w48", description="Feature network: HRNet, ResNet, or timm:NAME")
    decoder: Literal["ocr", "deeplabv3plus", "fcn"] = Field("ocr", description="Head that turns features into logits")
    multiscale: Literal["single", "hierarchical", "hierarchical_dual", "explicit"] = Field(
        "hierarchical", description="How scales are combined: hierarchical attention is the paper's"
    )
    output_stride: Annotated[Literal[8, 16], Integer] = Field(8, description="Stride of the last features of a ResNet; HRNet has its own")
    align_corners: bool = Field(False, description="Kind of bilinear resizing: false for the authors' weights, true for HRNet-OCR's own")
    fuse_at: Literal["image", "features"] = Field(
        "image", description="Fuse at image size (as published weights were scored), or at feature size (the paper's words, less memory)"
    )
    train_scales: Scales = Field(
        (0.5, 1.0), description="Scales of a training step; left out: 1 for single, 0.5 and 1 for hierarchical, 0.5, 1 and 2 for explicit"
    )
    trunk_weights: str | None = Field(None, description="Weights the trunk starts from: imagenet, a name, a file; null: random")
    init_from: str | None = Field(None, description="Checkpoint of a whole model to start from; what fits is taken and reported")
    attention_channels: Count = Field(256, description="Width of the attention head (256 in the release; the paper does not say)")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the attention head's last layer")
    head: Literal["release", "paper"] = Field("release", description="Semantic head of the published checkpoints, or of the paper's text")
    explicit_softmax: bool = Field(True, description="Soft-max over scales (multiscale explicit); false: the release's raw weights")

    @model_validator(mode="before")
    @classmethod
    def _scales_of_multiscale(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("train_scales") is not None:
            return values
        scales = TRAIN_SCALES.get(str(values.get("multiscale", "hierarchical")), (0.5, 1.0))
        return {**values, "train_scales": scales}


class Rmi(Section):
    """Constants of the region mutual information loss (Zhao et al. 2019)."""

    radius: Annotated[Literal[1, 2, 3, 4, 5], Integer] = Field(3, description="Side of the square window whose pixels are seen as one vector")
    pool: Literal["avg", "max", "interp", "none"] = Field("avg", description="How label and probability are made smaller first")
    pool_size: Count = Field(4, description="Size and stride of that pooling")
    lambda_way: Annotated[Literal[0, 1], Integer] = Field(1, description="1: weight x bce + (1 - weight) x rmi; 0: bce + weight x rmi")
    weight: Fraction = Field(0.5, description="The lambda of lambda_way")


class Ohem(Section):
    """Cross-entropy of hard pixels only."""

    threshold: Fraction = Field(0.7, description="Pixels whose true class has at least this probability are left out")
    min_kept: Fraction = Field(0.0625, description="Least share of the valid pixels that is kept")


class Loss(Section):
    """What is minimised."""

    main: Literal["cross_entropy", "rmi"] = Field("rmi", description="Loss of the fused prediction")
    aux: Literal["cross_entropy", "bce", "rmi"] = Field("cross_entropy", description="Loss of the auxiliary output")
    aux_weight: float = Field(0.4, ge=0, description="Weight of the auxiliary loss (0.4 in the release; the paper does not say)")
    scale_weight: float = Field(0.0, ge=0, description="Weight of each scale's own loss (0.05 in the release, none in the paper)")
    scale_loss: Literal["cross_entropy", "bce"] = Field("cross_entropy", description="Loss of each scale's own prediction")
    class_weights: Literal["none", "frequency"] = Field("none", description="Weigh classes by their frequency in the training labels")
    rmi: Rmi = Field(default_factory=Rmi, description="Constants of the rmi loss")
    ohem: Ohem = Field(default_factory=Ohem, description="Constants of the ohem loss")


class Optim(Section):
    """Optimiser, learning rate and length of training."""

    optimizer: Literal["sgd", "adamw", "lamb"] = Field("sgd", description="Optimiser; lamb exists in NVIDIA apex only")
    backend: Literal["auto", "torch", "foreach", "fused", "apex"] = Field("auto", description="Implementation of the optimiser")
    lr: Positive = Field(0.01, description="Learning rate at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay")
    decay_norm_and_bias: bool = Field(True, description="Decay batch-norm parameters and biases too, as the release does")
    head_lr_multiplier: Positive = Field(1.0, description="Learning rate of everything but the trunk, relative to lr")
    epochs: Count = Field(175, description="Epochs")
    schedule: Literal["poly", "poly2", "scl_poly", "constant"] = Field("poly", description="How the learning rate falls")
    poly_exponent: Positive = Field(2.0, description="Exponent of the poly schedules")
    schedule_per: Literal["step", "epoch"] = Field("step", description="The rate changes every step, or every epoch as in the release")
    poly_step: Count = Field(110, description="Epoch from which the exponent doubles (poly2)")
    rescale_epoch: int = Field(0, ge=0, description="Epoch at which the rate restarts (scl_poly)")
    rescale: Positive = Field(1.0, description="Factor of that restart (scl_poly)")
    repoly: Positive = Field(1.5, description="Exponent after that restart (scl_poly)")
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises from nothing")
    accumulate: Count = Field(1, description="Batches whose gradients make one step")
    reference_batch: Count | None = Field(None, description="Global batch that lr was chosen for; null: whatever it is")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field("none", description="How lr follows a batch other than the reference")
    clip_norm: Positive | None = Field(None, description="Clip the gradient's norm to this; null: never")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Also keep an average of the weights, with this decay; null: none")

    def schedule_arguments(self) -> dict[str, Any]:
        """The fields that describe the schedule."""
        names = ("schedule", "epochs", "poly_exponent", "schedule_per", "warmup_steps", "poly_step", "rescale", "repoly", "rescale_epoch")
        return {name: getattr(self, name) for name in names}


class Runtime(Section):
    """Where and how a training computes, and what it reports."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    precision: Precision = Field("fp32", description="Autocast to bf16 or fp16, or compute in fp32 or fp64")
    channels_last: bool = Field(True, description="Memory format of images and weights")
    compile: Literal["off", "trunk", "model"] = Field("off", description="What torch.compile compiles")
    activation_checkpointing: bool = Field(False, description="Compute the trunk's stages again in the backward pass to save memory")
    threads: Count | None = Field(None, description="CPU threads per process; null: torch's choice")
    deterministic: bool = Field(False, description="Only deterministic kernels; slower")
    tf32: bool = Field(True, description="TF32 in fp32 products on GPUs that have it")
    sync_batchnorm: Literal["auto", "off"] = Field("auto", description="Batch statistics over all processes when there are several")
    profile: bool = Field(False, description="Write a profile trace of some steps")
    checkpoint_minutes: Positive = Field(10.0, description="A checkpoint at least this often")
    keep_checkpoints: Count = Field(2, description="How many of the last checkpoints stay")
    val_every: Count = Field(1, description="Epochs between validations")
    image_every: Count = Field(5, description="Epochs between pictures")
    log_every: Count = Field(10, description="Steps between lines of the log")
    max_bad_steps: Count = Field(20, description="Stop after so many steps in a row whose loss is not finite")
    timeout_minutes: Positive = Field(10.0, description="Give up on other processes after this")


class Inference(Section):
    """How predictions are made."""

    scales: Scales = Field((0.5, 1.0, 2.0), description="Scales to combine, any list")
    flip: bool = Field(False, description="Average with the prediction of the mirrored image")
    combine: Combine = Field("average", description="How a single-scale model's scales are combined")
    over: Over = Field("logits", description="What is averaged")
    tile: Size | None = Field(None, description="Predict in tiles of [height, width]; null: whole images")
    overlap: float = Field(0.25, ge=0, lt=1, description="Overlap of neighbouring tiles as a fraction of a tile")
    precision: Precision = Field("fp32", description="Autocast to bf16 or fp16, or compute in fp32 or fp64")
    batch_size: Count = Field(1, description="Images of equal size per forward pass")
    workers: int = Field(2, ge=0, description="Loader processes per process; 0 loads in the process itself")


class Eval(Inference):
    """How a split is evaluated, in training and by eval.py."""

    boundary_f: bool = Field(False, description="Boundary F-score too")


class Autolabel(Inference):
    """How autolabel.py labels images."""

    threshold: Fraction = Field(0.9, description="Pixels whose largest probability is below this are ignored")
    class_thresholds: dict[str, Fraction] = Field(default_factory=dict, description="Thresholds of single classes")
    quantile: Fraction | None = Field(
        None, description="Choose each class's threshold so that this share of its pixels is kept; null: the thresholds above"
    )
    label_ids: Literal["raw", "train"] = Field("raw", description="Ids in the written labels: the data set's own or train ids")
    confidence: bool = Field(False, description="Write 8-bit confidence images too")


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
