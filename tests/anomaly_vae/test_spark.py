"""Spark scores as `predict` does, row for row, whatever types and time zones its columns have."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.lifecycle.registry import CHAMPION, Registry
from anomaly_vae.spark import model_input
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.datasets.images.dataset import ImageDataset
from pipelines.datasets.loading import load_dataset
from tests.support.paths import ROOT
from tests.support.registries import changed, migrated, use_registry

__all__ = ["migrated"]

pytestmark = [
    pytest.mark.slow,
    # PySpark 4.3 is written for pandas 2, and its gateway leaves sockets to the end of the process
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RESULT = "score double, p_value double, is_anomaly boolean"
FEATURES = {
    "TX_DATETIME": {"type": "datetime"},
    "TX_AMOUNT": {"type": "numeric"},
    "CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW": {"type": "numeric"},
    "TERMINAL_ID_NB_TX_7DAY_WINDOW": {"type": "numeric"},
    "TX_DURING_WEEKEND": {"type": "binary"},
    "TX_DURING_NIGHT": {"type": "categorical"},
    "CUSTOMER_ID_NB_TX_1DAY_WINDOW": {"type": "categorical"},
    "TX_CHANNEL": {"type": "categorical"},
}
ZONES = ("UTC", "America/New_York", "Asia/Kolkata")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """A local Spark whose Python workers import this checkout."""
    sql = pytest.importorskip("pyspark.sql", reason="needs PySpark and Java: run make test-spark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", str(ROOT))
        session = (
            sql.SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.memory", "1g")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", "200")
            .getOrCreate()
        )
        yield session
        session.stop()


@pytest.fixture(scope="module")
def registry(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        use_registry(migrated, folder, patch)
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        yield Registry()


def register(registry: Registry, bundle: Bundle, name: str) -> str:
    with registry.run(name, "calibrate", {}) as run:
        version = registry.register(run, bundle, name, {})
    registry.set_champion(name, version.version)
    return f"models:/{name}@{CHAMPION}"


@pytest.fixture(scope="module")
def uri(registry: Registry, config: Config) -> str:
    """A tiny model of every type of column, two of whose categories are numbers."""
    config = changed(config, name="typed", data__features=FEATURES)
    data = load_dataset(config.data)
    parts = data.part(TRAIN), data.part(VALIDATION)
    bundle = fit_bundle(config, prepare(config, data.schema, *parts), data.summary()).bundle
    scores = bundle.scorer.score(data.part(CALIBRATION))
    return register(registry, bundle.calibrated(calibrate(scores, alpha=0.05), None), "typed")


@pytest.fixture(scope="module")
def truth(uri: str, rows: pd.DataFrame) -> pd.DataFrame:
    """What `predict` returns for the rows, in the types that MLflow accepts."""
    night, count = (
        rows[name].map(lambda value: None if pd.isna(value) else str(int(value)))
        for name in ("TX_DURING_NIGHT", "CUSTOMER_ID_NB_TX_1DAY_WINDOW")
    )
    frame = rows.assign(TX_DURING_NIGHT=night, CUSTOMER_ID_NB_TX_1DAY_WINDOW=count)
    return mlflow.pyfunc.load_model(uri).predict(frame)


@pytest.fixture(scope="module")
def rows(transactions: Path) -> pd.DataFrame:
    """400 transactions across the start of summer time, with nulls and an unseen channel."""
    frame = pq.read_table(transactions, columns=list(FEATURES)).to_pandas()[300:700]
    frame = frame.reset_index(drop=True)
    for name in FEATURES:
        if name not in {"TX_DATETIME", "TX_CHANNEL"}:
            frame[name] = frame[name].astype("float64")
    frame["TX_AMOUNT"] = frame["TX_AMOUNT"].round(2)
    frame["CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW"] = frame[
        "CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW"
    ].astype("float32")
    frame.loc[3, "TX_CHANNEL"] = "carrier_pigeon"
    for row, name in enumerate(FEATURES):
        frame.loc[10 + row, name] = None
    return frame


def plain(value: Any) -> Any:
    return None if pd.isna(value) else value


def spark_rows(rows: pd.DataFrame, **convert: Any) -> list[tuple[Any, ...]]:
    """Return rows as Python values for Spark, converted by column, with their numbers."""
    columns = [
        [None if pd.isna(value) else convert.get(name, plain)(value) for value in rows[name]]
        for name in FEATURES
    ]
    return list(zip(range(len(rows)), *columns, strict=True))


def schema(**types: str) -> str:
    return "row int, " + ", ".join(f"{name} {types[name]}" for name in FEATURES)


TYPES = {
    "TX_DATETIME": "timestamp",
    "TX_AMOUNT": "decimal(12, 2)",
    "CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW": "float",
    "TERMINAL_ID_NB_TX_7DAY_WINDOW": "bigint",
    "TX_DURING_WEEKEND": "boolean",
    "TX_DURING_NIGHT": "double",
    "CUSTOMER_ID_NB_TX_1DAY_WINDOW": "bigint",
    "TX_CHANNEL": "string",
}
CONVERT = {
    "TX_DATETIME": lambda value: value.tz_localize("UTC").to_pydatetime(),
    "TX_AMOUNT": lambda value: Decimal(f"{value:.2f}"),
    "TERMINAL_ID_NB_TX_7DAY_WINDOW": int,
    "TX_DURING_WEEKEND": bool,
    "CUSTOMER_ID_NB_TX_1DAY_WINDOW": int,
}


def scored(spark: Any, uri: str, frame: Any) -> pd.DataFrame:
    """Score a Spark data frame and return the results in the order of its rows."""
    detect = mlflow.pyfunc.spark_udf(spark, uri, env_manager="local", result_type=RESULT)
    found = frame.withColumn("found", detect(model_input(frame, detect.metadata.signature)))
    return found.select("row", "found.*").toPandas().sort_values("row", ignore_index=True)


def check_equal(answer: pd.DataFrame, truth: pd.DataFrame) -> None:
    """Compare row for row; batches of other sizes round float32 differently."""
    np.testing.assert_allclose(answer["score"], truth["score"], rtol=1e-6)
    np.testing.assert_array_equal(answer["p_value"], truth["p_value"])
    np.testing.assert_array_equal(answer["is_anomaly"], truth["is_anomaly"])


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("kind", ["timestamp", "timestamp_ntz"])
def test_spark_scores_as_predict_does_in_every_time_zone(
    spark: Any, uri: str, rows: pd.DataFrame, truth: pd.DataFrame, zone: str, kind: str
) -> None:
    spark.conf.set("spark.sql.session.timeZone", zone)
    convert = (
        CONVERT if kind == "timestamp" else {**CONVERT, "TX_DATETIME": pd.Timestamp.to_pydatetime}
    )
    frame = spark.createDataFrame(
        spark_rows(rows, **convert), schema(**{**TYPES, "TX_DATETIME": kind})
    )
    assert truth["is_anomaly"].any()
    check_equal(scored(spark, uri, frame), truth)


@pytest.mark.parametrize(
    "types",
    [
        {"TX_AMOUNT": "double", "TERMINAL_ID_NB_TX_7DAY_WINDOW": "int"},
        {"TX_AMOUNT": "float", "TERMINAL_ID_NB_TX_7DAY_WINDOW": "smallint"},
        {"TX_DURING_WEEKEND": "bigint", "TX_DURING_NIGHT": "int"},
        {"TX_DURING_WEEKEND": "decimal(3, 1)", "TX_DURING_NIGHT": "decimal(3, 1)"},
        {"TX_DURING_NIGHT": "string", "CUSTOMER_ID_NB_TX_1DAY_WINDOW": "float"},
        {"CUSTOMER_ID_NB_TX_1DAY_WINDOW": "tinyint"},
    ],
    ids=lambda types: ", ".join(types.values()),
)
def test_every_type_of_number_means_the_same(
    spark: Any, uri: str, rows: pd.DataFrame, truth: pd.DataFrame, types: dict[str, str]
) -> None:
    from pyspark.sql import functions as F

    frame = spark.createDataFrame(spark_rows(rows, **CONVERT), schema(**TYPES))
    for name, kind in types.items():
        frame = frame.withColumn(name, F.col(name).cast(kind))
    answer = scored(spark, uri, frame)
    if types.get("TX_AMOUNT") == "float":  # rounds the amounts
        np.testing.assert_allclose(answer["score"], truth["score"], rtol=1e-4)
    else:
        check_equal(answer, truth)


def test_without_nulls_numbers_are_cast_too(
    spark: Any, uri: str, rows: pd.DataFrame, truth: pd.DataFrame
) -> None:
    """Without nulls Spark hands over integers and truth values, with nulls floats and objects."""
    full = rows.notna().all(axis=1)
    frame = spark.createDataFrame(spark_rows(rows[full], **CONVERT), schema(**TYPES))
    check_equal(scored(spark, uri, frame), truth[full])


def test_absent_and_further_columns_and_nan(spark: Any, uri: str, rows: pd.DataFrame) -> None:
    from pyspark.sql import functions as F

    few = rows[["TX_AMOUNT", "TX_CHANNEL"]]
    truth = mlflow.pyfunc.load_model(uri).predict(few)
    frame = spark.createDataFrame(spark_rows(rows, **CONVERT), schema(**TYPES))
    frame = frame.select("row", "TX_AMOUNT", "TX_CHANNEL", F.lit("x").alias("extra"))
    check_equal(scored(spark, uri, frame), truth)
    nan = frame.withColumn("TX_DURING_NIGHT", F.lit(float("nan")))
    check_equal(scored(spark, uri, nan), truth)


def test_the_example_of_the_documents_flags_as_predict_does(
    spark: Any, uri: str, rows: pd.DataFrame, truth: pd.DataFrame
) -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (example,) = [text for text in examples if "spark_udf" in text]
    frame = spark.createDataFrame(spark_rows(rows, **CONVERT), schema(**TYPES))
    names: dict[str, Any] = {"spark": spark, "frame": frame}
    exec(example.replace("models:/payments@champion", uri), names)
    flagged = [row.row for row in names["flagged"].collect()]
    assert sorted(flagged) == list(np.flatnonzero(truth["is_anomaly"]))


@pytest.fixture(scope="module")
def image_uri(registry: Registry, image_calibrated: Bundle) -> str:
    return register(registry, image_calibrated, "scans")


def test_images_are_scored_by_path_and_by_content(
    spark: Any, image_uri: str, image_dataset: ImageDataset, manifest: Path
) -> None:
    from pyspark.sql import functions as F

    paths = sorted(str(path) for path in manifest.parent.rglob("*.png"))[:12]
    truth = mlflow.pyfunc.load_model(image_uri).predict(pd.DataFrame({"image": paths}))
    frame = spark.createDataFrame(list(enumerate(paths)), "row int, image string")
    check_equal(scored(spark, image_uri, frame), truth)
    files = spark.read.format("binaryFile").load(paths)
    files = files.select(F.expr("substring(path, 6)").alias("image_path"), "content")
    content = frame.join(files, F.col("image") == F.regexp_replace("image_path", "^/+", "/"))
    check_equal(
        scored(spark, image_uri, content.select("row", F.col("content").alias("image"))), truth
    )
