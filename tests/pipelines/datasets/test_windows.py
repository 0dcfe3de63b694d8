"""Window features in training, in evaluation and in batch scoring, from the same rows."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle, from_files
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import validate_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.errors import AnomalyVAEError, ConfigError, DataError
from anomaly_vae.estimators import TabularVAEDetector
from anomaly_vae.features import WindowDefinition, WindowInputs
from anomaly_vae.features.offline import add_windows
from anomaly_vae.features.store import StoreOptions, open_store
from anomaly_vae.features.store.store import Label
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.batch.tables import score_files
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.files import heads_by_file
from pipelines.datasets.loading import load_dataset, load_labelled, read_for_model
from pipelines.datasets.reading.parts import Reading
from pipelines.datasets.windows import expected_columns, open_windows, windows_of
from pipelines.registry.model_uri import LoadedModel
from pipelines.windows import load_windows
from tests.support.redis_server import PASSWORD, redis_server

ROWS, NIGHT = 600, 60
HOUR = 3_600
WINDOWS: dict[str, Any] = {
    "card": {
        "over": ["1h", "1d"],
        "count": True,
        "of": {"amount": ["sum", "std"]},
        "distinct": ["shop"],
        "since_last": True,
    },
    "shop": {"over": ["1d"], "count": True, "risk": {"label": "fraud", "delay": "6h"}},
}
DATA: dict[str, Any] = {
    "label": "fraud",
    "id": "id",
    "time": "at",
    "features": ["amount"],
    "windows": WINDOWS,
}
NAMES = WindowDefinition(
    validate_config({"name": "x", "data": {"path": "x", **DATA}}).data.windows
).names  # type: ignore[union-attr]


def transactions() -> pa.Table:
    rng = np.random.default_rng(0)
    at = np.sort(rng.integers(0, 5 * 24 * HOUR, ROWS)) + 1_700_000_000
    return pa.table(
        {
            "id": [f"t{i}" for i in range(ROWS)],
            "at": pa.array(at, pa.timestamp("s")),
            "card": rng.integers(9, size=ROWS).astype(np.int16),
            "shop": rng.choice(["x", "y", "z"], ROWS),
            "amount": rng.lognormal(3, 1, ROWS).round(2),
            "fraud": (rng.random(ROWS) < 0.1).astype(np.int8),
        }
    )


TABLE = transactions()
PAST, LATEST = TABLE.slice(0, ROWS - NIGHT), TABLE.slice(ROWS - NIGHT)


def write(folder: Path, name: str, table: pa.Table) -> str:
    path = folder / name
    folder.mkdir(exist_ok=True)
    (pyarrow.csv.write_csv if path.suffix == ".csv" else pq.write_table)(table, path)
    return str(path)


def load(folder: Path, table: pa.Table = TABLE, **data: Any) -> Dataset:
    content = {**DATA, "path": write(folder, "rows.parquet", table), **data}
    return load_dataset(validate_config({"name": "x", "data": content}).data)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = write(tmp_path_factory.mktemp("training"), "rows.parquet", TABLE)
    content = {"name": "x", "data": {**DATA, "path": path}, "training": {"epochs": 1}}
    config = validate_config({**content, "calibration": {"alpha": 0.05}})
    data = load_dataset(config.data)
    prepared = prepare(config, data.schema, data.part(TRAIN), data.part(VALIDATION))
    fitted = fit_bundle(config, prepared, data.summary()).bundle
    scores = fitted.scorer.score(data.part(CALIBRATION))
    return from_files(fitted.calibrated(calibrate(scores, 0.05), None).files)


def score(
    bundle: Bundle, out: Path, paths: Sequence[str], history: Sequence[str] = ()
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, Any]]:
    """The score of each id, the rejects and the summary."""
    summary = score_files(LoadedModel(bundle), paths, out, history=history)
    assert summary == json.loads((out / "summary.json").read_text())
    parts = [pq.read_table(out / name).to_pylist() for name in summary["parts"]]
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    return {row["id"]: row["score"] for part in parts for row in part}, rejects, summary


# ---------------------------------------------------------------- training


def test_windows_are_numeric_features_after_the_other_columns(tmp_path: Path) -> None:
    data = load(tmp_path)
    assert data.schema.names == ("amount", *NAMES)
    assert {str(column.type) for column in data.schema.columns} == {"numeric"}
    assert data.schema.unknown(set(TABLE.column_names)) == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("features", [None, {"amount": {"type": "numeric"}}])
def test_features_may_be_inferred_or_typed(features: Any, tmp_path: Path) -> None:
    data = load(tmp_path, features=features, ignore=["card", "shop"])
    assert set(data.schema.names) == {"amount", *NAMES, *([] if features else ["at"])}


def test_windows_of_test_rows_see_training_rows(tmp_path: Path) -> None:
    data = load(tmp_path)
    last = TABLE.slice(ROWS - 1).to_pylist()[0]
    before = [
        row
        for row in TABLE.slice(0, ROWS - 1).to_pylist()
        if row["card"] == last["card"] and 0 < (last["at"] - row["at"]).total_seconds() <= 24 * HOUR
    ]
    assert before
    assert data.table["card_count_1d"][-1].as_py() == len(before)


def test_the_manifest_has_the_digest_in_any_order(bundle: Bundle) -> None:
    reader = windows_of(bundle)
    assert reader is not None
    recorded = {"digest": reader.definition.digest, "labels": {"fraud": ["0"]}}
    assert bundle.manifest["data"]["windows"] == recorded
    assert set(reader.definition.names) == set(NAMES)


def test_csv_and_parquet_give_the_same_windows(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", TABLE)
    content = {"name": "x", "data": {**DATA, "path": path}}
    from_text = load_dataset(validate_config(content).data)
    typed = load(tmp_path)
    for name in NAMES:
        assert from_text.table[name].equals(typed.table[name])


def test_numbers_of_seconds_need_no_format_in_scoring(tmp_path: Path) -> None:
    seconds = TABLE.set_column(1, "at", TABLE["at"].cast(pa.int64()))
    data = load(tmp_path, seconds)
    assert data.summary()["windows"]["time_format"] == "epoch_s"
    assert data.table["card_count_1d"].equals(load(tmp_path).table["card_count_1d"])


def test_an_entity_that_is_a_feature_of_many_values_is_noted(tmp_path: Path) -> None:
    table = TABLE.set_column(2, "card", pa.array(np.arange(ROWS) % 200))
    notes = load(tmp_path, table, features=None).notes
    assert any("data.ignore: [card]" in note for note in notes)
    assert not any("data.ignore" in note for note in load(tmp_path, table).notes)


def test_rows_before_the_windows_are_full_are_noted(tmp_path: Path) -> None:
    assert any("windows look back 30 hours" in note for note in load(tmp_path).notes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crad": {"over": ["1h"], "count": True}}, "'crad', which is not there; write card"),
        (
            {"card": {"over": ["1h"], "of": {"amuont": ["sum"]}}},
            r"data.windows.card.of names the column 'amuont', which is not there; write amount",
        ),
        (
            {"card": {"over": ["1h"], "distinct": ["terminal"]}},
            "data.windows.card.distinct names the column 'terminal', which is not there; found",
        ),
        (
            {"card": {"over": ["1h"], "risk": {"label": "fruad", "delay": "1d"}}},
            "data.windows.card.risk.label names the column 'fruad', .* write fraud",
        ),
        (
            {"card": {"over": ["1h"], "of": {"shop": ["mean"]}}},
            r"'shop', whose values are no numbers, such as '[xyz]'; count .* distinct: \[shop\]",
        ),
        (
            {"card": {"over": ["1h"], "of": {"at": ["mean"]}}},
            r"'at': expected numbers, found timestamp\[ms\]; count",
        ),
    ],
)
def test_a_definition_that_does_not_fit_is_refused_with_the_remedy(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        load(tmp_path, windows=change)


def test_a_column_with_the_name_of_a_feature_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    table = TABLE.append_column("card_count_1h", TABLE["amount"])
    with pytest.raises(DataError, match=r"'card_count_1h' has the name of a feature .* rename"):
        load(tmp_path, table)
    with pytest.raises(DataError, match=r"'card_count_1h' of '.*rows.parquet' has the name"):
        score(bundle, tmp_path / "out", [write(tmp_path, "rows.parquet", table)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"card": {"over": ["1h"], "of": {"fraud": ["mean"]}}}, r"risk: {label: fraud, delay: 7d}"),
        ({"card": {"over": ["1h"], "distinct": ["fraud"]}}, r"risk: {label: fraud, delay: 7d}"),
        ({"fraud": {"over": ["1h"], "count": True}}, r"risk: {label: fraud, delay: 7d}"),
        ({"id": {"over": ["1h"], "count": True}}, "windows.id: the id never repeats"),
        ({"at": {"over": ["1h"], "count": True}}, "windows.at: the time never repeats"),
        ({"card": {"over": ["0h"], "count": True}}, "no duration above zero; write 30m"),
        ({"card": {"over": ["1h"], "risk": {"label": "fraud"}}}, "delay"),
        ({"card": {"over": ["1h"], "of": {"amount": []}}}, "amount: name at least one"),
        ({"card": {"over": ["1h"], "distinct": ["shop", "shop"]}}, "distinct: name .* only once"),
    ],
)
def test_a_definition_that_leaks_or_says_nothing_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        validate_config({"name": "x", "data": {**DATA, "path": "x", "windows": change}})


# ---------------------------------------------------------------- scoring


def test_history_gives_the_features_that_the_whole_has(bundle: Bundle, tmp_path: Path) -> None:
    past, night = write(tmp_path, "past.csv", PAST), write(tmp_path, "night.parquet", LATEST)
    whole, _, _ = score(bundle, tmp_path / "whole", [write(tmp_path, "whole.parquet", TABLE)])
    scored, _, summary = score(bundle, tmp_path / "out", [night], [past])
    assert scored == {name: whole[name] for name in LATEST["id"].to_pylist()}
    assert not summary["warnings"]
    again, _, _ = score(bundle, tmp_path / "again", [night], [past, night, f"{tmp_path}/whole.*"])
    assert again == scored


def test_without_history_windows_see_the_input_only_and_say_so(
    bundle: Bundle, tmp_path: Path
) -> None:
    night = write(tmp_path, "night.parquet", LATEST)
    scored, _, summary = score(bundle, tmp_path / "out", [night])
    assert list(scored) == LATEST["id"].to_pylist()
    assert "give the 30 hours before them with --history" in summary["warnings"][0]
    short = write(tmp_path, "short.parquet", PAST.slice(ROWS - NIGHT - 5))
    with pytest.raises(DataError, match=r"with other files or other contents of --history; choose"):
        score(bundle, tmp_path / "out", [night], [short])
    _, _, summary = score(bundle, tmp_path / "again", [night], [short])
    assert "but the windows look back 30 hours" in summary["warnings"][0]


def test_history_without_labels_is_said(bundle: Bundle, tmp_path: Path) -> None:
    night = write(tmp_path, "night.parquet", LATEST.drop(["fraud"]))
    past = write(tmp_path, "past.parquet", PAST.drop(["fraud"]))
    _, _, summary = score(bundle, tmp_path / "out", [night], [past])
    assert summary["warnings"] == [
        "there is no column 'fraud': no past event counts as a known anomaly"
    ]


def test_labels_without_a_meaning_are_said(bundle: Bundle, tmp_path: Path) -> None:
    """They would silently count as no label, so that windows see fewer known anomalies."""
    words = pa.array(["fraudulent", *["0"] * (len(PAST) - 3), "soon", None])
    past = write(tmp_path, "past.parquet", PAST.set_column(5, "fraud", words))
    night = write(tmp_path, "night.parquet", LATEST.set_column(5, "fraud", [["?"] * NIGHT]))
    _, _, summary = score(bundle, tmp_path / "out", [night], [past])
    of_past, of_night = summary["warnings"]
    assert "2 labels count as no label, the first: " in of_past
    assert "past.parquet', column 'fraud', row 0: 'fraudulent' " in of_past
    assert f"{NIGHT:,} labels count as no label, the first: " in of_night


def test_rows_in_any_order_and_several_files_keep_order_and_score(
    bundle: Bundle, tmp_path: Path
) -> None:
    whole, _, _ = score(bundle, tmp_path / "whole", [write(tmp_path, "whole.parquet", TABLE)])
    order = np.random.default_rng(1).permutation(ROWS)
    shuffled = TABLE.take(pa.array(order))
    parts = [
        write(tmp_path, "a.csv", shuffled.slice(0, 200)),
        write(tmp_path, "b.parquet", shuffled.slice(200)),
    ]
    scored, _, _ = score(bundle, tmp_path / "out", parts)
    assert list(scored) == shuffled["id"].to_pylist()
    assert scored == whole


def test_a_row_that_arrives_twice_counts_once(bundle: Bundle, tmp_path: Path) -> None:
    whole, _, _ = score(bundle, tmp_path / "whole", [write(tmp_path, "whole.parquet", TABLE)])
    twice = write(tmp_path, "twice.parquet", pa.concat_tables([TABLE, TABLE]))
    scored, _, summary = score(bundle, tmp_path / "out", [twice])
    assert summary["scored"] == 2 * ROWS
    assert scored == whole


@pytest.mark.parametrize("column", ["at", "amount", "card"])
def test_a_cell_that_cannot_be_read_is_one_reject_that_names_it(
    column: str, bundle: Bundle, tmp_path: Path
) -> None:
    cells = [str(value).encode() for value in LATEST[column].to_pylist()]
    cells[3] = b"\xff\xfe"
    table = LATEST.set_column(LATEST.column_names.index(column), column, pa.array(cells))
    scored, rejects, summary = score(
        bundle, tmp_path / "out", [write(tmp_path, "night.parquet", table)]
    )
    assert [(row["row"], row["column"]) for row in rejects] == [(3, column)]
    assert len(scored) == NIGHT - 1
    assert summary["rows"] == NIGHT


def test_a_row_without_a_time_or_entity_is_scored_without_windows(
    bundle: Bundle, tmp_path: Path
) -> None:
    rows = LATEST.to_pylist()
    rows[0]["at"] = rows[1]["card"] = None
    path = write(tmp_path, "night.parquet", pa.Table.from_pylist(rows, LATEST.schema))
    scored, rejects, _ = score(bundle, tmp_path / "out", [path])
    assert len(scored) == NIGHT
    assert not rejects


def test_unreadable_history_is_refused_and_unreadable_rows_are_counted(
    bundle: Bundle, tmp_path: Path
) -> None:
    night = write(tmp_path, "night.parquet", LATEST)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"--history '.*broken.parquet': .*leave it out"):
        score(bundle, tmp_path / "out", [night], [str(tmp_path / "broken.parquet")])
    text = PAST.set_column(1, "at", PAST["at"].cast(pa.string()))
    rows = [*text.to_pylist(), {**text.to_pylist()[0], "at": "soon"}]
    past = write(tmp_path, "past.parquet", pa.Table.from_pylist(rows))
    _, _, summary = score(bundle, tmp_path / "out", [night], [past])
    assert "1 history rows are left out, the first: " in summary["warnings"][0]
    assert f"row {ROWS - NIGHT}" in summary["warnings"][0]


def test_a_foreign_file_is_rejected_as_ever(bundle: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, "foreign.parquet", pa.table({"colour": ["red", "blue"]}))
    scored, rejects, _ = score(bundle, tmp_path / "out", [path])
    assert not scored
    assert "none of the model's columns found" in rejects[0]["reason"]


# ---------------------------------------------------------------- the past in a window store


def fill(bundle: Bundle, folder: Path, past: pa.Table, url: str | None = None) -> StoreOptions:
    """Load rows into a window store."""
    options = StoreOptions(url or f"sqlite:///{folder}/windows.db", salt="pepper")
    source = LoadedModel(bundle)
    load_windows(source, [write(folder, f"past-{len(past)}.parquet", past)], options)
    return options


def score_with(
    bundle: Bundle, out: Path, night: str, store: StoreOptions
) -> tuple[dict[str, float], dict[str, Any]]:
    """The score of each id, and the summary."""
    summary = score_files(LoadedModel(bundle), [night], out, windows_store=store)
    parts = [pq.read_table(out / name).to_pylist() for name in summary["parts"]]
    return {row["id"]: row["score"] for part in parts for row in part}, summary


def contents(store: StoreOptions) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store.url.removeprefix("sqlite:///"))) as db:
        return db.execute("SELECT id, width, events FROM entities").fetchall()


def test_a_store_gives_the_past_as_history_does(bundle: Bundle, tmp_path: Path) -> None:
    past, night = write(tmp_path, "past.parquet", PAST), write(tmp_path, "night.parquet", LATEST)
    expected, _, _ = score(bundle, tmp_path / "history", [night], [past])
    store = fill(bundle, tmp_path, PAST)
    before = contents(store)
    scored, summary = score_with(bundle, tmp_path / "out", night, store)
    assert scored == expected
    assert contents(store) == before
    assert not summary["warnings"]
    assert summary["windows_store"]["url"] == store.url
    assert summary["windows_store"]["since"] == str(PAST["at"][0].as_py())
    assert summary["windows_store"]["until"] == str(PAST["at"][-1].as_py())
    # rows that a service has recorded already, and one of an id that it has of another card
    fill(bundle, tmp_path, TABLE)
    rows = LATEST.to_pylist()
    rows[3] |= {"id": rows[0]["id"]}
    again = write(tmp_path, "again.parquet", pa.Table.from_pylist(rows, LATEST.schema))
    expected, _, _ = score(bundle, tmp_path / "history-2", [again], [past, night])
    scored, _ = score_with(bundle, tmp_path / "again", again, store)
    assert scored == expected


def test_a_store_of_redis_gives_the_past(bundle: Bundle, tmp_path: Path) -> None:
    past, night = write(tmp_path, "past.parquet", PAST), write(tmp_path, "night.parquet", LATEST)
    expected, _, _ = score(bundle, tmp_path / "history", [night], [past])
    with redis_server(tmp_path) as url:
        store = fill(bundle, tmp_path, PAST, url)
        scored, summary = score_with(bundle, tmp_path / "out", night, store)
    assert scored == expected
    assert PASSWORD not in json.dumps(summary)


def test_labels_in_a_store_count_from_the_moment_they_are_known(
    bundle: Bundle, tmp_path: Path
) -> None:
    """A label that came after a row does not count for it; one that came before does."""
    options = fill(bundle, tmp_path, PAST.drop(["fraud"]))
    inputs = WindowInputs.from_manifest(bundle.manifest)
    assert inputs is not None
    store = open_store(options, inputs)
    draw = np.random.default_rng(5)
    hours = draw.integers(0, 40, len(PAST)).tolist()
    labels = [
        Label(row["id"], True, int(row["at"].timestamp() * 1e6) + hour * HOUR * 1_000_000)
        for row, hour in zip(PAST.to_pylist(), hours, strict=True)
        if hour % 3
    ]
    assert all(store.label(labels))
    night = write(tmp_path, "night.parquet", LATEST.drop(["fraud"]))
    with open_windows(
        bundle, heads_by_file([Path(night)], Reading()), [Path(night)], store=options
    ) as found:
        assert found is not None
        files = found.features.read(np.arange(NIGHT))
    batch = inputs.raw_schema(bundle.scorer.schema).from_arrow(LATEST)  # type: ignore[arg-type]
    online = store.features(inputs.events(batch)).values
    for number, name in enumerate(inputs.definition.names):
        np.testing.assert_allclose(files[name], online[:, number], rtol=1e-9)
    store.backend.close()


def test_a_store_that_lacks_some_of_the_past_is_said(bundle: Bundle, tmp_path: Path) -> None:
    night = write(tmp_path, "night.parquet", LATEST)
    first = str(LATEST["at"][0].as_py())
    store = fill(bundle, tmp_path, PAST.slice(0, 60))
    _, summary = score_with(bundle, tmp_path / "early", night, store)
    (early,) = summary["warnings"]
    assert f"and the first row of {first}: windows see no event between them; fill it" in early
    store = fill(bundle, tmp_path / "late", PAST.slice(ROWS - NIGHT - 5))
    _, summary = score_with(bundle, tmp_path / "late" / "out", night, store)
    assert f"but the input begins at {first}: earlier rows see less" in summary["warnings"][0]
    later = TABLE.set_column(
        1, "at", pc.add(TABLE["at"], pa.scalar(20 * 24 * HOUR, pa.duration("s")))
    )
    fill(bundle, tmp_path, later, store.url)
    _, summary = score_with(bundle, tmp_path / "old", night, store)
    assert "earlier rows see less" in summary["warnings"][0]


def test_a_store_without_such_events_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    night = write(tmp_path, "night.parquet", LATEST)
    store = StoreOptions(f"sqlite:///{tmp_path}/windows.db", salt="pepper")

    def fails(reason: str, options: StoreOptions = store, history: Sequence[str] = ()) -> None:
        with pytest.raises(AnomalyVAEError, match=reason):
            score_files(
                LoadedModel(bundle), [night], tmp_path / "out", history=history,
                windows_store=options,
            )  # fmt: skip

    fails(r"windows.db' does not exist; correct its URL, or fill it with: anomaly-vae windows load")
    assert not (tmp_path / "windows.db").exists()
    windows = validate_config({"name": "x", "data": {"path": "x", **DATA}}).data.windows  # type: ignore[union-attr]
    other = WindowInputs(WindowDefinition({"card": windows["card"]}), "at")
    open_store(store, other).backend.close()
    fails("has no events for the entities and columns of this model; fill it")
    fails("written with another ANOMALY_VAE_WINDOWS_SALT", StoreOptions(store.url))
    fails("redis://127.0.0.1:1/0' cannot be used", StoreOptions("redis://:pw@127.0.0.1:1/0"))
    fails("--history and --windows-store both give the past", history=[night])


def test_another_store_is_another_result(bundle: Bundle, tmp_path: Path) -> None:
    night = write(tmp_path, "night.parquet", LATEST)
    store = fill(bundle, tmp_path, PAST)
    first, _ = score_with(bundle, tmp_path / "out", night, store)
    again, _ = score_with(bundle, tmp_path / "out", night, store)
    assert first == again
    with pytest.raises(DataError, match=r"with --windows-store .*, and not without"):
        score(bundle, tmp_path / "out", [night])


def test_history_is_for_models_with_windows(bundle: Bundle, tmp_path: Path) -> None:
    manifest: dict[str, Any] = copy.deepcopy(dict(bundle.manifest))
    del manifest["config"]["data"]["windows"]
    plain = replace(bundle, manifest=manifest, manifest_file=None)
    path = write(tmp_path, "night.parquet", LATEST)
    with pytest.raises(ConfigError, match=r"--history is for models with data\.windows"):
        score(plain, tmp_path / "out", [path], [path])
    with pytest.raises(ConfigError, match=r"--windows-store is for models with data\.windows"):
        score_with(plain, tmp_path / "out", path, StoreOptions("sqlite:///nowhere.db"))


def test_files_of_features_are_deleted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    path = write(tmp_path, "night.parquet", LATEST)
    score(bundle, tmp_path / "out", [path])
    with pytest.raises(AnomalyVAEError):
        score(bundle, tmp_path / "out", [path], [str(tmp_path / "nowhere.parquet")])
    assert not list((tmp_path / "tmp").iterdir())


# ---------------------------------------------------------------- evaluation and generation


def test_labelled_rows_have_the_windows_of_their_history(bundle: Bundle, tmp_path: Path) -> None:
    whole, _, _ = score(bundle, tmp_path / "whole", [write(tmp_path, "whole.parquet", TABLE)])
    night, past = write(tmp_path, "night.parquet", LATEST), write(tmp_path, "past.csv", PAST)
    given = load_labelled(bundle, [night], "fraud", history=[past])
    assert given.batch is not None
    expected = [whole[name] for name in LATEST["id"].to_pylist()]
    assert bundle.scorer.score(given.batch).tolist() == expected


def test_rows_to_generate_from_have_windows(bundle: Bundle, tmp_path: Path) -> None:
    given = read_for_model(bundle, [write(tmp_path, "night.parquet", LATEST)])
    assert set(NAMES) <= set(given.table.column_names)
    assert expected_columns(bundle) == ("amount", "card", "shop", "at")


def test_an_estimator_reads_frames_with_windows_and_names_what_adds_them(
    bundle: Bundle, tmp_path: Path
) -> None:
    detector = TabularVAEDetector.load(bundle.save(tmp_path / "bundle"))
    with pytest.raises(DataError, match="add windows with anomaly_vae"):
        detector.predict(LATEST)
    added = add_windows(LATEST, WINDOWS, time="at", id="id", history=PAST)
    whole, _, _ = score(bundle, tmp_path / "whole", [write(tmp_path, "whole.parquet", TABLE)])
    expected = [whole[name] for name in LATEST["id"].to_pylist()]
    np.testing.assert_allclose(detector.anomaly_score(added), expected, rtol=1e-12)
