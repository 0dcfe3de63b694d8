"""A model card (Mitchell et al. 2019): what a model is for, what it was made of, how good it is.

Made of the manifest alone, so that a bundle without MLflow has one; nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from anomaly_vae.data.converters import slice_name
from anomaly_vae.scoring.modality import modality
from pipelines import console
from pipelines.registry.model_uri import LoadedModel

MOST_ROWS = 60
"""Of a table of columns or slices."""

Rows = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Table:
    """Words and numbers; None is unknown."""

    header: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Section:
    """A part of a card; ``plots`` names those that belong to it."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    plots: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Card:
    """What is said of a model."""

    title: str
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Promise:
    """What a way to choose a threshold promises, and what that hangs on."""

    text: str
    assumes: str


EXCHANGEABLE = "normal rows to come are exchangeable with the calibration rows: the same source"
AS_FREQUENT = "anomalies to come are like those of the calibration rows, as frequent and as dear"
PROMISES: Mapping[str, Promise] = {
    "conformal": Promise(
        "A normal row is flagged with probability at most {alpha}, on average over calibration "
        "samples; this one sample may lie somewhat above or below.",
        EXCHANGEABLE,
    ),
    "certified": Promise(
        "With confidence {confidence}, this very threshold flags at most a share {alpha} of all "
        "normal rows.",
        "rows are independent and of one distribution",
    ),
    "evt": Promise(
        "Nothing is promised: the threshold of an alpha of {alpha}, finer than the calibration "
        "rows resolve, is read off a fitted tail, and right by its order of magnitude.",
        "scores beyond the start of the tail are generalised Pareto",
    ),
    "quantile": Promise(
        "Nothing is promised of a finite sample: somewhat more than {alpha} of the normal rows are "
        "flagged.",
        EXCHANGEABLE,
    ),
    "budget": Promise(
        "No more rows are flagged than can be looked into, on average; busy days have more. A "
        "normal row is flagged with probability at most {alpha}.",
        "traffic is exchangeable with the calibration rows, and its pace stays the same",
    ),
    "cost": Promise(
        "The least cost on the calibration rows; nothing is promised of other rows, but that a "
        "normal one is flagged with probability at most {alpha}.",
        AS_FREQUENT,
    ),
    "fbeta": Promise(
        "The largest F-beta on the calibration rows; nothing is promised of other rows, but that a "
        "normal one is flagged with probability at most {alpha}.",
        AS_FREQUENT,
    ),
    "recall_at_precision": Promise(
        "The most recall of those thresholds that are precise enough on the calibration rows; "
        "nothing is promised of other rows, but that a normal one is flagged with probability at "
        "most {alpha}.",
        AS_FREQUENT,
    ),
}
NO_WORDS = Promise("See docs/thresholds.md for what this method promises.", EXCHANGEABLE)

FOR = {
    "tabular": "To rank rows like those it was trained on, and to flag those that do not belong, "
    "for people who look into them.",
    "image": "To rank images like those it was trained on, and to flag those that do not belong, "
    "for people who look at them.",
}
NOT_FOR = {
    "tabular": "Not for decisions about people without anybody's review, and not for rows from "
    "another source, which it flags as what they are: unlike.",
    "image": "Not a medical device: nothing here was validated for diagnosis. Not for images of "
    "another scanner, protocol or body part, which it flags as what they are: unlike.",
}
LIMITS = (
    "It learned what is normal from rows that were taken for normal; anomalies among them teach it "
    "to overlook their like.",
    "It knows one kind of difference, improbable under its model of normal rows. What is harmful "
    "but common is not flagged, what is rare but harmless is.",
    "No promise survives a shift: where rows no longer look like the calibration rows, another "
    "share of them is flagged. Watch the share that is flagged, and calibrate anew.",
)
ABOUT_ALL = (
    "The promise is about normal rows as a whole; a part of them may be flagged more often, see "
    "the slices."
)
ABOUT_GROUPS = (
    "The promise is about the normal rows of each group with a threshold of its own; a part of a "
    "group may be flagged more often, see the slices, and of all other rows nothing is promised."
)
DEFAULT_NOTE = "(The key description of its configuration would say more.)"
NON_UNIFORM = 0.01
KEPT = ("epoch", "validation_elbo", "validation_log_prob", "validation_kl")


def card_of(source: LoadedModel) -> Card:
    """All that the manifest says, in words and tables."""
    manifest, about = source.bundle.manifest, source.to_json()
    sections = (
        _model(manifest, about),
        _use(manifest),
        _data(manifest),
        _columns(manifest),
        _calibration(manifest),
        *_groups(manifest["calibration"] or {}),
        *_evaluation(manifest["evaluation"]),
        Section("Limits", (*LIMITS, _extent(manifest["calibration"] or {}))),
        _making(manifest),
    )
    return Card(f"Model card: {about['name']}", sections)


def show(card: Card) -> None:
    """On the terminal."""
    for section in card.sections:
        console.step(section.title)
        for text in section.text:
            console.say(text)
        if section.table:
            console.table("", section.table.header, section.table.rows)


def figure_rows(figures: Mapping[str, Any]) -> Rows:
    """What people call each figure of an evaluation, its value and its interval."""
    rows = (
        (name, figures.get(key), spell_interval(figures.get(f"{key}_interval")))
        for key, name in _names(figures).items()
    )
    return tuple(row for row in rows if row[1] or not row[0].startswith(OPTIONAL))


OPTIONAL = ("cost", "card", "precision at", "p-values", "rejected", "unlabelled")
"""How the names of figures begin that are left out where there are none."""


def _names(figures: Mapping[str, Any]) -> dict[str, str]:
    return {
        "rows": "rows",
        "anomalies": "anomalies",
        "auroc": "AUROC",
        "average_precision": "average precision",
        "fpr": f"false positive rate (alpha {figures['alpha']:g})",
        "fpr_limit": "  the most that chance explains",
        "recall": "recall",
        "precision": "precision",
        "precision_at_top": f"precision at the {figures.get('top')} highest scores",
        "card_precision": "card precision a day",
        "cost_saved": "cost saved per 1,000 rows",
        "ks_p_value": "p-values of normal rows uniform (KS test)",
        "flagged": "flagged",
        "rejected": "rejected",
        "unlabelled": "unlabelled",
    }


def spell_interval(interval: Sequence[float] | None) -> str:
    """Its ends."""
    return f"{console.spell(interval[0])} to {console.spell(interval[1])}" if interval else ""


# ---------------------------------------------------------------- sections


def _model(manifest: Mapping[str, Any], about: Mapping[str, Any]) -> Section:
    model, score = manifest["config"]["model"], manifest["config"]["score"]
    rows = (
        ("name", about["name"]),
        ("version", about["version"]),
        ("alias", about["alias"]),
        ("bundle digest", about["digest"]),
        ("kind", manifest["kind"]),
        ("model", ", ".join(str(model[key]) for key in ("network", "type") if key in model)),
        ("score", f"{score['type']}, in {manifest['unit']}; higher is more anomalous"),
        ("made by", f"anomaly-vae {manifest['code_version']}"),
    )
    return Section("Model", table=Table(("", ""), rows))


def _use(manifest: Mapping[str, Any]) -> Section:
    own, kind = manifest["config"].get("description"), manifest["kind"]
    return Section("Intended use", (own or f"{FOR[kind]} {DEFAULT_NOTE}", NOT_FOR[kind]))


def _data(manifest: Mapping[str, Any]) -> Section:
    data = manifest["data"]
    splits = data.get("splits", {})
    text = [f"{count:,} rows unused: {why}." for why, count in data.get("unused", {}).items()]
    if data.get("duplicate_ids"):
        text.append(f"{data['duplicate_ids']:,} rows repeat an id that an earlier row has.")
    rows = [("all rows", data.get("rows")), ("known anomalies among them", data.get("anomalies"))]
    rows += [(f"{name} rows", count) for name, count in splits.items() if name != "unused"]
    rows.append(("digest of what was read", data.get("digest")))
    return Section("Data", tuple(text), Table(("", ""), tuple(rows)))


def _columns(manifest: Mapping[str, Any]) -> Section:
    schema = modality(manifest["kind"])[0].from_json(manifest["schema"])
    found = [(column.name, str(column.type)) for column in schema.columns]
    more = (f"And {len(found) - MOST_ROWS:,} more.",) if len(found) > MOST_ROWS else ()
    return Section("Columns", more, Table(("name", "type"), tuple(found[:MOST_ROWS])))


def _calibration(manifest: Mapping[str, Any]) -> Section:
    summary = manifest["calibration"]
    if summary is None:
        return Section("Calibration", ("None yet: there is no threshold.",))
    figures = summary.get("figures", {})
    promise = PROMISES.get(summary["method"], NO_WORDS)
    words = {"alpha": f"{summary['alpha']:.3g}", "confidence": f"{1 - figures.get('delta', 0):g}"}
    note = (_sentence(figures["note"]),) if "note" in figures else ()
    text = (promise.text.format(**words), f"It assumes that {promise.assumes}.", *note)
    rows = [(key, summary[key]) for key in ("method", "alpha", "threshold")]
    rows.append(("normal rows it was chosen from", summary["n"]))
    rows += [
        (key.replace("_", " "), value)
        for key, value in figures.items()
        if isinstance(value, int | float)
    ]
    return Section("Calibration", text, Table(("", ""), tuple(rows)), ("calibration",))


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _groups(calibration: Mapping[str, Any]) -> Iterator[Section]:
    """Which groups have a threshold of their own, and which have that of all rows."""
    if (groups := calibration.get("groups")) is None:
        return
    rest, figures = calibration["threshold"], calibration["figures"]
    own = [(level, one["n"], one["threshold"], "its own") for level, one in groups["own"].items()]
    small = [(level, rows, rest, "of all rows") for level, rows in figures["small_groups"].items()]
    others = ("(missing or rare)", figures["ungrouped"], rest, "of all rows")
    text = "The promise holds for each group that has a threshold of its own."
    header = (groups["column"], "normal rows", "threshold", "")
    yield Section("Groups", (text,), Table(header, (*own[:MOST_ROWS], *small[:MOST_ROWS], others)))


def _extent(calibration: Mapping[str, Any]) -> str:
    """Of which rows the promise is."""
    return ABOUT_GROUPS if calibration.get("groups") else ABOUT_ALL


def _evaluation(content: Mapping[str, Any] | None) -> Iterator[Section]:
    """Figures of the test split, slices, p-values, and what may flatter all of it."""
    if content is None:
        yield Section("Figures", ("None yet: the command calibrate evaluates the test split.",))
        return
    intervals = "On the test split, which neither trained nor calibrated it."
    table = Table(("figure", "value", "interval"), figure_rows(content))
    yield Section("Figures", (intervals,), table, ("ranking", "scores"))
    if content.get("p_values"):
        yield _p_values(content)
    if content.get("slices"):
        yield _slices(content["slices"])
    if "warnings" in content:
        yield _doubts(content)


def _p_values(content: Mapping[str, Any]) -> Section:
    """Whether the p-values of normal rows are uniform."""
    steps, p = content["p_values"], content.get("ks_p_value")
    unlike = p is not None and p < NON_UNIFORM
    text = (
        "The p-values of normal test rows are not uniform: these rows are not like the "
        "calibration rows, or hang on each other. p-values are approximate for their like."
        if unlike
        else "Nothing speaks against p-values of normal rows being uniform, as promised."
    )
    rows = tuple((s["level"], s["share"], spell_interval([s["low"], s["high"]])) for s in steps)
    header = ("level", "share of normal rows with p ≤ level", "chance explains")
    return Section("p-values", (text,), Table(header, rows), ("p_values",))


def _slices(slices: Sequence[Mapping[str, Any]]) -> Section:
    """Each level of a column; rates above their limit first."""
    found = [_slice(one) for one in slices]
    above = [row for row in found if row[-1]]
    text = f"{len(above)} of {len(found)} slices flag more normal rows than chance explains."
    rows = tuple((*row[:-1], "above the limit" if row[-1] else "") for row in found[:MOST_ROWS])
    header = ("slice", "rows", "anomalies", "false positive rate", "limit", "recall",
              "average precision", "")  # fmt: skip
    return Section("Slices", (text,), Table(header, rows), ("slices",))


def _slice(one: Mapping[str, Any]) -> tuple[Any, ...]:
    fpr, recall = ((one[key] or {}).get("value") for key in ("fpr", "recall"))
    above = fpr is not None and one["limit"] is not None and fpr > one["limit"]
    name, ranked = slice_name(one["column"], one["level"]), one["average_precision"]
    return name, one["rows"], one["anomalies"], fpr, one["limit"], recall, ranked, above


def _doubts(content: Mapping[str, Any]) -> Section:
    """Warnings, and how well each thing alone would do."""
    text = list(content["warnings"]) or ["Nothing was found that flatters the figures."]
    if twins := content.get("twins"):
        text.append(f"{twins['rows']:,} of the test rows have a twin in training.")
    rows = tuple((one["name"], one["kind"], one["auroc"]) for one in content.get("alone", ()))
    table = Table(("alone", "what it is", "AUROC"), rows) if rows else None
    return Section("What may flatter these figures", tuple(text), table)


def _making(manifest: Mapping[str, Any]) -> Section:
    training, config = manifest["training"], manifest["config"]["training"]
    rows = [(key.replace("_", " "), training.get(key)) for key in ("epochs",)]
    best = training.get("best", {})
    rows += [
        (f"{key.replace('_', ' ')} of the weights kept", best[key]) for key in KEPT if key in best
    ]
    rows += [(key.replace("_", " "), config.get(key)) for key in ("seed", "precision")]
    return Section("Training", table=Table(("", ""), tuple(rows)), plots=("loss",))
