"""Code that a checkpoint names as `module:name` runs only where its user has named it, too.

A configuration file is its user's own word. A checkpoint may come from anybody, and importing what
it names runs code. What a person trains with, or names in a command, is remembered on this machine,
so that runs of one's own are opened without a question; for anything else there is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hmsa.utils.config import Config
from hmsa.utils.files.writing import WriteError, write_file
from hmsa.utils.imported import file_of, is_reference
from hmsa.utils.training.checkpoint import CheckpointError

SWITCH = "HMSA_TRUST_CODE"  # in the environment, 1 trusts every checkpoint

# Keys of a configuration that may name code, by what imports it.
NETWORK = ("model.trunk", "model.decoder", "model.wrap.builder")
SCORES = (*NETWORK, "loss.main", "loss.aux", "loss.scale_loss")
TRAINING = (*SCORES, "data.augment", "runtime.loggers")


def require_trust(
    config: Config, overrides: Sequence[str], *, path: Path, keys: Sequence[str]
) -> None:
    """See that the code which the configuration of a checkpoint names at `keys` may run.

    It may where the command names it as well, or where it was named on this machine before. What
    a command names is remembered.

    Raises:
        CheckpointError: some of it may not; the sentence says all that would run.
    """
    if os.environ.get(SWITCH, "") not in ("", "0"):
        return

    # The words of the command's values: a reference is one of them or it is not.
    named = {word for text in overrides for word in re.findall(r"[\w.:]+", text.partition("=")[2])}
    asked = []
    for key, reference in named_code(config, keys):
        # Code that cannot be found cannot run; building says where it was looked for.
        if not file_of(reference):
            continue
        if reference in named:
            _remember(config, key, reference)
        elif not _is_remembered(config, key, reference):
            asked.append((key, reference))
    if not asked:
        return

    what = ", ".join(_shown(config, key, reference) for key, reference in asked)
    words = " ".join(dict.fromkeys(naming(config, [key for key, _ in asked])))
    raise CheckpointError(
        f"{path}: opening it runs code that it names and you have not: {what}; where you trust it, "
        f"add to the command {words}, or set {SWITCH}=1 in the environment"
    )


def remember_code(config: Config) -> None:
    """Remember all code that a training runs: its user has named it."""
    for key, reference in named_code(config, TRAINING):
        _remember(config, key, reference)


def naming(config: Config, keys: Sequence[str] = NETWORK) -> list[str]:
    """The overrides by which a user names the code that stands at `keys`."""
    overrides = []
    for key, _ in named_code(config, keys):
        value = _at(config, key)
        if not isinstance(value, str):
            value = f"[{','.join(value)}]"
        overrides.append(f"{key}={shlex.quote(value)}")
    return overrides


def named_code(config: Config, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Keys, with every `module:name` that stands there."""
    for key in keys:
        value = _at(config, key)
        values = [value] if isinstance(value, str) else value or []
        for text in values:
            # What builds a wrapped model is always code, of whatever form its name is.
            if is_reference(text) or key == "model.wrap.builder":
                yield key, text


def _at(config: Config, key: str) -> Any:
    """The value of a dotted key; None where a section on the way is left out."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def _arguments(config: Config, key: str) -> dict[str, Any]:
    """What a checkpoint hands to its code: a harmless function may do harm with some."""
    if key == "model.wrap.builder" and config.model.wrap is not None:
        return dict(config.model.wrap.arguments)
    return {}


def _shown(config: Config, key: str, reference: str) -> str:
    arguments = _arguments(config, key)
    if not arguments:
        return reference
    return f"{reference} with {json.dumps(arguments, default=str)}"


# --- what was named before ---


def _record(config: Config, key: str, reference: str) -> tuple[Path, str]:
    """The file that remembers some code, and what stands in it.

    The file of the module is part of it: in another folder the same name is other code.
    """
    content = json.dumps(
        {
            "code": reference,
            "file": file_of(reference),
            "arguments": _arguments(config, key),
        },
        sort_keys=True,
        default=str,
    )
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return Path(base).expanduser() / "hmsa" / "trusted_code" / f"{name}.json", content


def _is_remembered(config: Config, key: str, reference: str) -> bool:
    return _record(config, key, reference)[0].is_file()


def _remember(config: Config, key: str, reference: str) -> None:
    path, content = _record(config, key, reference)
    # Without a home that can be written the next command asks again.
    with contextlib.suppress(WriteError):
        if not path.is_file():
            write_file(path, (content + "\n").encode())
