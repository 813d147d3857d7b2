"""A dictionary with attributes that cannot be changed in place: every way of doing so says what to do instead."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

from .errors import ConfigError, brief


class ReadOnlyConfigError(ConfigError, FrozenInstanceError):
    """A field of a model's config was set in place."""


def _refuse_setting(self: Any, name: str, value: Any) -> None:
    raise ReadOnlyConfigError(
        f"config.{name} cannot be set in place. Use model.register_to_config({name}={brief(value)}), "
        f"or config.replace({name}={brief(value)}) for a changed copy."
    )


def _refuse_deleting(self: Any, name: str) -> None:
    raise ReadOnlyConfigError(f"config.{name} cannot be deleted. Make another config with AutoencoderKLConfig(...).")


def _refuse_changing(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise ReadOnlyConfigError(
        "a config cannot be changed in place. Use model.register_to_config(name=value), config.replace(name=value) "
        "for a changed copy, or dict(config) for a dictionary of your own."
    )


def make_read_only(config_class: type) -> None:
    """Let a frozen dataclass that is a dictionary refuse changes in sentences.

    dataclasses' own sentence for a frozen field does not say what to do, and a dictionary has more ways to be changed.
    """
    for name in ("__setattr__", "__setitem__"):
        setattr(config_class, name, _refuse_setting)
    for name in ("__delattr__", "__delitem__"):
        setattr(config_class, name, _refuse_deleting)
    for name in ("update", "pop", "popitem", "clear", "setdefault", "__ior__"):
        setattr(config_class, name, _refuse_changing)
