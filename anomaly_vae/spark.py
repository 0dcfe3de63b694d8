"""Prepare Spark data frames for `mlflow.pyfunc.spark_udf`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = ["model_input"]

NUMBERS = {"byte", "short", "integer", "long", "float", "double", "decimal", "boolean"}
"""Names of Spark's types that are cast to double, or to the text of a category."""
FRACTIONS = {"float", "double", "decimal"}
"""Names of Spark's types of numbers that need not be whole."""
MAX_WHOLE = 10**15
"""Limit below which a whole number is written without an exponent or fraction."""
UTC_CLOCK = "timestampadd(MICROSECOND, unix_micros({name}), TIMESTAMP_NTZ'1970-01-01 00:00:00')"
"""SQL expression of an instant's time in UTC, whatever the time zone of the session."""


def model_input(frame: DataFrame, signature: Any) -> Column:
    """Return the columns of a Spark data frame that a model reads, in the types of its signature.

    MLflow refuses whole numbers of 64 bits and truth values where a model reads numbers, and Spark
    hands over a ``TIMESTAMP`` as the clock of the session's time zone, where a model reads UTC.
    This function casts numbers and truth values to double, or to text where they are categories,
    and instants to their time in UTC. ``TIMESTAMP_NTZ``, text and binary columns stay as they are.
    Columns that the frame lacks are missing values.

    Args:
        frame: N rows; further columns are left out.
        signature: the model's `mlflow.models.ModelSignature`: ``metadata.signature`` of what
            `mlflow.pyfunc.spark_udf` returns.

    Returns:
        One struct column, the argument of the function that `spark_udf` returns.

    Example:
        >>> import mlflow  # doctest: +SKIP
        >>> detect = mlflow.pyfunc.spark_udf(  # doctest: +SKIP
        ...     spark,
        ...     "models:/payments@champion",
        ...     env_manager="local",
        ...     result_type="score double, p_value double, is_anomaly boolean",
        ... )
        >>> found = detect(model_input(frame, detect.metadata.signature))  # doctest: +SKIP
        >>> frame.withColumn("found", found).where("found.is_anomaly").count()  # doctest: +SKIP
        12
    """
    from pyspark.sql import functions as F

    types = {field.name: field.dataType.typeName() for field in frame.schema.fields}
    columns = {column.name: column.type.name for column in signature.inputs}
    return F.struct(
        *(
            _cast(name, types[name], kind).alias(name)
            for name, kind in columns.items()
            if name in types
        )
    )


def _cast(name: str, given: str, wanted: str) -> Any:
    """Return a column of Spark type ``given`` as a type that MLflow accepts for ``wanted``."""
    from pyspark.sql import functions as F

    quoted = "`" + name.replace("`", "``") + "`"
    column = F.col(quoted)
    match wanted:
        case "double" if given in NUMBERS:
            return column.cast("double")
        case "string" if given in FRACTIONS:
            return _number_text(column)
        case "string" if given in NUMBERS:
            return column.cast("string")
        case "datetime" if given == "timestamp":
            return F.expr(UTC_CLOCK.format(name=quoted))
        case "datetime" if given == "date":
            return column.cast("timestamp_ntz")
    return column


def _number_text(column: Any) -> Any:
    """Return numbers as the names of their categories: 3 for 3.0, null for NaN."""
    from pyspark.sql import functions as F

    double = column.cast("double")
    whole = (F.abs(double) < MAX_WHOLE) & (double == F.floor(double))
    text = F.when(whole, double.cast("long").cast("string")).otherwise(column.cast("string"))
    return F.when(~F.isnan(double), text)
