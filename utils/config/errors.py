"""The one error that carries everything that is wrong with a configuration."""

from __future__ import annotations

from ..files.yaml_loader import YamlError


class ConfigError(YamlError):
    """A configuration that cannot be used; `mistakes` holds every mistake, each with its place."""

    subject = "the configuration"
