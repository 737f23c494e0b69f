"""Published weights by name: where they lie, what they should hash to, and a cache that never holds half a file."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..layers import ModelError

TIMEOUT_S = 30
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """A file on the network and its sha256: all 64 digits, the first few that its publisher states, or None."""

    url: str
    sha256: str | None = None

    @property
    def suffix(self) -> str:
        return Path(self.url).suffix


@dataclass(frozen=True)
class Weights:
    """Published weights. `trunk` is the trunk they were made for (None: a whole model, see the notes); `sources` are tried in their order."""

    name: str
    trunk: str | None
    sources: tuple[Source, ...]
    licence: str
    notes: str


def _hugging_face(name: str) -> tuple[Source, ...]:
    """Both forms in which timm publishes a file; its hash is recorded when it is first fetched."""
    folder = f"https://huggingface.co/{name}/resolve/main"
    return Source(f"{folder}/model.safetensors"), Source(f"{folder}/pytorch_model.bin")


def _timm(name: str, trunk: str, notes: str, *, licence: str = "MIT") -> Weights:
    return Weights(f"timm/{name}", trunk, _hugging_face(f"timm/{name}"), licence, notes)


def _torchvision(trunk: str, version: int, digits: str, notes: str) -> Weights:
    """torchvision names its files by the first eight digits of their sha256."""
    source = Source(f"https://download.pytorch.org/models/{trunk}-{digits}.pth", digits)
    return Weights(
        f"torchvision/{trunk}.imagenet1k_v{version}", trunk, (source,), "BSD-3-Clause", notes
    )


def _authors(name: str, notes: str) -> Weights:
    """Google Drive, whose links are dead: the file must be brought by hand."""
    return Weights(name, None, (), "see github.com/NVIDIA/semantic-segmentation", notes)


def _hrnet_ocr(name: str, notes: str) -> Weights:
    source = Source(f"https://github.com/hsfzxjy/models.storage/releases/download/HRNet-OCR/{name}")
    return Weights(name, None, (source,), "MIT", notes + "; needs align_corners: true")


WEIGHTS: dict[str, Weights] = {
    weights.name: weights
    for weights in (
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
        _hrnet_ocr(
            "hrnet_ocr_cs_8162_torch11.pth", "hrnet_w48 + ocr, single, Cityscapes val 81.62"
        ),
        _hrnet_ocr(
            "hrnet_ocr_cs_trainval_8227_torch11.pth",
            "hrnet_w48 + ocr, single, Cityscapes train and val",
        ),
    )
}
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


def resolve_weights(
    name_or_path: str | Path,
    *,
    trunk: str,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
) -> Path:
    """The file of weights that a name of WEIGHTS, "imagenet" or a path stands for; fetched into the cache when it is not there.

    `trunk` is the trunk that is to be filled. The cache is `cache_dir`, else $HMSA_CACHE, else ~/.cache/hmsa. With
    `offline` (default: whether $HMSA_OFFLINE is set) nothing is fetched. A file is checked against its published
    sha256, or, where none is published, against the one recorded when it came. Raises ModelError in one sentence.
    """
    weights = _registered(str(name_or_path), trunk)
    if weights is None:
        if Path(name_or_path).is_file():
            return Path(name_or_path)
        raise ModelError(_unknown(str(name_or_path)))
    if weights.trunk not in (None, trunk):
        raise ModelError(
            f"the weights {weights.name} were made for the trunk {weights.trunk} and not for {trunk}: give those of {trunk}, or a file."
        )
    folder = Path(cache_dir or os.environ.get("HMSA_CACHE") or Path.home() / ".cache" / "hmsa")
    for target, source in _targets(weights, folder):
        if target.is_file():
            _verify(target, source)
            return target
    if os.environ.get("HMSA_OFFLINE", "") not in ("", "0") if offline is None else offline:
        raise ModelError(
            _by_hand(weights, folder, "are not in the cache, and fetching is switched off")
        )
    return _fetch(weights, folder)


def _registered(name: str, trunk: str) -> Weights | None:
    """What the name stands for, or None when it may be a path."""
    if name == "imagenet":
        if trunk in IMAGENET:
            return WEIGHTS[IMAGENET[trunk]]
        return _of_timm(trunk)
    if name in WEIGHTS:
        return WEIGHTS[name]
    if trunk.startswith("timm:") and name.startswith("timm/") and not Path(name).is_file():
        return Weights(name, trunk, _hugging_face(name), "see its page", "named by the user")
    return next(
        (weights for weights in WEIGHTS.values() if weights.name.partition("/")[2] == name), None
    )


def _of_timm(trunk: str) -> Weights:
    """The default weights of a `timm:` trunk, as timm itself names them."""
    known = None
    if trunk.startswith("timm:"):
        import timm

        model = trunk.removeprefix("timm:")
        known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if known is None or not known.hf_hub_id:
        raise ModelError(
            f"no ImageNet weights are known for the trunk {trunk}: give a file, or leave trunk_weights out."
        )
    name = known.hf_hub_id + (
        f"{known.architecture}.{known.tag}" if known.hf_hub_id.endswith("/") else ""
    )
    return Weights(
        name, trunk, _hugging_face(name), known.license or "see its page", "timm's default weights"
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(
        name, ["imagenet", *WEIGHTS, *(key.partition("/")[2] for key in WEIGHTS)], n=1
    )
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{name!r} is neither a file nor the name of published weights{hint}: choose imagenet, {', '.join(WEIGHTS)}, or give a path."


def _targets(weights: Weights, folder: Path) -> Iterator[tuple[Path, Source | None]]:
    """Where each source of the weights lies in the cache; weights without one keep their own name."""
    stem = weights.name.replace("/", "--")
    if not weights.sources:
        yield folder / stem, None
    for source in weights.sources:
        readable = (
            source.suffix != ".safetensors" or importlib.util.find_spec("safetensors") is not None
        )
        if readable:
            yield folder / f"{stem.removesuffix(source.suffix)}{source.suffix}", source


def _by_hand(weights: Weights, folder: Path, what: str) -> str:
    places = [
        (target, "its publisher" if source is None else source.url)
        for target, source in _targets(weights, folder)
    ]
    target, origin = places[0]
    return f"the weights {weights.name} {what}: get the file from {origin} and save it as {target}, or give the path of a file."


def _fetch(weights: Weights, folder: Path) -> Path:
    if not weights.sources:
        raise ModelError(
            _by_hand(weights, folder, f"have no public link that works ({weights.licence})")
        )
    failures = []
    for target, source in _targets(weights, folder):
        assert source is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(target):
                if not target.is_file():  # another process may have fetched it meanwhile
                    _download(source, target)
        except (
            OSError,
            http.client.HTTPException,
        ) as error:  # URLError is an OSError, and so is a full disk
            failures.append(f"{source.url}: {_reason(error)}")
            continue
        return target
    raise ModelError(_by_hand(weights, folder, f"could not be fetched ({'; '.join(failures)})"))


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return str(getattr(inner, "strerror", None) or inner).rstrip(".") or type(error).__name__


def _download(source: Source, target: Path) -> None:
    """Into a temporary file beside the target, checked, flushed to the disk, and only then renamed."""
    request = urllib.request.Request(source.url, headers={"User-Agent": "hmsa"})
    digest = hashlib.sha256()
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(request, timeout=TIMEOUT_S) as response,
        ):
            length = int(response.headers.get("Content-Length") or 0)
            with tqdm(
                total=length or None,
                desc=target.name,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None,
            ) as bar:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            received = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if length and received != length:
            raise http.client.HTTPException(
                f"the connection broke off after {received} of {length} bytes"
            )
        _check(
            digest.hexdigest(), source.sha256, f"what {source.url} sent is not what was published"
        )
        os.chmod(part, 0o644)
        os.replace(part, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    _record(target, digest.hexdigest())


def _verify(target: Path, source: Source | None) -> None:
    """A file of the cache is what it was when it came, or what was published."""
    digest = hashlib.sha256()
    with target.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found, sidecar = digest.hexdigest(), _sidecar(target)
    advice = f"{target} is damaged, so delete it and {sidecar.name}"
    _check(found, None if source is None else source.sha256, advice)
    recorded = sidecar.read_text().split() if sidecar.is_file() else []
    if recorded:
        _check(found, recorded[0], advice)
    else:
        _record(target, found)


def _check(found: str, published: str | None, what: str) -> None:
    if published is not None and not found.startswith(published):
        raise ModelError(f"{what}: its sha256 is {found[:12]}... and should be {published[:12]}...")


def _sidecar(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _record(target: Path, digest: str) -> None:
    """Remember the hash beside the file, as sha256sum writes it; a cache that cannot be written to keeps none."""
    with contextlib.suppress(OSError):
        _sidecar(target).write_text(f"{digest}  {target.name}\n")


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time, where the system has file locks, so that eight ranks fetch a file once."""
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with target.with_name(f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
