"""What a case is: a command, the file it reads that is damaged, and how."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import mutations as m
from .mutations import Damage, Mutation

BEST = "run/checkpoints/best.pt"
CHECKPOINT = ("--checkpoint", BEST)
RUN_HERE = "experiment.output=out/run"


@dataclass(frozen=True)
class FuzzedCommand:
    """A command on sound inputs: program and words, the parts it reads, and where it may write."""

    program: str
    words: tuple[str, ...]
    parts: tuple[str, ...]
    outputs: tuple[str, ...] = ("out",)


DATA, CONFIG, RUN, PHOTOS = "data", "config.yaml", "run", "photos"
COMMANDS = {
    "train": FuzzedCommand("train.py", (CONFIG, RUN_HERE), (CONFIG, DATA)),
    "dry run": FuzzedCommand("train.py", (CONFIG, "--dry-run", RUN_HERE), (CONFIG, DATA)),
    "resume": FuzzedCommand(
        "train.py",
        (CONFIG, "--resume", "experiment.output=run", "optim.epochs=2"),
        (CONFIG, DATA, RUN),
        outputs=("run",),
    ),
    "fine-tune": FuzzedCommand(
        "train.py",
        (CONFIG, "--dry-run", RUN_HERE, f"model.init_from={BEST}"),
        (CONFIG, DATA, RUN),
    ),
    "student": FuzzedCommand(
        "train.py",
        (
            *(CONFIG, "--dry-run", RUN_HERE, "data.extra.split=extra", "data.extra.labels=auto"),
            *("data.extra.root=autolabels/manifest.json", "data.verify=all"),
        ),
        (CONFIG, DATA, "autolabels"),
    ),
    "eval": FuzzedCommand("eval.py", (*CHECKPOINT, "--output", "out"), (DATA, RUN)),
    "eval run": FuzzedCommand("eval.py", ("--checkpoint", "run", "--output", "out"), (DATA, RUN)),
    "predict": FuzzedCommand(
        "eval.py", (*CHECKPOINT, "--images", PHOTOS, "--output", "out"), (PHOTOS, RUN)
    ),
    "predict list": FuzzedCommand(
        "eval.py",
        (*CHECKPOINT, "--images", "photos.txt", "--output", "out"),
        (PHOTOS, "photos.txt", RUN),
    ),
    "predict video": FuzzedCommand(
        "eval.py", (*CHECKPOINT, "--images", "film.avi", "--output", "out"), ("film.avi", RUN)
    ),
    "autolabel": FuzzedCommand(
        "autolabel.py", (*CHECKPOINT, "--images", PHOTOS, "--output", "out"), (PHOTOS, RUN)
    ),
    "autolabel list": FuzzedCommand(
        "autolabel.py",
        (*CHECKPOINT, "--list", "photos.txt", "--output", "out"),
        (PHOTOS, "photos.txt", RUN),
    ),
    "autolabel again": FuzzedCommand(
        "autolabel.py",
        (*CHECKPOINT, "--split", "extra", "--output", "autolabels"),
        (DATA, RUN, "autolabels"),
        outputs=("autolabels",),
    ),
    "verify": FuzzedCommand(
        "autolabel.py", ("--verify", "--output", "autolabels"), ("autolabels",)
    ),
    "calibrate": FuzzedCommand(
        "hmsa/__main__.py",
        ("calibrate", *CHECKPOINT, "--images", "4", "--output", "out/calibrated.pt"),
        (DATA, RUN),
    ),
    "attach": FuzzedCommand(
        "hmsa/__main__.py",
        ("attach", "--checkpoint", "single.pt", "--output", "out", "optim.epochs=1"),
        (DATA, "single.pt"),
    ),
    "check": FuzzedCommand(
        "scripts/check_dataset.py",
        (CONFIG, "--output", "out", "--workers", "1"),
        (CONFIG, DATA),
    ),
    "convert": FuzzedCommand("scripts/convert_weights.py", (BEST, "out/weights.pth"), (RUN,)),
    "export": FuzzedCommand(
        "scripts/export.py", (*CHECKPOINT, "--size", "48", "64", "--output", "out/m.pt2"), (RUN,)
    ),
    "panel": FuzzedCommand(
        "scripts/panel.py", (*CHECKPOINT, "--output", "out/panel.png"), (DATA, RUN)
    ),
}


@dataclass(frozen=True)
class Target:
    """A kind of input: which files it is, which commands read them, and how they are damaged."""

    files: tuple[str, ...]
    commands: tuple[str, ...]
    mutations: tuple[Mutation, ...]


ALL_BYTES: tuple[Mutation, ...] = (
    *(m.flip_bytes, m.cut_off, m.zero_block, m.append_junk),
    *(m.replace_content, m.replace_kind, m.make_unreadable_link),
)
TEXT = (m.odd_value, m.odd_value, m.shuffle_lines, m.odd_bytes, m.duplicate_key, m.cut_off)
IN_PICTURES = (m.odd_picture, m.odd_picture, m.other_size, m.certain(m.cut_off), *ALL_BYTES)
IN_LABELS = (m.enormous_header, m.wrong_label_values, m.wrong_label_values, m.empty_label)
READ_CHECKPOINT = ("eval", "eval run", "predict", "autolabel", "convert", "fine-tune", "panel")
TARGETS = {
    "configuration": Target(
        ("config.yaml",),
        ("dry run", "train", "check"),
        (*TEXT, m.unknown_key, m.deep_yaml, m.replace_content, m.replace_kind),
    ),
    "classes": Target(
        ("data/classes.yaml",),
        ("dry run", "train", "check", "eval", "panel"),
        (*TEXT, m.edit_classes, m.edit_classes, m.replace_content, m.replace_kind),
    ),
    "other classes": Target(
        ("data/classes.yaml",), ("eval", "eval run", "panel", "resume"), (m.reorder_classes,)
    ),
    "checkpoint bytes": Target(
        (BEST,),
        (*READ_CHECKPOINT, "export"),
        (
            *(m.certain(m.flip_bytes), m.certain(m.cut_off), m.certain(m.zero_block)),
            *(m.certain(m.append_junk), m.replace_content, m.certain(m.replace_kind)),
        ),
    ),
    "checkpoint content": Target((BEST,), READ_CHECKPOINT, (m.edit_checkpoint,)),
    "calibrated checkpoint": Target(
        (BEST,), ("calibrate",), (m.certain(m.flip_bytes), m.certain(m.cut_off), m.edit_checkpoint)
    ),
    "single-scale checkpoint": Target(
        ("single.pt",),
        ("attach",),
        (m.certain(m.flip_bytes), m.certain(m.cut_off), m.certain(m.zero_block), m.edit_checkpoint),
    ),
    "step checkpoint": Target(
        ("run/checkpoints/step-*.pt", "run/checkpoints/step-*.sha256"),
        ("resume",),
        (*ALL_BYTES, m.remove_part),
    ),
    "metrics of a run": Target(
        ("run/metrics.jsonl",), ("resume",), (*ALL_BYTES, m.odd_bytes, m.edit_json)
    ),
    "other records of a run": Target(
        ("run/config.yaml", "run/train.log"),
        ("resume", "eval run"),
        (m.flip_bytes, m.cut_off, m.odd_bytes, m.replace_kind, m.harmless(m.replace_content)),
    ),
    "training image": Target(
        ("data/images/train/*.png",), ("train", "check"), (*IN_PICTURES, m.enormous_header)
    ),
    "validation image": Target(
        ("data/images/val/*.png",),
        ("train", "check", "eval", "calibrate"),
        (*IN_PICTURES, m.enormous_header),
    ),
    "training label": Target(
        ("data/labels/train/*.png",), ("train", "check"), (*IN_PICTURES, *IN_LABELS)
    ),
    "validation label": Target(
        ("data/labels/val/*.png",), ("train", "check", "eval"), (*IN_PICTURES, *IN_LABELS)
    ),
    "image of a panel": Target(
        ("data/images/val/val0.png", "data/labels/val/val0.png"),
        ("panel",),
        (*IN_PICTURES, m.enormous_header),
    ),
    "photo": Target(
        ("photos/first.png", "photos/second.jpg", "photos/more/third.png"),
        ("predict", "predict list", "autolabel", "autolabel list"),
        IN_PICTURES,
    ),
    "image to label again": Target(
        ("data/images/extra/*.png",), ("autolabel again", "student"), IN_PICTURES
    ),
    "list": Target(
        ("photos.txt",),
        ("predict list", "autolabel list"),
        (m.edit_list, m.edit_list, m.odd_bytes, m.replace_content, m.make_unreadable_link),
    ),
    "video": Target(("film.avi",), ("predict video",), ALL_BYTES),
    "manifest": Target(
        ("autolabels/manifest.json", "autolabels/images.jsonl"),
        ("verify", "student"),
        (m.edit_json, m.edit_json, m.edit_json, m.odd_bytes, m.cut_off, m.replace_content),
    ),
    "manifest to write again": Target(
        ("autolabels/manifest.json", "autolabels/images.jsonl", "autolabels/settings.json"),
        ("autolabel again",),
        (m.edit_json, m.odd_bytes, m.cut_off, m.replace_kind, m.harmless(m.replace_content)),
    ),
    "automatic label": Target(
        ("autolabels/*.png", "autolabels/*/*.png"),
        ("verify", "student"),
        (*ALL_BYTES, m.certain(m.cut_off), m.remove_part),
    ),
    "label to make again": Target(
        ("autolabels/*.png",),
        ("autolabel again",),
        (m.flip_bytes, m.cut_off, m.replace_kind, m.harmless(m.replace_content)),
    ),
}

# Words that a user may get wrong, each for the commands that know the option.
ODD_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("--scales nan", ("eval", "predict", "autolabel", "export", "panel", "calibrate")),
    ("--scales 1", ("calibrate", "attach")),
    ("--judge nope", ("calibrate",)),
    ("--images 3", ("calibrate",)),
    ("--checkpoint run", ("attach",)),
    ("--scales 0.5 inf", ("eval", "predict", "autolabel", "panel")),
    ("--scales 17", ("eval", "predict", "autolabel")),
    ("--scales -1", ("eval", "predict", "autolabel")),
    ("--scales 0.001", ("eval", "predict", "autolabel")),
    ("--threshold nan", ("autolabel",)),
    ("--threshold 2", ("autolabel",)),
    ("--shard 3/2", ("autolabel",)),
    ("--split nope", ("eval", "autolabel", "panel")),
    ("--split ../photos", ("eval", "panel")),
    ("--index 99", ("panel",)),
    ("--width 0", ("panel",)),
    ("--size 0 64", ("export",)),
    ("--batch -1", ("export",)),
    ("--save labels", ("eval", "predict")),
    ("--save probabilities scales attention", ("eval", "predict")),
    ("--submit out/x.zip", ("eval",)),
    ("--checkpoint data", ("eval", "predict", "autolabel", "export", "panel")),
    ("--checkpoint config.yaml", ("eval", "predict", "autolabel", "export", "panel")),
    ("--config photos.txt", ("eval", "predict", "autolabel", "export")),
    ("--trunk hrnet_w84", ("convert",)),
    ("--sample 0", ("check",)),
    ("runtime.threads=100000", ("dry run", "eval", "autolabel")),
    ("runtime.device=cuda", ("dry run", "eval", "autolabel")),
    ("eval.tile=[16,16]", ("eval", "predict")),
    ("eval.scales=[]", ("eval", "predict", "dry run")),
    ("model.trunk=timm:no_such_trunk", ("dry run",)),
    ("data.crop=[7,9]", ("dry run", "train")),
    ("data.long_edge=1", ("eval", "dry run")),
    ("data.root=gone", ("dry run", "check", "eval", "panel")),
    ("optim.lr=nan", ("dry run", "train")),
    ("optim.lr=1e30", ("train",)),
    ("no_section.key=1", ("dry run", "eval", "autolabel", "check")),
)
# Places for an output where something is already, which no command may overwrite.
TAKEN_OUTPUTS = ("photos", "data", "data/images/val", "run", "config.yaml", ".", "photos.txt", "..")


@dataclass(frozen=True)
class Case:
    """One damaged command, ready to run in its folder."""

    number: int
    command: str
    program: str
    words: tuple[str, ...]
    outputs: tuple[str, ...]
    changed: str  # the file or words that were changed
    damage: Damage


def make_case(material: Path, folder: Path, *, seed: int, number: int) -> Case:
    """Copy what the case needs from `material` into `folder` and damage it.

    The same seed and number make the same case.
    """
    rng = random.Random(f"{seed}:{number}")
    if rng.random() < 0.15:
        return _case_of_words(material, folder, rng, number)

    target = TARGETS[rng.choice(sorted(TARGETS))]
    name = rng.choice(target.commands)
    command = COMMANDS[name]
    copy_parts(material, folder, command.parts)

    # A file may be missing where it is optional, such as the hash beside a checkpoint.
    pattern = rng.choice(target.files)
    candidates = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not candidates:
        candidates = sorted(path for path in folder.glob(target.files[0]) if path.is_file())
    file = rng.choice(candidates)
    damage = _apply(rng.choice(target.mutations), file, rng)
    changed = str(file.relative_to(folder))
    return Case(number, name, command.program, command.words, command.outputs, changed, damage)


def _apply(
    mutation: Callable[[Path, random.Random], Damage], file: Path, rng: random.Random
) -> Damage:
    """Damage the file; bytes where a mutation finds nothing that it could change."""
    try:
        return mutation(file, rng)
    except (IndexError, ValueError, KeyError, UnicodeError):
        return m.flip_bytes(file, rng)


def _case_of_words(material: Path, folder: Path, rng: random.Random, number: int) -> Case:
    """A case of sound inputs and odd words, or of an output where something is already."""
    if rng.random() < 0.5:
        odd, names = rng.choice(ODD_WORDS)
        name = rng.choice(names)
        command = COMMANDS[name]
        words = (*command.words, *odd.split())
        outputs = command.outputs
        damage = Damage(f"the words {odd!r} added", matters=False)
    else:
        name = rng.choice([name for name in COMMANDS if "--output" in COMMANDS[name].words])
        command = COMMANDS[name]
        odd = rng.choice(TAKEN_OUTPUTS)
        place = command.words.index("--output") + 1
        words = (*command.words[:place], odd, *command.words[place + 1 :])
        outputs = (odd,)
        damage = Damage(f"the output is {odd}", matters=False)

    copy_parts(material, folder, sorted({*command.parts, CONFIG, DATA, PHOTOS, "photos.txt"}))
    return Case(number, name, command.program, words, outputs, "command line", damage)


def copy_parts(material: Path, folder: Path, parts: Sequence[str]) -> None:
    """Copy parts of the sound inputs into the folder of a case."""
    (folder / "home").mkdir(parents=True)
    for part in parts:
        if (material / part).is_dir():
            shutil.copytree(material / part, folder / part)
        else:
            shutil.copy2(material / part, folder / part)
