"""Ways to damage a file, or to make it odd.

Each takes the file and a source of random numbers, changes the file, and says what it did. Some
damage matters, whatever the command: one that uses such a file has to refuse it or to name it.
Other changes are merely odd, and a command may take them without a word.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

NOT_NUMBERS = (float("nan"), float("inf"), -float("inf"))


@dataclass(frozen=True)
class Damage:
    """What was done to a file, and whether no command may take the file without a word."""

    what: str
    matters: bool


Mutation = Callable[[Path, random.Random], Damage]

# --- bytes of any file ---


def flip_bytes(path: Path, rng: random.Random) -> Damage:
    """Other values in one to eight places."""
    data = bytearray(path.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.randint(1, 8))]
    for place in places:
        data[place] ^= rng.randint(1, 255)
    path.write_bytes(data)
    return Damage(f"bytes {places} flipped", matters=False)


def cut_off(path: Path, rng: random.Random) -> Damage:
    """The first part only, as a full disk or a broken download leaves it."""
    data = path.read_bytes()
    kept = rng.randrange(1, len(data) - 1)
    path.write_bytes(data[:kept])
    return Damage(f"cut off after {kept} of {len(data)} bytes", matters=False)


def zero_block(path: Path, rng: random.Random) -> Damage:
    """A block of zeros, as a power cut leaves it."""
    data = bytearray(path.read_bytes())
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice([16, 512, 4096]))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    return Damage(f"zeros from byte {begin} to {end}", matters=False)


def append_junk(path: Path, rng: random.Random) -> Damage:
    """Further bytes behind the end."""
    junk = rng.randbytes(rng.choice([1, 100, 5000]))
    path.write_bytes(path.read_bytes() + junk)
    return Damage(f"{len(junk)} bytes appended", matters=False)


def replace_content(path: Path, rng: random.Random) -> Damage:
    """Something else under the same name, such as the login page of a download."""
    contents = {
        "nothing": b"",
        "one byte": b"\0",
        "a web page": b"<!DOCTYPE html><html><body>Please log in</body></html>\n",
        "noise": rng.randbytes(3000),
        "a zip archive": b"PK\x05\x06" + bytes(18),
    }
    what = rng.choice(sorted(contents))
    path.write_bytes(contents[what])
    return Damage(f"replaced by {what}", matters=True)


def replace_kind(path: Path, rng: random.Random) -> Damage:
    """Something that is no file under the same name."""
    kind = rng.choice(["nothing", "a folder", "a dangling link", "a link to itself", "a fifo"])
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a dangling link":
        path.symlink_to("gone")
    elif kind == "a link to itself":
        path.symlink_to(path)
    elif kind == "a fifo":
        os.mkfifo(path)
    return Damage(f"replaced by {kind}", matters=False)


def make_unreadable_link(path: Path, rng: random.Random) -> Damage:
    """A link to a device that never ends, or that is always empty."""
    device = rng.choice(["/dev/zero", "/dev/null"])
    path.unlink()
    path.symlink_to(device)
    return Damage(f"replaced by a link to {device}", matters=False)


def certain(mutation: Mutation) -> Mutation:
    """The same mutation where its damage matters: of files whose every byte counts."""

    def mutate(path: Path, rng: random.Random) -> Damage:
        return Damage(mutation(path, rng).what, matters=True)

    return mutate


def harmless(mutation: Mutation) -> Mutation:
    """The same mutation where its damage does not matter: of files that are only written."""

    def mutate(path: Path, rng: random.Random) -> Damage:
        return Damage(mutation(path, rng).what, matters=False)

    return mutate


# --- text: configurations, class lists, lists of images ---

ODD_VALUES = (
    *("nan", ".nan", ".inf", "-.inf", "1e400", "-1", "0", "-0.0", "1e-400", "true", "no", "null"),
    *("~", "''", "' '", "[]", "{}", "[[]]", "2001-99-99", "12:30:45", "0x1G", "012", "1_000", "="),
    *(
        "..",
        "/",
        "/dev/zero",
        "~/x",
        "$HOME",
        "%s",
        "{}{0}",
        "'\\0'",
        '"\\x00"',
        "!!python/name:os",
    ),
    *("&a [*a]", "9" * 6000, "x" * 5000, "\u00e9\u4e2d", "'\ud7ff'", "-", "?", "|", ">", "@", "`"),
)
ODD_BYTES = (b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"\x80", b"\r", b"\t", b"\x1b[2J", b"\xc3(")


def odd_value(path: Path, rng: random.Random) -> Damage:
    """An odd value in the place of one value of a YAML file."""
    lines = path.read_text().splitlines()
    number = rng.choice([place for place, line in enumerate(lines) if ":" in line or "- " in line])
    value = rng.choice(ODD_VALUES)
    head = lines[number].rpartition(": ")[0]
    if head:
        lines[number] = f"{head}: {value}"
    else:
        lines[number] += f" {value}"
    path.write_text("\n".join(lines) + "\n", errors="replace")
    return Damage(f"line {number + 1} is now {lines[number][:60]!r}", matters=False)


def unknown_key(path: Path, rng: random.Random) -> Damage:
    """A key with a letter too many, which nobody would read."""
    lines = path.read_text().splitlines()
    number = rng.choice([place for place, line in enumerate(lines) if ":" in line])
    key, _, rest = lines[number].partition(":")
    lines[number] = f"{key}z:{rest}"
    path.write_text("\n".join(lines) + "\n")
    return Damage(f"line {number + 1} is now {lines[number]!r}", matters=True)


def duplicate_key(path: Path, rng: random.Random) -> Damage:
    """A key twice, of which a lax reader takes the last."""
    lines = path.read_text().splitlines()
    numbers = [
        place
        for place, line in enumerate(lines)
        if ": " in line and not line.lstrip().startswith("- ")
    ]
    number = rng.choice(numbers)
    lines.insert(number, lines[number])
    path.write_text("\n".join(lines) + "\n")
    return Damage(f"line {number + 1} twice: {lines[number]!r}", matters=True)


def shuffle_lines(path: Path, rng: random.Random) -> Damage:
    """A line deleted, doubled, moved, or indented otherwise."""
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    what = rng.choice(["deleted", "moved", "indented", "unindented"])
    line = lines.pop(number)

    if what == "moved":
        lines.insert(rng.randrange(len(lines) + 1), line)
    elif what == "indented":
        lines.insert(number, "  " + line)
    elif what == "unindented":
        lines.insert(number, line[2:])

    path.write_text("\n".join(lines) + "\n")
    return Damage(f"line {number + 1} {what}: {line!r}", matters=False)


def odd_bytes(path: Path, rng: random.Random) -> Damage:
    """Bytes that text rarely holds: marks, controls, halves of characters."""
    data, odd = path.read_bytes(), rng.choice(ODD_BYTES)
    place = rng.choice([0, rng.randrange(len(data)), len(data)])
    path.write_bytes(data[:place] + odd + data[place:])
    return Damage(f"{odd!r} inserted at byte {place}", matters=False)


def deep_yaml(path: Path, rng: random.Random) -> Damage:
    """Nesting and references that a naive reader follows for ever."""
    contents = {
        "lists nested 3000 deep": "a: " + "[" * 3000 + "]" * 3000 + "\n",
        "a base that is itself": f"base: {path.name}\n",
        "a base that is not there": "base: gone.yaml\n",
        "a base that is a device": "base: /dev/zero\n",
        "a list of bases": f"base: [{', '.join([path.name] * 16)}]\n",
        "a list that holds itself": "a: &a [*a]\n",
        "a number of 6000 digits": "data: {seed: " + "7" * 6000 + "}\n",
        "many references": "".join(
            f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n"
            if number
            else "a0: &a0 [1]\n"
            for number in range(9)
        ),
    }

    what = rng.choice(sorted(contents))
    path.write_text(contents[what])
    return Damage(f"now {what}", matters=True)


def edit_list(path: Path, rng: random.Random) -> Damage:
    """An odd line in a list of images."""
    odd_lines: dict[str, tuple[bytes, bool]] = {
        "a missing file": (b"photos/gone.png", True),
        "a way out of the folder": (b"../../../../etc/passwd", True),
        "a file twice": (b"photos/first.png", False),
        "the same file spelt otherwise": (b"photos/more/../first.png", False),
        "a folder": (b"photos", False),
        "a device": (b"/dev/zero", True),
        "a NUL": (b"photos/fi\0rst.png", True),
        "no UTF-8": (b"photos/\xff\xfe.png", True),
        "a name too long": (b"photos/" + b"x" * 300 + b".png", True),
        "two columns": (b"photos/first.png photos/second.jpg", True),
        "spaces": (b"   ", False),
        "the list itself": (b"photos.txt", False),
        "a web address": (b"https://example.org/first.png", True),
    }

    # Whatever names no image has to be refused or left out with a word.
    what = rng.choice(sorted(odd_lines))
    odd, matters = odd_lines[what]
    lines = path.read_bytes().splitlines()
    lines.insert(rng.randrange(len(lines) + 1), odd)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return Damage(f"{what} among the lines", matters)


def edit_classes(path: Path, rng: random.Random) -> Damage:
    """A list of classes that contradicts itself or the network."""
    content = yaml.safe_load(path.read_text())
    classes = content["classes"]
    one, other = rng.sample(range(len(classes)), 2)
    what = rng.choice(["name twice", "id twice", "id of ignore", "large id", "colour", "no class"])
    if what == "name twice":
        classes[one]["name"] = classes[other]["name"]
    elif what == "id twice":
        classes[one]["id"] = classes[other]["id"]
    elif what == "id of ignore":
        classes[one]["id"] = content["ignore"]
    elif what == "large id":
        classes[one]["id"] = rng.choice([256, -2, 10**30])
    elif what == "colour":
        classes[one]["color"] = rng.choice([[1, 2], [1, 2, 300], "red", [1.5, 0, 0], None])
    else:
        content["classes"] = rng.choice([[], None, "sky", {}])

    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Damage(what, matters=True)


def reorder_classes(path: Path, rng: random.Random) -> Damage:
    """Other classes than the network was trained for, as many as before."""
    content = yaml.safe_load(path.read_text())
    classes = content["classes"]
    if rng.random() < 0.5:
        classes.reverse()
        what = "the classes in reverse order"
    else:
        classes[0]["name"] = "water"
        what = "a class renamed"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Damage(what, matters=True)


# --- pictures ---


def odd_picture(path: Path, rng: random.Random) -> Damage:
    """The same picture in a form that cameras and programs write, too."""
    image = Image.open(path)
    image.load()

    # Pillow takes the format from the ending of the name, but for those that are named here.
    forms = {
        "grey": lambda: image.convert("L").save(path),
        "palette": lambda: image.convert("P").save(path),
        "alpha": lambda: image.convert("RGBA").save(path),
        "one bit": lambda: image.convert("1").save(path),
        "16 bits": lambda: Image.fromarray(_sixteen_bits(image)).save(path, format="PNG"),
        "another format": lambda: image.convert("RGB").save(path, format="BMP"),
        "a TIFF": lambda: image.convert("RGB").save(path, format="TIFF"),
        "turned by Exif": lambda: image.save(path, exif=_orientation(rng.randint(2, 8))),
        "odd Exif": lambda: image.save(path, exif=b"Exif\0\0" + rng.randbytes(40)),
        "an animation": lambda: image.convert("P").save(
            path, format="GIF", save_all=True, append_images=[image.convert("P")] * 2
        ),
    }

    what = rng.choice(sorted(forms))
    forms[what]()
    return Damage(f"saved anew: {what}", matters=False)


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")).astype(np.uint16) * 257


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def other_size(path: Path, rng: random.Random) -> Damage:
    """A picture of another size, which no longer fits its label or image."""
    size = rng.choice([(1, 1), (64, 47), (63, 48), (7, 300), (128, 96)])
    image = Image.open(path)
    image.resize(size, Image.Resampling.NEAREST).save(path)
    return Damage(f"resized to {size[0]} x {size[1]}", matters=False)


def enormous_header(path: Path, rng: random.Random) -> Damage:
    """A PNG whose header claims more pixels than any memory holds."""
    data = bytearray(path.read_bytes())
    side = rng.choice([100_000, 2**31 - 1, 2**32 - 1, 0])
    data[16:20] = side.to_bytes(4, "big")
    data[20:24] = side.to_bytes(4, "big")
    path.write_bytes(data)
    return Damage(f"a header of {side} x {side} pixels", matters=True)


def wrong_label_values(path: Path, rng: random.Random) -> Damage:
    """Labels with ids that are no class."""
    label = np.array(Image.open(path))
    value = rng.choice([3, 77, 200, 254])
    label[20:30, 20:30] = value
    Image.fromarray(label).save(path)
    return Damage(f"100 pixels of id {value}", matters=True)


def empty_label(path: Path, rng: random.Random) -> Damage:
    """A label without a labelled pixel, which is odd but allowed."""
    label = np.array(Image.open(path))
    Image.fromarray(np.full_like(label, 255)).save(path)
    return Damage("every pixel is ignored", matters=False)


# --- checkpoints ---


def edit_checkpoint(path: Path, rng: random.Random) -> Damage:
    """Another content in a file that is whole, with the right hash beside it."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    damage = rng.choice(
        [
            _drop_entry,
            _odd_entry,
            _newer_version,
            _odd_tensor,
            _odd_tensor,
            _odd_spec,
            _holds_itself,
        ]
    )(content, rng)
    torch.save(content, path)

    # Every checkpoint may have a hash beside it: only the content is to be odd.
    sidecar = path.with_name(path.name + ".sha256")
    if sidecar.exists():
        sidecar.write_text(f"{_sha256(path)}  {path.name}\n")
    return damage


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _drop_entry(content: dict[str, Any], rng: random.Random) -> Damage:
    key = rng.choice(["model", "config", "spec", "format"])
    content.pop(key, None)
    return Damage(f"no entry {key}", matters=key != "format")


def _odd_entry(content: dict[str, Any], rng: random.Random) -> Damage:
    key = rng.choice(["model", "config", "spec"])
    content[key] = rng.choice([None, [], 3, "text", {}, {1: 2}])
    return Damage(f"{key} is {content[key]!r}", matters=True)


def _newer_version(content: dict[str, Any], rng: random.Random) -> Damage:
    content["version"] = rng.choice([999, "two", None, -1])
    return Damage(f"version {content['version']!r}", matters=content["version"] == 999)


def _odd_tensor(content: dict[str, Any], rng: random.Random) -> Damage:
    """A tensor that is no weight of this network, or that holds no numbers."""
    state = content["model"]
    names = [name for name in state if state[name].is_floating_point() and state[name].ndim > 0]
    name = rng.choice(names)
    tensor = state[name].clone()

    what = rng.choice(["not finite", "missing", "shape", "complex", "sparse", "integers", "text"])
    if what == "not finite":
        place = tuple(rng.randrange(length) for length in tensor.shape)
        tensor[place] = rng.choice(NOT_NUMBERS)
        state[name] = tensor
    elif what == "missing":
        del state[name]
    elif what == "shape":
        state[name] = tensor.repeat(2, *[1] * (tensor.ndim - 1))
    elif what == "complex":
        state[name] = tensor.to(torch.complex64)
    elif what == "sparse":
        state[name] = tensor.to_sparse()
    elif what == "integers":
        state[name] = tensor.to(torch.int64)
    else:
        state[name] = "text"

    # Weights of another type that hold the same numbers may be taken as they are.
    return Damage(f"{name}: {what}", matters=what not in ("sparse", "integers"))


def _odd_spec(content: dict[str, Any], rng: random.Random) -> Damage:
    """Classes that are not those of the network."""
    spec = content["spec"]
    classes = list(spec["classes"])
    what = rng.choice(["a class less", "a class more", "no classes", "odd names"])
    if what == "a class less":
        classes = classes[:-1]
    elif what == "a class more":
        classes = [*classes, {**classes[0], "name": "more", "raw_ids": [9]}]
    elif what == "no classes":
        classes = []
    else:
        classes = [{**item, "name": number} for number, item in enumerate(classes)]

    content["spec"] = {**spec, "classes": classes}
    return Damage(f"classes of the checkpoint: {what}", matters=what != "odd names")


def _holds_itself(content: dict[str, Any], rng: random.Random) -> Damage:
    """A dictionary that holds itself, which a walk never leaves."""
    key = rng.choice(["config", "model", "more"])
    inner = content.setdefault(key, {})
    inner["again"] = inner
    return Damage(f"{key} holds itself", matters=key != "more")


# --- JSON: manifests, records of a run ---

ODD_JSON: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, "", "x", [], {}, [[]], {"a": 1}, 10**30, "../../out", "/etc/passwd"),
    *(float("nan"), "\u0000", "x" * 300),
)


def edit_json(path: Path, rng: random.Random) -> Damage:
    """An odd value at one place of a JSON file, or of one line of a file with JSON lines."""
    lines = [path.read_text()]
    if path.suffix == ".jsonl":
        lines = lines[0].splitlines()
    number = rng.randrange(len(lines))
    content = json.loads(lines[number])

    # Down to some value, whose place gets another one or none.
    holder, key = _some_place(content, rng)
    if rng.random() < 0.3:
        del holder[key]
        what = f"no {key!r}"
    else:
        holder[key] = rng.choice(ODD_JSON)
        what = f"{key!r} is {str(holder[key])[:40]!r}"
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")
    return Damage(what, matters=False)


def _some_place(content: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container inside `content` and one of its keys or places."""
    holder = content
    while True:
        keys: list[Any] = list(range(len(holder)))
        if isinstance(holder, dict):
            keys = sorted(holder)
        key = rng.choice(keys)
        if not (isinstance(holder[key], (dict, list)) and holder[key]) or rng.random() < 0.2:
            return holder, key
        holder = holder[key]


# --- folders ---


def remove_part(path: Path, rng: random.Random) -> Damage:
    """A file or folder gone."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return Damage("removed", matters=True)
