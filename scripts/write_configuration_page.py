"""Write docs/configuration.md: every option of a configuration, its values, default and meaning.

    python scripts/write_configuration_page.py [--check]

The page is made from the configuration's fields, so that it cannot tell anything else than the
code does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.utils.config import Config, ConfigField, iter_fields, json_schema
from scripts.generated_files import write_or_check

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

<!-- Made by scripts/write_configuration_page.py from utils/config/models.py; do not edit. -->

An experiment is one YAML file. Every option has a default, so a file holds only what differs.

```yaml
base: common.yaml
data:
  root: /data/mine
optim:
  lr: 0.02
```

`base` names a file to inherit from, or a list of them; later ones and the file itself win.

The same options are changed on the command line as `section.key=value`, after the file:
`hmsa train my.yaml optim.lr=0.02 data.crop=[160,320]`. The words are read as YAML, so quote a value
with spaces or braces: `"autolabel.class_thresholds={pole: 0.7}"`. What is given last wins.

`hmsa train my.yaml --print-config` prints the whole configuration as it will be used. An unknown
key, a wrong type or a value outside its range ends the command with a sentence that names the file,
the line and the key, before anything else happens. Editors complete and check the files by
`configs/schema.json`.

In the tables below sizes are [height, width], and `null` means that the option is off or that the
value is chosen as described.
"""


def configuration_page() -> str:
    """The whole page as it should be."""
    parts = [_INTRODUCTION]
    for name, info in Config.model_fields.items():
        parts.append(f"## {name}\n\n{info.description}.\n\n{_table(name)}")
    return "\n".join(parts)


def _table(section: str) -> str:
    """The options of one section, inner sections included."""
    schema = json_schema()
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for field in iter_fields():
        if field.name.partition(".")[0] == section:
            described = _values(_schema_of(field.name, schema), schema)
            lines.append(
                f"| `{field.name}` | {described} | {_default(field)} | {_cell(field.description)} |"
            )
    return "\n".join(lines) + "\n"


def _default(field: ConfigField) -> str:
    """The default as a YAML file would say it."""
    if field.info.is_required():
        return "to be given"
    default = field.default
    if isinstance(default, str):
        return f"`{default}`"
    # YAML writes small numbers as 1.0e-06.
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, tuple):
        default = list(default)
    text = yaml.safe_dump(default, default_flow_style=True, width=1000)
    return f"`{text.strip().removesuffix('...').strip()}`"


def _schema_of(name: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the JSON schema that describes the option with this dotted name."""
    found: Mapping[str, Any] = schema
    for key in name.split("."):
        found = _section(found, schema)["properties"][key]
    return found


def _section(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section that a part of the schema refers to, directly or as an alternative to null."""
    for option in (part, *part.get("anyOf", ())):
        if "$ref" in option:
            return _resolved(option, schema)
    return part


def _resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference of the schema points at."""
    found: Any = schema
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


def _values(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Which values an option takes, in words."""
    if "anyOf" in part:
        return " or ".join(_values(option, schema) for option in part["anyOf"])
    if "$ref" in part:
        return "section"
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{choice}`" for choice in part["enum"])
    if part.get("pattern") == "^timm:.+":
        return "`timm:NAME`"

    kind = part["type"]
    if kind == "array":
        return _list(part, schema)
    if kind == "object":
        if part.get("additionalProperties", True) is True:
            return "any names with values"
        return f"for each class named: {_values(part['additionalProperties'], schema)}"
    words = {
        "boolean": "`true`, `false`",
        "integer": "whole number",
        "null": "`null`",
        "number": "number",
        "string": "text",
    }
    return f"{words[kind]} {_limits(part)}".strip()


def _list(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A list: of a fixed length, or of any."""
    if "prefixItems" in part:
        return f"[{', '.join(_values(item, schema) for item in part['prefixItems'])}]"
    items = _values(part["items"], schema)
    if part.get("minItems") == part.get("maxItems") == 2:
        return f"[{items}, {items}]"
    return f"list of {items}"


def _limits(part: Mapping[str, Any]) -> str:
    """The range of a number. The largest whole numbers are limits of the machine and left out."""
    limits = []
    if "minimum" in part:
        limits.append(f"≥ {part['minimum']:g}")
    if "exclusiveMinimum" in part:
        limits.append(f"> {part['exclusiveMinimum']:g}")
    if "maximum" in part and part["maximum"] < 2**31 - 1:
        limits.append(f"≤ {part['maximum']:g}")
    if "exclusiveMaximum" in part:
        limits.append(f"< {part['exclusiveMaximum']:g}")
    return " and ".join(limits)


def _cell(text: str) -> str:
    """Text that cannot break the table it stands in."""
    return text.replace("|", "\\|")


def main(argv: list[str] | None = None) -> int:
    """Write the page, or with --check say that it is out of date (exit status 1)."""
    wanted = {PAGE: configuration_page()}
    return write_or_check(
        wanted, argv, description=__doc__, script="write_configuration_page", root=ROOT
    )


if __name__ == "__main__":
    sys.exit(main())
