"""Describe a model for its users in a model card (Mitchell et al. 2019).

The card describes the model's purpose, training data and quality. It is built from the manifest
alone, so it needs neither MLflow nor any heavy library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from anomaly_vae.data.converters import slice_name
from anomaly_vae.data.encoding import pooled_notes
from anomaly_vae.data.splitting import MIN_KNOWN
from anomaly_vae.evaluation.label_maturity import LabelMaturity
from anomaly_vae.evaluation.leakage import MIN_ROWS
from anomaly_vae.messages import NOUNS, plain_number
from anomaly_vae.scoring.modality import modality
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.in_words import in_words

MAX_ROWS = 60
"""Maximum number of rows in a table of columns or slices."""

Rows = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table of text and numbers, with None for unknown values."""

    header: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Section:
    """A section of a card: paragraphs, a table, and the names of its plots."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    plots: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Card:
    """The sections that describe a model."""

    title: str
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Promise:
    """The guarantee of a threshold method, and its assumption."""

    text: str
    assumes: str


EXCHANGEABLE = (
    "future normal rows come from the same source as the calibration rows and are as varied: both "
    "are exchangeable"
)
SAME_ANOMALIES = (
    "future anomalies are like those of the calibration rows, just as frequent and just as costly"
)
PROMISES: Mapping[str, Promise] = {
    "conformal": Promise(
        "A normal row is flagged with probability at most {alpha}, on average over calibration "
        "samples; with this one sample, the rate may be somewhat higher or lower.",
        EXCHANGEABLE,
    ),
    "certified": Promise(
        "With confidence {confidence}, this threshold flags at most a share {alpha} of all normal "
        "rows.",
        "rows are independent and come from one distribution",
    ),
    "evt": Promise(
        "There is no guarantee. An alpha of {alpha} is too small for the number of calibration "
        "rows, so the threshold is taken from a tail fitted to their scores; it is right to an "
        "order of magnitude.",
        "scores beyond the start of the tail follow a generalised Pareto distribution",
    ),
    "quantile": Promise(
        "There is no guarantee for a finite sample: somewhat more than {alpha} of the normal rows "
        "are flagged.",
        EXCHANGEABLE,
    ),
    "budget": Promise(
        "On average, no more alerts are raised than can be reviewed; on busy days there are more. "
        "A normal row is flagged with probability at most {alpha}.",
        "traffic is exchangeable with the calibration rows and keeps its volume",
    ),
    "cost": Promise(
        "The threshold has the least cost on the calibration rows. For other rows the only "
        "guarantee is that a normal one is flagged with probability at most {alpha}.",
        SAME_ANOMALIES,
    ),
    "fbeta": Promise(
        "The threshold has the largest F-beta on the calibration rows. For other rows the only "
        "guarantee is that a normal one is flagged with probability at most {alpha}.",
        SAME_ANOMALIES,
    ),
    "recall_at_precision": Promise(
        "The threshold has the highest recall among those that reach the required precision on "
        "the calibration rows. For other rows the only guarantee is that a normal one is flagged "
        "with probability at most {alpha}.",
        SAME_ANOMALIES,
    ),
}
UNKNOWN_METHOD = Promise("See docs/thresholds.md for the guarantee of this method.", EXCHANGEABLE)


@dataclass(frozen=True)
class Use:
    """The intended use of models of one kind of data, and the uses to avoid."""

    intended: str
    excluded: str


USES = {
    "tabular": Use(
        "To rank rows like those it was trained on, and to flag those that do not belong, for "
        "people to review.",
        "Not for decisions about people without human review. Not for rows from another source: "
        "they differ from the training rows and would be flagged for that reason alone.",
    ),
    "image": Use(
        "To rank images like those it was trained on, and to flag those that do not belong, for "
        "people to look at.",
        "Not a medical device: it has not been validated for diagnosis. Not for images from "
        "another scanner, protocol or body part: they differ from the training images and would "
        "be flagged for that reason alone.",
    ),
}
"""Uses by kind of data."""
LIMITS = (
    "The model learned what is normal from rows that were assumed to be normal; anomalies among "
    "them teach it to overlook similar ones.",
    "It detects rows that are improbable under its model of normal rows, and nothing else: harm "
    "that is common is not flagged, and rare but harmless rows are.",
    "No guarantee survives a shift: when rows no longer look like the calibration rows, the share "
    "of flagged rows changes. Monitor that share, and calibrate again when it changes.",
)
LEARNED_LIMIT = (
    "It detects rows that are improbable under its model of normal rows, or like the known "
    "anomalies, and nothing else: harm of another kind that is common is not flagged, and rare but "
    "harmless rows are."
)
"""Limit in place of the second one, for a model that has learned from known anomalies."""
KNOWN = (
    "On: {labels:,} labelled anomalies of the training period taught the model what to look for. "
    "The score is the surprise of the detector plus that of trees that learned from them; the "
    "guarantee is that of any other score.",
    "The labels are those of rows that somebody looked at. If only flagged rows are reviewed, the "
    "model learns to find what was found already, and knows nothing of anomalies that were never "
    "flagged; the detector's own surprise still finds rows that are like nothing known.",
)
UNKNOWN = (
    "Off: the model learned from normal rows alone. Either model.known is off, or fewer than "
    f"{MIN_KNOWN} anomalies of the training period were labelled."
)
PROMISE_FOR_ALL = (
    "The guarantee is about normal rows as a whole; a part of them may be flagged more often, see "
    "the slices."
)
PROMISE_FOR_GROUPS = (
    "The guarantee is about the normal rows of each group that has its own threshold. A part of a "
    "group may be flagged more often, see the slices, and there is no guarantee for other rows."
)
DEFAULT_NOTE = "(Set description in the configuration to say more.)"
NON_UNIFORM = 0.01
"""p-value of the Kolmogorov-Smirnov test below which p-values are called not uniform."""
BEST_EPOCH_KEYS = ("epoch", "validation_elbo", "validation_log_prob", "validation_kl")


def card_of(source: LoadedModel) -> Card:
    """Build the card from a model's manifest."""
    manifest, about = source.bundle.manifest, source.to_json()
    sections = (
        _in_words(manifest),
        _model(manifest, about),
        _use(manifest),
        _data(manifest),
        _columns(manifest),
        _calibration(manifest),
        *_groups(manifest["calibration"] or {}),
        *_evaluation(manifest["evaluation"]),
        *_known(manifest),
        Section("Limits", (*_limits(manifest), _scope(manifest["calibration"] or {}))),
        _training(manifest),
    )
    return Card(f"Model card: {about['name']}", sections)


def show(card: Card) -> None:
    """Print a card on the terminal."""
    for section in card.sections:
        console.heading(section.title)
        for text in section.text:
            console.info(text)
        if section.table:
            console.table("", section.table.header, section.table.rows)


def figure_rows(figures: Mapping[str, Any]) -> Rows:
    """Return the name, value and interval of each figure of an evaluation."""
    rows = (
        (name, figures.get(key), format_interval(figures.get(f"{key}_interval")))
        for key, name in _names(figures).items()
    )
    return tuple(row for row in rows if row[1] or not row[0].startswith(OPTIONAL))


OPTIONAL = ("cost", "card", "precision at", "p-values", "rejected", "unlabelled")
"""Prefixes of the names of figures that are omitted if they have no value."""


def _names(figures: Mapping[str, Any]) -> dict[str, str]:
    return {
        "rows": "rows",
        "anomalies": "anomalies",
        "auroc": "AUROC",
        "average_precision": "average precision",
        "fpr": f"false positive rate (alpha {figures['alpha']:g})",
        "fpr_limit": "  highest rate that chance explains",
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


def format_interval(interval: Sequence[float] | None) -> str:
    """Format the ends of an interval; return an empty string without an interval."""
    return (
        f"{console.format_value(interval[0])} to {console.format_value(interval[1])}"
        if interval
        else ""
    )


# ---------------------------------------------------------------- sections


def _in_words(manifest: Mapping[str, Any]) -> Section:
    """Say what the model does and what to expect of it, without statistics."""
    noun = NOUNS[manifest["kind"]]
    trained = manifest["data"].get("splits", {}).get("train")
    learned = f"{trained:,} {noun}" if trained else noun
    flagged = f"{noun} that do not fit"
    if known := manifest["training"].get("known"):
        flagged += f" or resemble one of the {known['labels']:,} anomalies it was shown"
    text = [
        f"The model learned from {learned} what is normal. It flags {flagged}, for "
        "people to look at; a flag is a question and not a verdict."
    ]
    evaluation, calibration = manifest["evaluation"], manifest["calibration"]
    if calibration is None:
        text.append("It has no threshold yet and flags nothing; anomaly-vae calibrate chooses one.")
    elif evaluation is None:
        text.append("It was never evaluated, so nobody knows what it finds.")
    if calibration is not None:
        allowed = plain_number(1000 * calibration["alpha"])
        text.append(
            f"Its threshold is set so that about {allowed} of 1,000 normal {noun} are flagged; the "
            "section on calibration says how far this is guaranteed."
        )
    if evaluation is not None:
        text.append(in_words(evaluation, manifest["kind"]))
        text += _doubts(evaluation)
    return Section("In plain words", tuple(text))


def _doubts(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield what to read before relying on the figures."""
    p, warnings = evaluation.get("ks_p_value"), evaluation.get("warnings", ())
    if p is not None and p < NON_UNIFORM:
        yield (
            "The normal rows of the test were not like those that the threshold was set on: the "
            "share of flagged rows may change further. Find out what changed, and calibrate again."
        )
    if warnings:
        yield f"These figures may be too good: {'; '.join(warnings)}."


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
    own, use = manifest["config"].get("description"), USES[manifest["kind"]]
    return Section("Intended use", (own or f"{use.intended} {DEFAULT_NOTE}", use.excluded))


def _data(manifest: Mapping[str, Any]) -> Section:
    data = manifest["data"]
    splits = data.get("splits", {})
    text = [f"{count:,} rows unused: {why}." for why, count in data.get("unused", {}).items()]
    if data.get("duplicate_ids"):
        text.append(f"{data['duplicate_ids']:,} rows repeat an id that an earlier row has.")
    text += _young(data.get("labels"))
    rows = [("all rows", data.get("rows")), ("known anomalies among them", data.get("anomalies"))]
    rows += [(f"{name} rows", count) for name, count in splits.items() if name != "unused"]
    intervals = {k: v for k, v in data.get("intervals", {}).items() if k in splits}
    rows += [(f"{name} rows from, before", _interval(ends)) for name, ends in intervals.items()]
    rows.append(("digest of the data", data.get("digest")))
    return Section("Data", tuple(text), Table(("", ""), tuple(rows)))


def _interval(ends: Sequence[str]) -> str:
    """Format two times in ISO 8601, without times of day that are midnight."""
    return " to ".join(end.removesuffix("+00:00").removesuffix("T00:00:00") for end in ends)


LEARNT = ("train", "validation", "calibration")
"""Splits whose rows count as normal without a final label."""


def _young(labels: Mapping[str, Any] | None) -> list[str]:
    """Report the rows that train and calibrate although their labels are not final."""
    if labels is None:
        return []
    return [
        f"{count:,} {name} rows are younger than {labels['label_delay']}: anomalies among them "
        "that were not known yet count as normal."
        for name, count in labels["young"].items()
        if name in LEARNT and count
    ]


def _columns(manifest: Mapping[str, Any]) -> Section:
    """List the columns with their usual values, which reviewers are told."""
    schema, encoding = modality(manifest["kind"])
    wording = Wording.of(encoding.from_json(manifest["encoding"]), manifest["config"]["data"])
    found = [
        (column.name, str(column.type), wording.usual_values(column.name))
        for column in schema.from_json(manifest["schema"]).columns
    ]
    more = (f"And {len(found) - MAX_ROWS:,} more.",) if len(found) > MAX_ROWS else ()
    pooled = tuple(map(_sentence, pooled_notes(manifest)[:MAX_ROWS]))
    table = Table(("name", "type", "usual values"), tuple(found[:MAX_ROWS]))
    return Section("Columns", (*_usual_note(found), *more, *pooled), table)


def _usual_note(columns: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Explain the usual values with an example, if those of a column of numbers are known."""
    numbers = ((name, usual) for name, kind, usual in columns if usual and kind == "numeric")
    for name, usual in islice(numbers, 1):
        yield (
            "Usual values are those of nine in ten training rows. Reviewers read which values of a "
            f"flagged row are unusual, such as “{name} …, usually {usual}”."
        )


def _unusual(manifest: Mapping[str, Any]) -> str:
    """Say whether input that is unlike the training data is reported, and how often wrongly."""
    noun, test = NOUNS[manifest["kind"]], manifest.get("unusual")
    if test is None:
        return f"The model does not report {noun} that are unlike the training data altogether."
    return (
        f"Beside the score, {noun} that are unlike the training data altogether are reported with "
        f"a reason (unusual_input): on average at most {plain_number(1000 * test['alpha'])} of "
        f"1,000 {noun} that are like the {test['n']:,} calibration {noun}."
    )


def _calibration(manifest: Mapping[str, Any]) -> Section:
    summary = manifest["calibration"]
    if summary is None:
        return Section("Calibration", ("None yet: there is no threshold.",))
    figures = summary.get("figures", {})
    promise = PROMISES.get(summary["method"], UNKNOWN_METHOD)
    words = {"alpha": f"{summary['alpha']:.3g}", "confidence": f"{1 - figures.get('delta', 0):g}"}
    note = (_sentence(figures["note"]),) if "note" in figures else ()
    assumption = f"It assumes that {promise.assumes}."
    text = (promise.text.format(**words), assumption, *note, _unusual(manifest))
    rows = [(key, summary[key]) for key in ("method", "alpha", "threshold")]
    rows.append(("normal calibration rows", summary["n"]))
    rows += [
        (key.replace("_", " "), value)
        for key, value in figures.items()
        if isinstance(value, int | float)
    ]
    return Section("Calibration", text, Table(("", ""), tuple(rows)), ("calibration",))


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _groups(calibration: Mapping[str, Any]) -> Iterator[Section]:
    """List the groups with a threshold of their own and those with the threshold of all rows."""
    if (groups := calibration.get("groups")) is None:
        return
    rest, figures = calibration["threshold"], calibration["figures"]
    own = [(level, one["n"], one["threshold"], "its own") for level, one in groups["own"].items()]
    small = [(level, rows, rest, "of all rows") for level, rows in figures["small_groups"].items()]
    others = ("(missing or rare)", figures["ungrouped"], rest, "of all rows")
    text = "The guarantee holds for each group that has its own threshold."
    header = (groups["column"], "normal rows", "threshold", "")
    yield Section("Groups", (text,), Table(header, (*own[:MAX_ROWS], *small[:MAX_ROWS], others)))


def _known(manifest: Mapping[str, Any]) -> Iterator[Section]:
    """Say whether the model has learned from known anomalies, and why; images never have."""
    if manifest["kind"] != "tabular":
        return
    found = manifest["training"].get("known")
    first, *rest = KNOWN if found else (UNKNOWN,)
    yield Section("Known anomalies", (first.format(**found or {}), *rest))


def _limits(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the limits of what a model detects."""
    if "known" not in manifest["training"]:
        return LIMITS
    return (LIMITS[0], LEARNED_LIMIT, *LIMITS[2:])


def _scope(calibration: Mapping[str, Any]) -> str:
    """Return the text about the rows that the guarantee covers."""
    return PROMISE_FOR_GROUPS if calibration.get("groups") else PROMISE_FOR_ALL


def _evaluation(content: Mapping[str, Any] | None) -> Iterator[Section]:
    """Report the figures of the test split, its slices and p-values, and possible leakage."""
    if content is None:
        yield Section("Figures", ("None yet: anomaly-vae calibrate evaluates the test split.",))
        return
    source = "Measured on the test split, which was used neither for training nor calibration."
    table = Table(("figure", "value", "interval"), figure_rows(content))
    labels = content.get("labels")
    maturity = (_sentence(f"labels: {LabelMaturity(**labels)}"),) if labels else ()
    yield Section("Figures", (source, *maturity), table, ("ranking", "scores"))
    if content.get("p_values"):
        yield _p_values(content)
    if content.get("slices"):
        yield _slices(content["slices"])
    if "warnings" in content:
        yield _warnings(content)


def _p_values(content: Mapping[str, Any]) -> Section:
    """Report whether the p-values of normal rows are uniform."""
    steps, p = content["p_values"], content.get("ks_p_value")
    unlike = p is not None and p < NON_UNIFORM
    text = (
        "The p-values of normal test rows are not uniform: these rows differ from the calibration "
        "rows, or depend on each other. p-values of similar rows are approximate."
        if unlike
        else "The p-values of normal test rows are consistent with a uniform distribution, which "
        "is what the guarantee predicts."
    )
    rows = tuple((s["level"], s["share"], format_interval([s["low"], s["high"]])) for s in steps)
    header = ("level", "share of normal rows with p ≤ level", "range that chance explains")
    return Section("p-values", (text,), Table(header, rows), ("p_values",))


def _slices(slices: Sequence[Mapping[str, Any]]) -> Section:
    """Report the slices; those above their limit come first."""
    found = [_slice(one) for one in slices]
    above = [row for row in found if row[-1]]
    count = len(above) or "None"
    text = f"{count} of {len(found)} slices flag more normal rows than chance explains."
    rows = tuple((*row[:-1], "above the limit" if row[-1] else "") for row in found[:MAX_ROWS])
    header = ("slice", "rows", "anomalies", "false positive rate", "limit", "recall",
              "average precision", "")  # fmt: skip
    return Section("Slices", (text,), Table(header, rows), ("slices",))


def _slice(one: Mapping[str, Any]) -> tuple[Any, ...]:
    fpr, recall = ((one[key] or {}).get("value") for key in ("fpr", "recall"))
    above = fpr is not None and one["limit"] is not None and fpr > one["limit"]
    name, ranked = slice_name(one["column"], one["level"]), one["average_precision"]
    return name, one["rows"], one["anomalies"], fpr, one["limit"], recall, ranked, above


FEW_ANOMALIES = (
    f"The test split has fewer than {MIN_ROWS} known anomalies, so single features were compared "
    "on all labelled rows."
)
NO_WARNINGS = "Nothing was found that makes the figures look better than they are."


def _warnings(content: Mapping[str, Any]) -> Section:
    """Report warnings, and how well single features separate anomalies."""
    text = list(content["warnings"]) or [NO_WARNINGS]
    if twins := content.get("twins"):
        count = f"{twins['rows']:,}" if twins["rows"] else "None"
        text.append(f"{count} of the test rows have a duplicate in the training data.")
    rows = tuple((one["name"], one["kind"], one["auroc"]) for one in content.get("alone", ()))
    if rows and content["anomalies"] < MIN_ROWS:
        text.append(FEW_ANOMALIES)
    table = Table(("single feature", "kind", "AUROC"), rows) if rows else None
    return Section("What may flatter these figures", tuple(text), table)


def _training(manifest: Mapping[str, Any]) -> Section:
    training, config = manifest["training"], manifest["config"]["training"]
    rows = [(key.replace("_", " "), training.get(key)) for key in ("epochs",)]
    best = training.get("best", {})
    rows += [
        (f"{key.replace('_', ' ')} of the weights kept", best[key])
        for key in BEST_EPOCH_KEYS
        if key in best
    ]
    rows += [(key.replace("_", " "), config.get(key)) for key in ("seed", "precision")]
    return Section("Training", table=Table(("", ""), tuple(rows)), plots=("loss",))
