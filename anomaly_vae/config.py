"""What people write: frozen pydantic models, and one way from YAML and ``--set`` to them.

Unknown keys are refused with the nearest known name. A field left at None is chosen from the
data's size by `ModelConfig.resolve` and `TrainingConfig.resolve`; what was chosen is recorded
with the model.
"""

from __future__ import annotations

import datetime as dt
import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from anomaly_vae.calibration import Method
from anomaly_vae.columns import shown
from anomaly_vae.errors import ConfigError
from anomaly_vae.schema import MAX_LEVELS, MIN_COUNT, ColumnType

Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Interval = tuple[dt.datetime, dt.datetime]


def utc(moment: dt.datetime) -> dt.datetime:
    """The moment with a zone; one without is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Feature(Section):
    """How to read one column."""

    type: ColumnType
    """numeric, categorical, binary or datetime"""
    max_levels: int = Field(MAX_LEVELS, ge=2, le=4096)
    """categorical: keep this many frequent levels, pool the others"""
    min_count: int = Field(MIN_COUNT, ge=1)
    """categorical: pool levels seen less often in training"""


class Splits(Section):
    """Which rows train, stop, calibrate and test the model.

    Fractions of the rows (in time order where there is a time column), or half-open intervals
    of time ``[from, to)``. What no split claims is left out and counted.
    """

    train: Fraction | Interval | None = None
    """fraction or [from, to); absent: what the others leave"""
    validation: Fraction = 0.1
    """share of the training rows that the fit leaves out, to measure itself on"""
    calibration: Fraction | Interval = 0.2
    """fraction or [from, to)"""
    test: Fraction | Interval = 0.2
    """fraction or [from, to); the last rows where there is a time column"""
    gap_days: float = Field(0.0, ge=0)
    """with a time column: leave out this many days before the test split"""
    anomalies: float = Field(0.0, ge=0, lt=1)
    """without a time column: share of the known anomalies that help to choose a threshold"""
    seed: Seed = 0
    """of the random assignment, where there is one"""

    @property
    def by_interval(self) -> bool:
        """Whether the splits are given as intervals of time."""
        return isinstance(self.test, tuple)

    @model_validator(mode="after")
    def _one_kind(self) -> Splits:
        kinds = {type(s) for s in (self.train, self.calibration, self.test) if s is not None}
        if len(kinds) > 1 or (self.by_interval and self.train is None):
            raise ValueError(
                "give train, calibration and test all as fractions or all as [from, to]"
            )
        if not self.by_interval and self._claimed > 1 + 1e-9:
            raise ValueError(
                f"train, calibration and test add up to {self._claimed:g}, more than 1"
            )
        if not self.by_interval and self.train is None and self._claimed >= 1:
            raise ValueError("calibration and test leave nothing to train on")
        if self.by_interval:
            self._refuse_overlap()
        return self

    def _refuse_overlap(self) -> None:
        named = {"train": self.train, "calibration": self.calibration, "test": self.test}
        order = sorted(
            (utc(span[0]), utc(span[1]), name)
            for name, span in named.items()
            if isinstance(span, tuple)
        )
        for start, stop, name in order:
            if start >= stop:
                raise ValueError(f"{name} ends before it begins; write it as [from, to]")
        for (_, stop, earlier), (start, _, later) in itertools.pairwise(order):
            if start < stop:
                raise ValueError(f"{earlier} and {later} overlap; end one where the other begins")

    @property
    def _claimed(self) -> float:
        parts = (self.train or 0.0, self.calibration, self.test)
        return sum(part for part in parts if isinstance(part, float))


class DataConfig(Section):
    """What every kind of data says: where it is, what is known of it, how it is split."""

    path: str | tuple[str, ...]
    """files, folders or globs: CSV or Parquet; images, or a CSV manifest of them"""
    label: str | None = None
    """column that marks known anomalies; they never train"""
    positive: Annotated[int | float | str | bool, Field(union_mode="left_to_right")] = 1
    """the label value that means anomaly"""
    group: str | None = None
    """unit that no split may cut: customer, patient"""
    splits: Splits = Splits()
    """train, validation, calibration, test"""

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class TabularData(DataConfig):
    """Where the rows are and what their columns mean."""

    id: str | None = None
    """column that names a row in the output"""
    time: str | None = None
    """column that orders the rows; splits follow it"""
    features: tuple[str, ...] | dict[str, Feature] | None = None
    """columns to read, plain or with their types; absent: inferred"""
    ignore: tuple[str, ...] = ()
    """columns to leave out; names that are not there are tolerated"""

    @model_validator(mode="after")
    def _time_is_named(self) -> TabularData:
        if self.splits.gap_days and not self.time:
            raise ValueError("splits.gap_days needs a time column; name it in time")
        if self.splits.anomalies and self.time:
            raise ValueError("splits.anomalies is for rows in no order; splits follow time here")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Columns with a part other than feature."""
        return tuple(name for name in (self.label, self.id, self.group) if name)


class ImageData(DataConfig):
    """Where the images are and how they are read."""

    size: int = Field(64, ge=16, le=512)
    """side in pixels of the square that each image is cropped and resized to"""
    channels: Literal[1, 3] = 1
    """1 is grey, 3 is colour"""
    intensity: Literal["standardise", "unit"] = "standardise"
    """standardise: each image by its own mean and deviation; unit: as it is, on [0, 1]"""
    window: Literal["auto", "percentile"] | tuple[float, float] = "auto"
    """grey levels of DICOM and NIfTI: the file's window, percentiles, or [center, width]"""
    axis: Literal[0, 1, 2] = 2
    """NIfTI: the axis along which a volume is cut into slices"""
    max_pixels: int = Field(1 << 25, ge=1)
    """of one image; more are refused before they are decoded"""
    max_bytes: int = Field(1 << 28, ge=1)
    """of one file"""
    max_frames: int = Field(4096, ge=1)
    """images in one file; more are refused"""
    max_seconds: float = Field(120.0, gt=0)
    """for decoding one file; what is not done by then is refused"""

    @model_validator(mode="after")
    def _no_time(self) -> ImageData:
        if self.splits.by_interval or self.splits.gap_days:
            raise ValueError("images have no time column; give splits as fractions, without gap")
        return self

    @property
    def time(self) -> None:
        """Images come in no order."""

    @property
    def id(self) -> None:
        """An image is named by its path."""


class ModelConfig(Section):
    """The network and its likelihoods."""

    type: Literal["vae", "autoencoder"] = "vae"
    """autoencoder: the deterministic twin, without noise or rate"""
    members: int = Field(3, ge=1, le=64)
    """networks fitted side by side; scores are their mean, the guard's within limits"""
    latent_dim: int | None = Field(None, ge=1, le=4096)
    """absent: the encoded columns, 1 to 64"""
    hidden_dim: int | None = Field(None, ge=1, le=8192)
    """absent: twice the encoded columns as a power of two, 64 to 256"""
    depth: int = Field(2, ge=0, le=16)
    """hidden layers in encoder and decoder; 0 is linear"""
    likelihood: Literal["gaussian", "student_t"] = "gaussian"
    """of numeric columns"""
    variance_floor: float = Field(0.01, gt=0)
    """smallest variance of a standardised numeric column"""
    posterior_variance: Literal["shared", "row"] = "shared"
    """of q(z|x): one vector for all rows, or each row its own"""
    prior: Literal["aggregated", "standard"] = "aggregated"
    """of scores and samples: the aggregated posterior, or N(0, I) as in training"""
    components: int = Field(256, ge=1, le=65_536)
    """most parts of the aggregated posterior"""

    def resolve(self, n_columns: int) -> ModelConfig:
        """Fill what is absent from the number of encoded columns."""
        width = 2 ** math.ceil(math.log2(max(2 * n_columns, 2)))
        return self.model_copy(
            update={
                "latent_dim": self.latent_dim or min(max(n_columns, 1), 64),
                "hidden_dim": self.hidden_dim or min(max(width, 64), 256),
            }
        )


class FitConfig(Section):
    """How a model of any kind is fitted."""

    epochs: int | None = Field(None, ge=1)
    """upper bound; absent: about 600 steps, 3 to 300 epochs"""
    batch_size: int | None = Field(None, ge=1)
    """absent: a 32nd of the rows as a power of two, 32 to 512"""
    learning_rate: float = Field(4e-3, gt=0)
    """peak of the cosine schedule"""
    weight_decay: float = Field(1e-5, ge=0)
    """of AdamW"""
    clip_norm: float = Field(5.0, gt=0)
    """largest norm of the gradient"""
    beta: float = Field(1.0, ge=0)
    """weight of the KL term (Higgins et al. 2017)"""
    kl_warmup: float = Field(0.3, ge=0, le=1)
    """share of the steps over which beta rises from 0"""
    free_bits: float = Field(0.0, ge=0)
    """nats per latent dimension that cost nothing (Kingma et al. 2016)"""
    trim: float = Field(0.0, ge=0, le=0.5)
    """share of the rows, the worst fitting ones, that do not teach (Shen & Sanghavi 2019)"""
    keep: Literal["best", "last"] = "best"
    """weights of the best validation ELBO, or of the last epoch and no early stop"""
    patience: int = Field(20, ge=1)
    """keep best: epochs without a better validation ELBO before stopping"""
    seed: Seed = 0
    """of the initial weights, the order of the rows and the noise"""
    threads: int = Field(1, ge=1)
    """of the CPU while fitting; small networks are fastest with one"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of the networks while fitting; bfloat16 is faster on GPUs that have it"""
    resume: bool = True
    """continue from a checkpoint of the same data and configuration"""
    warm_start: str | None = None
    """folder or URI of a model whose weights the fit starts from, where they fit"""

    STEPS: ClassVar[int] = 600
    """Of a fit whose epochs are absent, at least, where 300 epochs are enough for that."""
    EPOCHS: ClassVar[int] = 0
    """Of such a fit, at least, where that takes no more than `MOST_STEPS`."""
    MOST_STEPS: ClassVar[int] = 6000

    def resolve(self, n_rows: int) -> Self:
        """Fill what is absent from the number of training rows."""
        batch = 2 ** round(math.log2(max(n_rows / 32, 1)))
        batch = self.batch_size or min(max(batch, 32), 512)
        per_epoch = max(1, math.ceil(n_rows / batch))
        wanted = max(self.STEPS / per_epoch, min(self.EPOCHS, self.MOST_STEPS / per_epoch))
        epochs = self.epochs or min(max(round(wanted), 3), 300)
        return self.model_copy(update={"batch_size": batch, "epochs": epochs})

    def trims(self, members: int) -> tuple[float, ...]:
        """The share of the rows that each of a model's members does not learn from."""
        return (self.trim,) * members


class TrainingConfig(FitConfig):
    """How a tabular model is fitted."""

    epochs: int | None = Field(None, ge=1)
    """upper bound; absent: 80, but at least 600 steps, at most 6,000, and 3 to 300 epochs"""
    learning_rate: float = Field(3e-3, gt=0)
    """peak of the cosine schedule"""
    beta: float = Field(0.3, ge=0)
    """weight of the KL term (Higgins et al. 2017)"""
    keep: Literal["best", "last"] = "last"
    """weights of the best validation ELBO, or of the last epoch and no early stop"""
    noise: float = Field(0.2, ge=0)
    """deviation of the noise on standardised numbers that the encoder has to see through"""
    hide: float = Field(0.02, ge=0, lt=1)
    """share of the cells treated as missing in each batch, so that missing ones are met"""
    guard: float = Field(0.1, ge=0, le=0.5)
    """what is trimmed of the last of several members: it is surprised by what the others learned"""

    EPOCHS: ClassVar[int] = 80

    def trims(self, members: int) -> tuple[float, ...]:
        """See `FitConfig.trims`; of several members the last is the guard."""
        guard = max(self.trim, self.guard) if members > 1 else self.trim
        return (*super().trims(members - 1), guard)


Probability = Annotated[float, Field(ge=0, le=1)]


class ImageModelConfig(Section):
    """The network of an image model and its likelihood."""

    type: Literal["vae", "autoencoder"] = "vae"
    """autoencoder: the deterministic twin, without noise or rate"""
    network: Literal["convolutional", "residual", "dense", "hierarchical"] = "hierarchical"
    """hierarchical: latents at three resolutions (Sønderby et al. 2016)"""
    latent_dim: int | None = Field(None, ge=1, le=4096)
    """absent: 16; hierarchical: channels of the coarsest level, absent: 8"""
    width: int = Field(16, ge=1, le=512)
    """channels of the finest convolutions, doubled with each halving of the side"""
    hidden_dim: int = Field(256, ge=1, le=8192)
    """units of the dense layers"""
    upsampling: Literal["shuffle", "transposed"] = "shuffle"
    """how decoders double the side: pixel shuffle or transposed convolution"""
    likelihood: Literal["gaussian", "laplace", "bernoulli", "structural", "contrast"] = "contrast"
    """structural: Gaussian on bands of local contrast; contrast: what is unexplained of it"""
    variance_floor: float = Field(1e-3, gt=0)
    """smallest variance that a Gaussian or a Laplace learns"""
    contamination: bool = False
    """a second network learns which pixels do not belong, from inserted corruption"""

    def resolve(self, n_columns: int) -> ImageModelConfig:
        """Fill what is absent; the size of the images decides nothing yet."""
        del n_columns
        usual = 8 if self.network == "hierarchical" else 16
        return self.model_copy(update={"latent_dim": self.latent_dim or usual})


class CorruptionConfig(Section):
    """What is done to an image that the model then has to see through."""

    type: Literal["none", "coarse", "pixel", "mask", "downsample"] = "coarse"
    """noise on a coarse grid, noise per pixel, squares hidden, or fewer pixels"""
    strength: float = Field(0.25, ge=0)
    """deviation of the noise, share of the side hidden, or of the resolution lost"""


class AugmentationConfig(Section):
    """Random changes that leave an image normal; whole batches at once."""

    flip: Probability = 0.0
    """of mirroring left to right"""
    rotation: Probability = 0.0
    """of turning by up to `degrees`"""
    degrees: float = Field(10.0, ge=0, le=180)
    """the largest turn to either side"""


class ImageTrainingConfig(FitConfig):
    """How an image model is fitted."""

    epochs: int | None = Field(None, ge=1)
    """upper bound; absent: about 600 steps, 3 to 300 epochs"""
    batch_size: int | None = Field(None, ge=2)
    """absent: a 32nd of the images as a power of two, 32 to 512; batch norm needs two"""
    kl_warmup: float = Field(0.2, ge=0, le=1)
    """share of the steps over which beta rises from 0"""
    keep: Literal["best", "last"] = "last"
    """weights of the best validation ELBO, or of the last epoch and no early stop"""

    corruption: CorruptionConfig = CorruptionConfig()
    """makes the model a denoiser, an inpainter or a super-resolver"""
    augmentation: AugmentationConfig = AugmentationConfig()
    """mirroring and turning"""


class ScoreConfig(Section):
    """What the anomaly score is."""

    type: Literal["neg_elbo", "reconstruction", "importance_weighted"] = "neg_elbo"
    """in nats, higher is more anomalous"""
    draws: int = Field(1, ge=1, le=1024)
    """frozen posterior draws, shared by all rows; 1 is the posterior mean"""
    seed: Seed = 0
    """of the draws"""

    unit: ClassVar[str] = "nats"
    """Of scores and their parts."""


class ImageScoreConfig(Section):
    """What the anomaly score of an image is."""

    type: Literal[
        "neg_elbo", "reconstruction", "importance_weighted", "structural", "contamination"
    ] = "neg_elbo"
    """higher is more anomalous; see docs/configuration.md"""
    standardise: bool | None = None
    """pixels by their mean and deviation on held-out normals; absent: all but contamination"""
    draws: int = Field(1, ge=1, le=1024)
    """frozen posterior draws, shared by all images; 1 is the posterior mean"""
    seed: Seed = 0
    """of the draws"""

    @property
    def standardised(self) -> bool:
        """Whether pixels are measured by what they are on held-out normals."""
        return self.type != "contamination" if self.standardise is None else self.standardise

    @property
    def unit(self) -> str:
        """Of scores and their parts: nats, or standard deviations on held-out normals."""
        return "sd" if self.standardised else "nats"


class CostConfig(Section):
    """What a decision costs, in any one currency."""

    missed: float = Field(1.0, gt=0)
    """of an anomaly that is not flagged; times its amount, where that is given"""
    amount: str | None = None
    """column with the amount of an anomaly; tables only"""
    review: float = Field(0.0, ge=0)
    """of each row that is flagged"""
    blocked: float = Field(0.0, ge=0)
    """of each normal row that is flagged, on top of its review"""


class CalibrationConfig(Section):
    """How the threshold is chosen."""

    method: Method = "conformal"
    """conformal: false positive rate at most alpha on exchangeable rows; see docs/thresholds.md"""
    alpha: Fraction = 0.01
    """share of normal rows that may be flagged"""
    delta: Fraction = 0.05
    """certified: how often, over calibration samples, the rate may be above alpha"""
    tail: Fraction = 0.1
    """evt: share of the calibration rows, the highest, that the tail is fitted to"""
    per_1000: float | None = Field(None, gt=0, lt=1000)
    """budget: alerts per 1,000 rows, at most"""
    per_day: float | None = Field(None, gt=0)
    """budget: alerts a day, at most, at the calibration rows' pace"""
    costs: CostConfig = CostConfig()
    """cost: what is weighed"""
    beta: float = Field(1.0, gt=0)
    """fbeta: how many times more recall counts than precision"""
    precision: Fraction = 0.5
    """recall_at_precision: share of the flagged rows that are anomalies, at least"""
    group: str | None = None
    """methods with alpha: column whose levels get thresholds of their own; tables only"""
    trim: float = Field(0.0, ge=0, lt=0.5)
    """methods with alpha: share of the calibration rows, the highest, that do not count"""
    density_ratio: str | None = None
    """conformal: column with how much denser traffic is than the calibration rows; tables only"""

    KEYS: ClassVar[dict[Method, tuple[str, ...]]] = {
        "conformal": ("alpha", "group", "trim", "density_ratio"),
        "certified": ("alpha", "delta", "group", "trim"),
        "evt": ("alpha", "tail", "group", "trim"),
        "quantile": ("alpha", "group", "trim"),
        "budget": ("per_1000", "per_day"),
        "cost": ("costs",),
        "fbeta": ("beta",),
        "recall_at_precision": ("precision",),
    }
    """Of each method."""
    BY_LABEL: ClassVar[tuple[Method, ...]] = ("cost", "fbeta", "recall_at_precision")
    """Methods that need known anomalies."""

    @property
    def promises_alpha(self) -> bool:
        """Whether alpha is wished for; else it is what the threshold comes to."""
        return "alpha" in self.KEYS[self.method]

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        """So that ``--set calibration.alpha=null`` takes back what a file says."""
        return (
            {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        )

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> CalibrationConfig:
        own = self.KEYS[self.method]
        for key, field in type(self).model_fields.items():
            if key not in {"method", *own} and getattr(self, key) != field.default:
                raise ValueError(
                    f"method {self.method} has no {key}, only {', '.join(own)}; leave it out "
                    f"(--set calibration.{key}=null)"
                )
        if self.method == "budget" and not (self.per_1000 or self.per_day):
            raise ValueError("method budget needs per_1000 or per_day")
        if self.method == "cost" and not (self.costs.review or self.costs.blocked):
            raise ValueError("method cost needs costs.review or costs.blocked, else all is flagged")
        if self.trim and self.density_ratio:
            raise ValueError("trim counts rows, density_ratio weighs them; leave one of them out")
        return self


class EvaluationConfig(Section):
    """What is told of the test split, beside its usual figures."""

    top: int = Field(100, ge=1)
    """rows, and cards of a day, that somebody can look into"""
    entity: str | None = None
    """column of what is looked into day by day, such as a card; absent: data.group"""
    slices: tuple[str, ...] = ()
    """more columns whose levels are compared; the model's own with levels are"""


class PromotionConfig(Section):
    """When a challenger may become champion; frozen in the registry at the first promotion."""

    metric: Literal["average_precision", "auroc"] = "average_precision"
    """compared on the frozen test split, where it has labels"""
    tolerance: float = Field(0.0, ge=0, lt=1)
    """how much worse than the champion's a challenger's metric may be"""
    proof: Literal["worse", "no_worse"] = "worse"
    """worse: refuse what is shown to be worse; no_worse: what is not shown to be no worse"""
    confidence: Fraction = 0.95
    """of every interval that a rule asks what chance explains"""
    slice_recall: Fraction | None = 0.1
    """most recall that a level of a categorical column may lose, beyond chance; null: any"""
    agreement: Fraction | None = None
    """least share of the rows on which both models flag alike; absent: any"""
    row_microseconds: float | None = Field(None, gt=0)
    """most CPU time that scoring a row alone may take; absent: any"""
    slowdown: float | None = Field(None, gt=0)
    """the same as a multiple of the champion's; absent: any"""
    megabytes: float | None = Field(None, gt=0)
    """largest bundle, in 10^6 bytes; absent: any"""


class MLflowConfig(Section):
    """Where runs and models are recorded; ``MLFLOW_TRACKING_URI`` wins over the file."""

    tracking_uri: str = "sqlite:///mlflow.db"
    """any MLflow tracking URI but a plain folder"""
    experiment: str | None = None
    """absent: the model's name"""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tabular": {
        "fast": {"model": {"members": 1, "depth": 1, "hidden_dim": 64, "components": 64}},
        "best": {"model": {"members": 8, "components": 512}},
    },
    "image": {
        "fast": {"model": {"width": 8, "hidden_dim": 128}, "training": {"epochs": 10}},
        "best": {"model": {"width": 32}, "training": {"patience": 40}},
    },
}


class BaseConfig(Section):
    """What the configuration of every detector has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    """of the registered model"""
    preset: Literal["fast", "default", "best"] = "default"
    """defaults of several keys at once"""
    description: str | None = None
    """what the model is for; its card says so"""
    calibration: CalibrationConfig = CalibrationConfig()
    """what to promise"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """what to tell of the test split"""
    promotion: PromotionConfig = PromotionConfig()
    """when to replace the champion"""
    mlflow: MLflowConfig = MLflowConfig()
    """where to record it"""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("score"), str):  # score: neg_elbo is short for score.type
            value = {**value, "score": {"type": value["score"]}}
        presets = PRESETS[cls.model_fields["kind"].default]
        return merged(presets.get(str(value.get("preset")), {}), value)

    @field_validator("name", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    def recorded(self) -> dict[str, Any]:
        """What belongs to the model: everything but paths, devices, servers and policies.

        Of a model that it starts from, the digest belongs to it, which a path does not tell.
        """
        exclude: Any = {
            "data": {"path"},
            "training": {"device", "resume", "warm_start"},
            "promotion": True,
            "mlflow": True,
        }
        return self.model_dump(mode="json", exclude=exclude)


class TabularConfig(BaseConfig):
    """The whole of a tabular detector's configuration."""

    kind: Literal["tabular"] = "tabular"
    """what the rows are"""
    data: TabularData
    """what to read"""
    model: ModelConfig = ModelConfig()
    """what to fit"""
    training: TrainingConfig = TrainingConfig()
    """how to fit it"""
    score: ScoreConfig = ScoreConfig()
    """what to score by"""

    @model_validator(mode="before")
    @classmethod
    def _weights_are_no_feature(cls, value: Any) -> Any:
        match value:
            case {"calibration": {"density_ratio": str(column)}, "data": dict(data)}:
                ignore = data.get("ignore", ())
                if isinstance(ignore, list | tuple) and column not in ignore:
                    return {**value, "data": {**data, "ignore": (*ignore, column)}}
        return value


class ImageConfig(BaseConfig):
    """The whole of an image detector's configuration."""

    kind: Literal["image"] = "image"
    """what is scored"""
    data: ImageData
    """what to read"""
    model: ImageModelConfig = ImageModelConfig()
    """what to fit"""
    training: ImageTrainingConfig = ImageTrainingConfig()
    """how to fit it"""
    score: ImageScoreConfig = ImageScoreConfig()
    """what to score by"""

    @model_validator(mode="after")
    def _score_fits_model(self) -> ImageConfig:
        if self.score.type == "contamination" and not self.model.contamination:
            raise ValueError("score contamination needs model.contamination: true")
        if self.model.network == "hierarchical" and self.score.draws > 1:
            raise ValueError("a hierarchical model is scored at its posterior mean: score.draws 1")
        return self

    @model_validator(mode="after")
    def _images_have_no_columns(self) -> ImageConfig:
        for key in ("group", "density_ratio"):
            if getattr(self.calibration, key):
                raise ValueError(
                    f"calibration.{key} names a column, and an image to be scored has none; leave "
                    "it out"
                )
        return self


Config = TabularConfig | ImageConfig
KINDS: dict[str, type[TabularConfig] | type[ImageConfig]] = {
    "tabular": TabularConfig,
    "image": ImageConfig,
}


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
        raise ConfigError(f"'{path}' is not YAML: {_yaml_reason(error)}") from None
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
        faults = _pertinent(content, error.errors(include_url=False))
        clauses = [_clause(config, key, alternatives) for key, alternatives in faults.items()]
        raise ConfigError("; ".join(clauses), key=next(iter(faults))) from None


def _kind(kind: Any) -> type[TabularConfig] | type[ImageConfig]:
    if not isinstance(kind, str) or kind not in KINDS:
        expected = " or ".join(map(repr, KINDS))
        raise ConfigError(f"kind: expected {expected}, got {shown(kind)}", key="kind")
    return KINDS[kind]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid upon ``base``, section by section."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = (
            merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return out


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
        raise ConfigError(f"--set '{override}': {_yaml_reason(error)}", key=key) from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


EXPECTED = {
    "float_": "a number",
    "finite_": "a finite number",
    "int_": "a whole number",
    "string_type": "text",
    "bool_": "true or false",
    "tuple_": "a list",
    "dict_": "keys and values",
    "model_": "keys and values",
    "datetime_": "a date or time",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', 100 at most",
    "invalid_key": "text as a key, in quotes if need be",
}
"""What the user is told, by how pydantic's name of the fault begins."""
MISMATCHES = ("_type", "_parsing", "_from_float")
"""How pydantic's names end where one alternative of several is not the one that was meant."""


def _pertinent(content: Any, faults: Sequence[Any]) -> dict[str, list[Any]]:
    """Faults by the user's key.

    Where a key has alternatives, pydantic reports the faults of each; those of the alternative
    that comes closest are kept.
    """
    by_key: dict[str, list[Any]] = {}
    for fault in faults:
        by_key.setdefault(_written(content, fault), []).append(fault)
    for key, alternatives in list(by_key.items()):
        if key and any(other.startswith(f"{key}.") for other in by_key):
            del by_key[key]
            continue
        close = [fault for fault in alternatives if not fault["type"].endswith(MISMATCHES)]
        by_key[key] = close[:1] or alternatives
    return by_key


def _written(content: Any, fault: Any) -> str:
    """The key as the user writes it: a fault's location without the names of alternatives."""
    parts = []
    for part in fault["loc"]:
        inside = isinstance(content, Mapping) and part in content
        if inside or (isinstance(content, list | tuple) and part in range(len(content))):
            content = content[part]
            parts.append(str(part))
    if fault["type"] == "missing":
        parts.append(str(fault["loc"][-1]))
    return ".".join(parts)


def _clause(root: type[Section], key: str, alternatives: Sequence[Any]) -> str:
    fault = alternatives[0]
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(fault["loc"][-1]), _siblings(root, fault["loc"]), n=1)
        return f"unknown key {key}" + (f", did you mean {near[0]}" if near else "")
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "value_error":
        message = str(fault["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    expected = " or ".join(dict.fromkeys(map(_expected, alternatives)))
    got = "nothing" if fault["input"] is None else shown(fault["input"])
    near = difflib.get_close_matches(str(fault["input"]), re.findall(r"'(\w+)'", expected), n=1)
    return f"{key or 'the configuration'}: expected {expected}, got {got}" + (
        f", did you mean {near[0]}" if near else ""
    )


def _expected(fault: Any) -> str:
    for start, text in EXPECTED.items():
        if fault["type"].startswith(start):
            return text.format_map(fault.get("ctx", {}))
    return str(fault["msg"])


def _siblings(root: type[Section], loc: tuple[int | str, ...]) -> list[str]:
    section = root
    for part in loc[:-1]:
        info = section.model_fields.get(str(part))
        if info is None or not isinstance(info.annotation, type):
            return list(Feature.model_fields)
        section = info.annotation
    return list(section.model_fields)


def _yaml_reason(error: Exception) -> str:
    return " ".join(str(error).split())
