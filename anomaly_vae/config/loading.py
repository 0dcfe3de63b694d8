"""Read configurations from YAML files and ``--set`` overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from anomaly_vae.config.base import Section
from anomaly_vae.config.detector import KINDS, Config, ImageConfig, TabularConfig, merged
from anomaly_vae.config.faults import explain_fault, pertinent_faults, yaml_reason
from anomaly_vae.errors import ConfigError
from anomaly_vae.messages import shown


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and ``a.b=c`` overrides through one validation.

    Raises:
        ConfigError: unreadable file, unknown key or a value that does not fit.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration '{path}': {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(f"'{path}' is not YAML: {yaml_reason(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' must hold keys such as name, data, model, calibration")
    for override in overrides:
        content = merged(content, _parse_override(override))
    return validate_config(content)


def validate_config(content: Mapping[str, Any]) -> Config:
    """Plain keys and values → a configuration; each fault named with its remedy."""
    config = _kind(content.get("kind", "tabular"))
    try:
        return config.model_validate(content)
    except ValidationError as error:
        faults = pertinent_faults(content, error.errors(include_url=False))
        clauses = [explain_fault(config, key, alternatives) for key, alternatives in faults.items()]
        raise ConfigError("; ".join(clauses), key=next(iter(faults))) from None


def _kind(kind: Any) -> type[TabularConfig] | type[ImageConfig]:
    if not isinstance(kind, str) or kind not in KINDS:
        expected = " or ".join(map(repr, KINDS))
        raise ConfigError(f"kind: expected {expected}, got {shown(kind)}", key="kind")
    return KINDS[kind]


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its description, dotted."""
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}", info.description or ""
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from fields(info.annotation, f"{prefix}{name}.")


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set '{override}': expected key=value, such as training.epochs=20")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set '{override}': {yaml_reason(error)}", key=key) from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
