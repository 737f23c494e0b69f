"""PNG files written whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


class ImageWriteError(OSError):
    """A picture cannot be written; the message names the file and what to do."""


def encode_png(array: np.ndarray, *, palette: np.ndarray | None = None, level: int = 1) -> bytes:
    """PNG bytes of uint8 [H, W] (grey, or palette PNG with `palette` uint8 [N, 3]), uint8 RGB [H, W, 3] or uint16 [H, W]."""
    assert array.dtype in (np.uint8, np.uint16), f"{array.dtype} is no PNG type"
    if palette is not None:
        assert array.dtype == np.uint8 and array.ndim == 2
        picture = Image.fromarray(np.ascontiguousarray(array), mode="P")
        picture.putpalette(np.ascontiguousarray(palette, dtype=np.uint8).tobytes(), rawmode="RGB")
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", compress_level=level)
        return buffer.getvalue()
    assert array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3), f"{array.shape} is no picture"
    done, data = cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array, [cv2.IMWRITE_PNG_COMPRESSION, level])
    assert done, "opencv could not encode a PNG"
    return data.tobytes()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name in the folder of `path`, then rename. Makes missing folders. Raises ImageWriteError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageWriteError(error.errno, f"{path}: cannot be written ({reason}); make room or choose another output folder and run again") from error


def write_png(path: Path | str, array: np.ndarray, *, palette: np.ndarray | None = None, level: int = 1) -> None:
    """Write `array` (see `encode_png`) to `path` atomically. Raises ImageWriteError."""
    write_file(Path(path), encode_png(array, palette=palette, level=level))
