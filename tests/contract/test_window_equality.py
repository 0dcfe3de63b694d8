"""Test that files and the service compute the same windows and scores from the same records."""

from __future__ import annotations

import datetime as dt
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.features.store import StoreOptions
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.batch.tables import score_files
from pipelines.datasets.files import heads_by_file
from pipelines.datasets.loading import load_dataset
from pipelines.datasets.reading.parts import Reading
from pipelines.datasets.windows import open_windows
from pipelines.registry.model_uri import LoadedModel
from pipelines.windows import load_windows
from serving.app import create_app
from serving.models.store import Store
from serving.scoring.loading import load_model
from serving.settings import Settings

Record = dict[str, Any]
Form = Callable[[dt.datetime], Any]

WINDOWS: dict[str, Any] = {
    "card": {
        "over": ["1h", "1d", "7d"],
        "count": True,
        "of": {"amount": ["sum", "mean", "max", "std"]},
        "distinct": ["shop", "amount"],
        "since_last": True,
    },
    "shop": {"over": ["2d"], "count": True, "risk": {"label": "fraud", "delay": "1d"}},
}
START = dt.datetime(2024, 1, 14, tzinfo=dt.UTC)
PAST, NIGHT = 260, 90
DELAY = dt.timedelta(days=1)


def zoned(at: dt.datetime) -> str:
    return at.astimezone(dt.timezone(dt.timedelta(hours=at.hour % 5 - 2))).isoformat()


FORMS: dict[str, tuple[Form, dict[str, Any]]] = {
    "ISO 8601": (lambda at: at.replace(tzinfo=None).isoformat(), {}),
    "with zones": (zoned, {}),
    "dates": (lambda at: at.date().isoformat(), {}),
    "seconds": (dt.datetime.timestamp, {}),
    "milliseconds": (lambda at: round(at.timestamp() * 1000), {}),
    "day first": (lambda at: at.strftime("%d/%m/%Y %H:%M:%S"), {}),
    "digits": (lambda at: int(at.strftime("%Y%m%d")), {}),
    "configured": (lambda at: at.strftime("%H.%M %d %b %Y"), {"time_format": "%H.%M %d %b %Y"}),
}
"""Forms of times, each with the keys of `data` that it needs."""
CARDS = [
    12, 12.0, "12", " 12 ", "12.0", "012", "x", True, "true", "True", "", "  ", None, 0, 1.5,
    2**53, 2**53 + 1, "NA", "ß",
]  # fmt: skip
SHOPS = ["a", "b", "a ", 1, True, "1", "", None]
AMOUNTS = [0, 0.1, 1e-9, 1e9, 1e9 + 1e-6, -7.25, None, 12, 1e15]
BAD: Sequence[tuple[str, Any]] = [
    ("amount", 2e150), ("amount", -1e300), ("amount", "much"),
    ("at", "soon"), ("at", 5), ("at", 1e14), ("at", -1e300),
]  # fmt: skip
"""Values that cannot be read, each with its field."""


@dataclass(frozen=True)
class Case:
    """Records in one form of times, and a model that is trained on the earlier ones."""

    bundle: Bundle
    folder: Path
    history: str
    records: Sequence[Record]


def stream(form: Form, count: int, start: dt.datetime, seed: int) -> list[Record]:
    """Return records in the order of time, with ties, missing values and repeated ids."""
    draw = random.Random(seed)
    steps = [draw.choice([0, 0, 1, 37, 600, 5_000]) for _ in range(count)]
    times = [
        start + dt.timedelta(seconds=sum(steps[:i]), microseconds=i // 3) for i in range(count)
    ]
    return [
        {
            "id": draw.choice(
                [f"{seed}-{i}"] * 9 + [f"{draw.choice([1, seed])}-{draw.randrange(i + 1)}"]
            ),
            "at": None if draw.random() < 0.05 else form(at),
            "card": draw.choice(CARDS),
            "shop": draw.choice(SHOPS),
            "amount": draw.choice([*AMOUNTS, draw.lognormvariate(3, 1)]),
            "fraud": int(draw.random() < 0.3),
        }
        for i, at in enumerate(times)
    ]


def write(path: Path, records: Sequence[Record]) -> str:
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return str(path)


def config_of(path: str, data: Mapping[str, Any]) -> Config:
    content = {
        "path": path, "label": "fraud", "id": "id", "time": "at", "features": ["amount"],
        "windows": WINDOWS, **data,
    }  # fmt: skip
    return validate_config({"name": "cards", "data": content, "training": {"epochs": 1}})


def trained(config: Config) -> Bundle:
    rows = load_dataset(config.data)
    prepared = prepare(config, rows.schema, rows.part(TRAIN), rows.part(VALIDATION))
    fitted = fit_bundle(config, prepared, rows.summary()).bundle
    scores = fitted.scorer.score(rows.part(CALIBRATION))
    return fitted.calibrated(calibrate(scores, 0.05), None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a model whose training file has times of ISO 8601."""
    path = tmp_path_factory.mktemp("training") / "past.jsonl"
    return trained(config_of(write(path, stream(FORMS["ISO 8601"][0], PAST, START, 1)), {}))


def retimed(bundle: Bundle, history: str, data: Mapping[str, Any]) -> Bundle:
    """Return the model as if it was trained on a file with times of another form."""
    config = config_of(history, data)
    content = {"config": config.model_dump(), "data": load_dataset(config.data).summary()}
    manifest = {**bundle.manifest, **json.loads(json.dumps(content, default=list))}
    return replace(bundle, manifest=manifest, manifest_file=None)


def case_of(folder: Path, bundle: Bundle, form: Form, data: Mapping[str, Any]) -> Case:
    history = write(folder / "past.jsonl", stream(form, PAST, START, 1))
    night = stream(form, NIGHT, START + dt.timedelta(days=6), 2)
    return Case(retimed(bundle, history, data), folder, history, night)


def by_files(case: Case, records: Sequence[Record]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Score the records in a file; yield each row's reject or score, and its windows."""
    path, source = write(case.folder / "night.jsonl", records), LoadedModel(case.bundle)
    out = case.folder / "scores"
    summary = score_files(source, [path], out, history=[case.history])
    scores = iter(pq.read_table(out / summary["parts"][0])["score"].to_pylist())
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    rejected = {reject["row"]: reject["column"] for reject in rejects}
    assert len(rejected) == len(rejects)
    file = Path(path)
    heads = heads_by_file([file], Reading.of_model(case.bundle, {}, score=True))
    with open_windows(case.bundle, heads, [file], [case.history]) as windows:
        assert windows is not None
        values = windows.features.read(np.arange(len(records)))
    for row in range(len(records)):
        found = rejected[row] if row in rejected else next(scores)
        yield found, {name: column[row] for name, column in values.items()}


def by_service(case: Case, records: Sequence[Record]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Send the records in turn, and labels of known frauds; yield as `by_files` does."""
    url = f"sqlite:///{case.folder / 'windows.db'}"
    load_windows(LoadedModel(case.bundle), [case.history], StoreOptions(url))
    model = load_model(BundleRef(str(case.bundle.save(case.folder / "bundle"))))
    client = TestClient(create_app(Store([model]), Settings(windows=url)))
    recorded: set[str] = set()
    for record in records:
        answer = client.post("/score", json={"records": [record], "errors": "per_record"})
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        if "error" in result:
            yield result["error"]["field"], {}
            refused = client.post("/score", json={"records": [record]})
            assert (refused.status_code, refused.json()["field"]) == (422, result["error"]["field"])
            continue
        yield result["score"], result["windows"]
        is_event = record["at"] and (
            result["windows"]["card_count_1h"] is not None
            or result["windows"]["shop_count_2d"] is not None
        )
        if record["fraud"] and is_event and record["id"] not in recorded:
            label = {"id": record["id"], "label": "anomaly", "at": record["at"]}
            assert client.post("/events", json={"labels": [label]}).json()["labels"]["known"]
        recorded |= {record["id"]} if is_event else set()


def check(case: Case, records: Sequence[Record]) -> list[Any]:
    """Compare both ways row by row, and return the scores or the fields of rejects."""
    pairs = list(zip(by_files(case, records), by_service(case, records), strict=True))
    for number, ((found, values), (answer, windows)) in enumerate(pairs):
        if isinstance(found, str):
            assert found == answer, (number, records[number])
            continue
        for name, value in values.items():
            other = math.nan if windows[name] is None else windows[name]
            assert value == pytest.approx(other, rel=1e-9, nan_ok=True), (
                number,
                name,
                records[number],
            )
        assert found == pytest.approx(answer, rel=1e-6), (number, records[number])
    return [found for (found, _), _ in pairs]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in {"dates", "milliseconds"} else [])
        for name in FORMS
    ],
)
def test_files_and_service_agree_on_times_of_each_form(
    name: str, bundle: Bundle, tmp_path: Path
) -> None:
    case = case_of(tmp_path, bundle, *FORMS[name])
    assert all(isinstance(found, float) for found in check(case, case.records))


@pytest.mark.parametrize(("field", "value"), BAD)
def test_what_cannot_be_read_is_rejected_by_both_and_no_event(
    field: str, value: Any, bundle: Bundle, tmp_path: Path
) -> None:
    form = FORMS["seconds" if isinstance(value, float) else "ISO 8601"]
    case = case_of(tmp_path, bundle, *form)
    night = list(case.records[:40])
    night[10:10] = [night[10] | {"id": "bad", "card": 12, "shop": "a", field: value}]
    assert [found for found in check(case, night) if isinstance(found, str)] == [field]


def test_entities_may_be_features_of_another_type(tmp_path: Path) -> None:
    """Long numbers are different cards, although the model reads them as one float."""
    form, big = FORMS["milliseconds"][0], 2**60
    past = [r | {"card": big + i % 3} for i, r in enumerate(stream(form, PAST, START, 1))]
    night = stream(form, 40, START + dt.timedelta(days=6), 2)
    night = [r | {"card": big + i % 3} for i, r in enumerate(night)]
    history = write(tmp_path / "past.jsonl", past)
    bundle = trained(config_of(history, {"features": None}))
    assert {"card", "at", "shop"} <= {*bundle.scorer.schema.names}
    check(Case(bundle, tmp_path, history, night), night)
