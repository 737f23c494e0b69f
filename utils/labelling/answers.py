"""The network's answers of an auto-labelling, kept so that another threshold needs no inference.

Format: for each image a grey PNG in `.answers` below the folder of the labels. Its rows are those
of the class of every pixel, then those of the first, second, third and fourth byte of its
probability as float32: five times the height of the image. Nothing is rounded, so that labels made
from an answer are those that the network would give. A text chunk says with what the answer was
made, and of which image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..files.regular import read_regular
from ..files.writing import write_file
from .autolabels import encode_label, read_record
from .label_record import is_label_of

ANSWERS = ".answers"
_PLANES = 5  # the class, and four bytes of probability


@dataclass(frozen=True)
class KeptAnswer:
    """What the network said of an image, on the host."""

    label: Tensor
    """uint8 [H, W], the class of every pixel before any threshold."""
    confidence: Tensor
    """float32 [H, W], its soft-max probability."""


def answers_of(labels: Path) -> Path:
    """Where the answers lie that belong to the folder `labels`."""
    return labels / ANSWERS


def write_answer(
    path: Path, answer: KeptAnswer, *, made_with: str, image: str, image_sha256: str
) -> None:
    """Write an answer.

    Args:
        path: of its file.
        answer: what the network said.
        made_with: a fingerprint of all that it depends on.
        image: the name of the image.
        image_sha256: the hash of the image's file.

    Raises:
        WriteError: the file cannot be written.
    """
    assert answer.confidence.dtype == torch.float32
    height, width = answer.label.shape

    # Each byte has rows of its own: the first ones hardly change from pixel to pixel, and compress
    # to nothing.
    octets = answer.confidence.contiguous().view(torch.uint8).view(height, width, 4)
    planes = torch.cat([answer.label[None], octets.permute(2, 0, 1)]).reshape(-1, width)
    record = {"made_with": made_with, "image": image, "image_sha256": image_sha256}
    write_file(path, encode_label(planes.numpy(), record))


def read_answer(path: Path, *, made_with: str, image: str, image_sha256: str) -> KeptAnswer | None:
    """The answer that `write_answer` wrote with these arguments.

    None where there is none, or it is damaged or of another image, checkpoint or way to infer.
    """
    record = read_record(path)
    if record is None or not is_label_of(
        record, made_with=made_with, image=image, image_sha256=image_sha256
    ):
        return None

    try:
        data = np.frombuffer(read_regular(path), dtype=np.uint8)
        planes = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        return None
    if planes is None or planes.ndim != 2 or planes.shape[0] % _PLANES:
        return None

    height, width = planes.shape[0] // _PLANES, planes.shape[1]
    stacked = torch.from_numpy(planes).view(_PLANES, height, width)
    octets = stacked[1:].permute(1, 2, 0).contiguous()
    return KeptAnswer(stacked[0].clone(), octets.view(torch.float32).squeeze(-1))
