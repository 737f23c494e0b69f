"""The page beside predictions: small pictures of all images, with links to their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..metrics.scores import divide
from .page import Picture, Section, page


@dataclass(frozen=True)
class SheetTile:
    """One image: a small picture of it, and files by what they are."""

    name: str
    picture: Picture
    links: Mapping[str, str]


@dataclass(frozen=True)
class SheetReport:
    """What was predicted of a set of images."""

    title: str
    way: str
    """How was inferred, such as "{0.5, 1}"."""
    names: Sequence[str]
    colors: Sequence[Sequence[int]] | np.ndarray
    pixels: np.ndarray
    """Predicted pixels of each class, int64 [C]."""
    images: int
    tiles: Sequence[SheetTile]
    videos: Mapping[str, str] = field(default_factory=dict)
    """Files that were written of videos, by the video's name."""
    failures: Sequence[str] = ()


def contact_page(report: SheetReport) -> str:
    """The page as HTML; its links lead to files beside it."""
    shares = divide(report.pixels, report.pixels.sum())
    order = np.argsort(-report.pixels, kind="stable")
    present = [index for index in order.tolist() if report.pixels[index]]
    classes = [
        {"name": report.names[index], "colour": report.colors[index], "share": shares[index]}
        for index in present
    ]

    lead = "A click on a picture opens its overlay, or what was written instead."
    if len(report.tiles) < report.images - len(report.failures):
        lead += f" Shown are {len(report.tiles)} of {report.images} images, evenly spread."
    legend = [(row["name"], row["colour"]) for row in classes]
    images = {"tiles": report.tiles, "legend": legend}
    values = {"classes": classes}
    shares_lead = "Those that were predicted anywhere, with their share of all pixels."
    sections = [
        Section("images", "Images", "prediction/images.html", images, lead),
        Section("classes", "Classes", "prediction/classes.html", values, shares_lead),
    ]
    if report.videos:
        videos = {"videos": report.videos}
        sections.insert(0, Section("videos", "Videos", "prediction/videos.html", videos))
    if report.failures:
        failures = {"failures": list(report.failures)}
        sections.append(Section("failed", "Not predicted", "prediction/failed.html", failures))
    subtitle = f"{report.images} images · {len(present)} classes predicted · {report.way}"
    return page(report.title, subtitle, sections)
