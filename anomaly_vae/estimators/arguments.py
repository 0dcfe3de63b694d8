"""Translate an estimator's constructor arguments into a configuration, and document them."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import RandomState
from sklearn.utils import check_random_state

from anomaly_vae.config import Config, validate_config
from anomaly_vae.config.detector import KINDS
from anomaly_vae.config.loading import fields

SHARED_KEYS: dict[str, tuple[str, ...]] = {
    "preset": ("preset",),
    "alpha": ("calibration.alpha",),
    "method": ("calibration.method",),
    "unusual_alpha": ("calibration.unusual_alpha",),
    "score_type": ("score.type",),
    "draws": ("score.draws",),
    "model": ("model.type",),
    "latent_dim": ("model.latent_dim",),
    "hidden_dim": ("model.hidden_dim",),
    "likelihood": ("model.likelihood",),
    "variance_floor": ("model.variance_floor",),
    "epochs": ("training.epochs",),
    "batch_size": ("training.batch_size",),
    "learning_rate": ("training.learning_rate",),
    "weight_decay": ("training.weight_decay",),
    "clip_norm": ("training.clip_norm",),
    "beta": ("training.beta",),
    "kl_warmup": ("training.kl_warmup",),
    "free_bits": ("training.free_bits",),
    "trim": ("training.trim",),
    "keep": ("training.keep",),
    "patience": ("training.patience",),
    "threads": ("training.threads",),
    "device": ("training.device",),
    "calibration_fraction": ("data.splits.calibration",),
    "validation_fraction": ("data.splits.validation",),
    "random_state": ("training.seed", "score.seed", "data.splits.seed"),
    "verbose": (),
}
"""Configuration keys that each constructor argument common to all estimators sets."""

DESCRIPTIONS = {
    "random_state": "Seed of everything random, including which rows are held out. None draws a "
    "new seed from numpy's global state at each fit.",
    "unusual_alpha": "Highest accepted fraction of normal rows that `unusual_input` reports as "
    "unlike the training rows; 0: no test. None: 0.01, and no test if fewer than 99 rows are held "
    "out.",
    "calibration_fraction": "Fraction of the rows held out to choose the threshold; raised to as "
    "many rows as ``alpha`` needs. None: a tenth of the rows, and no more than 20/alpha.",
    "verbose": "1 prints the progress of the fit on stderr: one line that changes on a terminal, "
    "elsewhere a line for every tenth of the epochs and every minute. 0, the default, prints "
    "nothing.",
    "features": "Names of the columns to read, or a mapping from name to type: a string, or a "
    "`config.Feature`. None: all columns, with inferred types.",
    "types": "Mapping from the names of single columns to their types, as in ``features``; all "
    "other types are inferred.",
}
"""Descriptions of arguments that do more than set a configuration key."""

ARGUMENTS = "{arguments}"
"""Placeholder in an estimator's docstring for the descriptions of its arguments."""

NAME = "detector"
"""Name of the model in the manifest of an estimator; the registry gives models their own."""
NO_TEST = 1e-6
"""Fraction of test rows in the configuration, which must be above 0; estimators hold out none."""
HELD_OUT = 0.1
"""Fraction of rows held out to choose the threshold unless another is given."""
LARGEST_SEED = 2**31 - 1
"""Largest seed drawn from a random state."""


def configuration(
    kind: str, keys: Mapping[str, Sequence[str]], arguments: Mapping[str, Any]
) -> Config:
    """Return the configuration that an estimator's arguments describe.

    Args:
        kind: kind of data, "tabular" or "image".
        keys: dotted configuration keys that each argument sets.
        arguments: values of the arguments; None leaves a key at its default.

    Raises:
        ConfigError: a value does not fit.
    """
    data = {"path": (), "splits": {"test": NO_TEST, "calibration": HELD_OUT}}
    content: dict[str, Any] = {"kind": kind, "name": NAME, "data": data}
    for argument, places in keys.items():
        value = _plain(argument, arguments[argument])
        for key in places if value is not None else ():
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
    return validate_config(content)


def _plain(argument: str, value: Any) -> Any:
    """Return an argument as the configuration spells it."""
    if argument == "random_state":
        return seed_of(value)
    if isinstance(value, Mapping):  # types of features by name
        return {k: {"type": v} if isinstance(v, str) else v for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in a recorded configuration, None if it is absent."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def seed_of(random_state: int | RandomState | None) -> int:
    """Return scikit-learn's ``random_state`` as a seed, drawing one unless it is an int."""
    generator = check_random_state(random_state)
    if random_state is None or isinstance(random_state, RandomState):
        return int(generator.randint(LARGEST_SEED))
    return int(random_state)


# ---------------------------------------------------------------- documentation


def documented(text: str, kind: str, keys: Mapping[str, Sequence[str]], constructor: Any) -> str:
    """Fill the placeholder for arguments in a docstring from the configuration's reference."""
    described = dict(fields(KINDS[kind]))
    least = {"kind": kind, "name": NAME, "data": {"path": ()}}
    defaults = validate_config(least).model_dump(mode="json")
    names = list(inspect.signature(constructor).parameters)[1:]  # without self
    lines = [_described(name, next(iter(keys[name]), ""), described, defaults) for name in names]
    return text.replace(ARGUMENTS, "\n".join(lines).lstrip())


def _described(
    argument: str, key: str, described: Mapping[str, str], defaults: Mapping[str, Any]
) -> str:
    """Return the lines of an argument in the section ``Args`` of a docstring."""
    text, default = DESCRIPTIONS.get(argument), value_at(defaults, key)
    if text is None:
        text = described[key].replace("null:", "None:")
        text += "" if default is None else f" Default: {default!r}."
    indents = {"initial_indent": " " * 8, "subsequent_indent": " " * 12}
    return textwrap.fill(f"{argument}: {text}", 100, **indents, break_on_hyphens=False)  # type: ignore[arg-type]
