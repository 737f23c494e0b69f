"""Write the schemas by which editors complete and check the YAML files.

    python scripts/write_schema.py [--check]

The files are configs/schema.json, made from the configuration's fields, and
configs/classes.schema.json for class lists.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.utils.config import json_schema
from scripts.generated_files import write_or_check

ROOT = Path(__file__).resolve().parents[1]

_BYTE = {"type": "integer", "minimum": 0, "maximum": 255}
_TEXT = {"type": "string", "minLength": 1}
_COLOR = {"type": "array", "items": _BYTE, "minItems": 3, "maxItems": 3}
_CLASS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": _TEXT,
        "color": {**_COLOR, "description": "[red, green, blue]"},
        "colors": {
            "type": "array",
            "items": _COLOR,
            "minItems": 1,
            "description": "Several colours that stand for this class in labels of colours",
        },
        "id": {
            **_BYTE,
            "description": "Value in the label files; left out: the position in the list",
        },
        "ids": {
            "type": "array",
            "items": _BYTE,
            "minItems": 1,
            "description": "Several values that stand for this class",
        },
        "category": {"type": "string", "description": "Group of classes, for category scores"},
        "has_instances": {
            "type": "boolean",
            "description": "Whether single objects of it are told apart",
        },
    },
}
_IGNORED = {"type": "integer", "minimum": -1, "maximum": 255}

# What hmsa.datasets accepts as a class list.
CLASSES_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "hmsa class list",
    "type": "object",
    "additionalProperties": False,
    "required": ["classes"],
    "properties": {
        "name": {**_TEXT, "description": "Name of the data set"},
        "ignore": {
            "anyOf": [
                {"type": "null"},
                _IGNORED,
                {"type": "array", "items": {"anyOf": [_IGNORED, _COLOR]}},
            ],
            "description": "Values and colours in the label files that are no class",
        },
        "labels": {
            "enum": ["auto", "ids", "colors"],
            "description": (
                "auto: pictures of three channels are read by the colours of the classes, all "
                "others by their ids; colors: palette pictures by their colours, too"
            ),
        },
        "unknown": {
            "enum": ["error", "ignore"],
            "description": "What a value or colour is that stands for nothing: a fault, or ignored",
        },
        "classes": {"type": "array", "items": _CLASS, "minItems": 1, "maxItems": 255},
        "layout": {
            "type": "object",
            "additionalProperties": False,
            "description": (
                "Where images and labels lie below the root; {split} stands for the split's name"
            ),
            "properties": {"images": _TEXT, "labels": _TEXT, "list": _TEXT},
        },
    },
}


def schemas() -> dict[Path, str]:
    """Both schema files and the text they should hold."""
    return {
        ROOT / "configs" / "schema.json": json.dumps(json_schema(), indent=2) + "\n",
        ROOT / "configs" / "classes.schema.json": json.dumps(CLASSES_SCHEMA, indent=2) + "\n",
    }


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with --check say which are out of date (exit status 1)."""
    return write_or_check(schemas(), argv, description=__doc__, script="write_schema", root=ROOT)


if __name__ == "__main__":
    sys.exit(main())
