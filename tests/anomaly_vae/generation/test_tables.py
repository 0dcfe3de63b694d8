"""What a model of tables imagines: in the data's units, repeatable, repairing what is broken."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import Categorical
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import TEST
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.generation import tables as generation
from pipelines.datasets.dataset import Dataset
from tests.support.merchants import merchant_bundle, payments


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> RawBatch:
    """Forty rows that trained nothing, with a gap."""
    return with_cell(dataset.part(TEST).take(np.arange(40)), 3, "TX_AMOUNT", np.nan)


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> pa.Table:
    """The same rows as they came, without the gap."""
    return dataset.test_table.slice(0, 40)


def with_cell(batch: RawBatch, row: int, name: str, value: float) -> RawBatch:
    column = np.array(batch.values[name])
    column[row] = value
    return RawBatch({**batch.values, name: column}, len(batch))


def assert_close(one: pa.Table, other: pa.Table) -> None:
    """Equal, numbers to float32 arithmetic over batches of other sizes."""
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas(), rtol=1e-4, atol=1e-5)


def names_of(bundle: Bundle) -> list[str]:
    """Columns of a generated table: the schema's, a time as its cycles."""
    parts = bundle.scorer.encoding.parts
    return [part.label for name in bundle.scorer.schema.names for part in parts.get(name, ())]


# ---------------------------------------------------------------- tables


def test_samples_have_the_datas_columns_types_and_range(bundle: Bundle, table: pa.Table) -> None:
    samples = generation.sample(bundle, 200, seed=0)
    assert samples.column_names == names_of(bundle)
    assert samples.schema.field("TX_AMOUNT").type == pa.float64()
    assert set(samples["TX_DURING_NIGHT"].to_pylist()) <= {0, 1}
    seen = set(bundle.manifest["encoding"][-1]["levels"]) | {"(other)"}
    assert set(samples["TX_CHANNEL"].to_pylist()) <= seen
    amounts = np.median(samples["TX_AMOUNT"]), np.median(table["TX_AMOUNT"])
    assert 0.3 < amounts[0] / amounts[1] < 3


def test_samples_repeat_by_seed(bundle: Bundle) -> None:
    first = generation.sample(bundle, 5, seed=1)
    assert first.equals(generation.sample(bundle, 5, seed=1))
    assert not first.equals(generation.sample(bundle, 5, seed=2))


@pytest.mark.parametrize("make", [generation.sample, generation.reconstruct])
def test_the_model_reads_what_it_generates(bundle: Bundle, rows: RawBatch, make: object) -> None:
    """All but the times come back as they were encoded; "(other)" is read as unseen."""
    made = (
        generation.sample(bundle, 50)
        if make is generation.sample
        else generation.reconstruct(bundle, rows)
    )
    again = bundle.scorer.schema.from_arrow(made)
    assert not again.problems
    x = bundle.scorer.encoding.encode(again)
    assert np.isfinite(bundle.scorer.score_encoded(x)).all()
    timeless = [c.type != "cyclic" for c in bundle.scorer.encoding.columns for _ in range(c.width)]
    assert not np.isnan(x[:, timeless]).any()


def test_a_reconstruction_is_what_the_graph_expects(calibrated: Bundle, rows: RawBatch) -> None:
    """The graph gives the probability of a one, a table the likelier of the two."""
    table, scorer = generation.reconstruct(calibrated, rows), calibrated.scorer
    expected = scorer.encoding.decode(scorer.explain(rows).expected)
    labels = [column.label for column in scorer.encoding.columns]
    for name, values in zip(labels, expected, strict=True):
        for value, truth in zip(table.column(name).to_pylist(), values, strict=True):
            if isinstance(truth, str):
                assert value == truth
            elif name.startswith("TX_DURING"):
                assert value == (truth >= 0.5)
            else:
                assert value == pytest.approx(truth, rel=1e-3, abs=1e-3)


def test_no_row_gives_no_row(bundle: Bundle, rows: RawBatch) -> None:
    none = rows.take(np.arange(0))
    for make in (generation.reconstruct, generation.denoise, generation.latent):
        assert len(make(bundle, none)) == 0


# ---------------------------------------------------------------- paths through latent space


def test_a_path_begins_and_ends_at_the_rows(bundle: Bundle, rows: RawBatch) -> None:
    path = generation.interpolate(bundle, rows, steps=5)
    assert path["step"].to_pylist() == [0, 0.25, 0.5, 0.75, 1]
    ends = generation.reconstruct(bundle, rows).take([0, 1])
    assert path.drop(["step"]).take([0, 4])["TX_CHANNEL"].equals(ends["TX_CHANNEL"])
    np.testing.assert_allclose(path["TX_AMOUNT"].to_numpy()[[0, 4]], ends["TX_AMOUNT"], rtol=1e-4)


def test_a_path_may_lead_to_a_row_of_another_batch(bundle: Bundle, rows: RawBatch) -> None:
    first, second = rows.take(np.array([0])), rows.take(np.array([1]))
    path = generation.interpolate(bundle, first, second)
    assert_close(path, generation.interpolate(bundle, rows))
    with pytest.raises(DataError, match="two rows"):
        generation.interpolate(bundle, first)
    with pytest.raises(ConfigError, match="at least 2 steps"):
        generation.interpolate(bundle, rows, steps=1)


def test_a_spherical_path_leaves_the_straight_one_between_its_ends(
    bundle: Bundle, rows: RawBatch
) -> None:
    straight = generation.interpolate(bundle, rows, steps=5)
    turning = generation.interpolate(bundle, rows, steps=5, shape="spherical")
    assert_close(straight.take([0, 4]), turning.take([0, 4]))
    assert not np.allclose(straight["TX_AMOUNT"], turning["TX_AMOUNT"])


def test_a_traversal_moves_one_dimension_at_a_time(bundle: Bundle, rows: RawBatch) -> None:
    table = generation.traverse(bundle, rows, dims=[1, 0], span=2.0, steps=3)
    assert table["dim"].to_pylist() == [1, 1, 1, 0, 0, 0]
    assert table["z"].to_pylist() == [-2, 0, 2, -2, 0, 2]
    z = generation.latent_means(bundle, rows)[:1].repeat(6, 1)
    z[:3, 1], z[3:, 0] = torch.tensor([-2.0, 0, 2]), torch.tensor([-2.0, 0, 2])
    assert_close(table.drop(["dim", "z"]), generation.decode(bundle, z))


def test_a_traversal_without_a_row_starts_from_the_prior_mean(bundle: Bundle) -> None:
    latent_dim = bundle.manifest["config"]["model"]["latent_dim"]
    table = generation.traverse(bundle, steps=3)
    assert len(table) == 3 * latent_dim
    origin = generation.decode(bundle, np.zeros((1, latent_dim)))
    assert_close(table.slice(1, 1).drop(["dim", "z"]), origin)


@pytest.mark.parametrize(
    "wrong", [{"dims": [99]}, {"dims": [-1]}, {"dims": []}, {"span": 0.0}, {"steps": 0}]
)
def test_a_traversal_to_nowhere_is_refused(bundle: Bundle, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"latent dimension|a traversal needs"):
        generation.traverse(bundle, **wrong)


@pytest.mark.parametrize("z", [np.zeros((2, 1)), np.zeros(3), np.full((1, 9), np.inf)])
def test_latents_that_cannot_be_decoded_are_refused(bundle: Bundle, z: np.ndarray) -> None:
    with pytest.raises(DataError, match="latents"):
        generation.decode(bundle, z)


def test_no_sample_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        generation.sample(bundle, 0)


# ---------------------------------------------------------------- denoising


def test_denoising_leaves_alone_what_is_fine(
    bundle: Bundle, rows: RawBatch, table: pa.Table
) -> None:
    """With a gain that no replacement reaches, only gaps are filled."""
    repaired = generation.denoise(bundle, rows, gain=np.inf)
    assert repaired.column_names == list(bundle.scorer.schema.names)
    for name in repaired.column_names:
        assert repaired[name].null_count == 0
        values = rows.values[name]
        gaps = values.codes < 0 if isinstance(values, Levels) else np.isnan(values)
        same = np.array(repaired[name].to_pylist()) == np.array(table[name].to_pylist())
        np.testing.assert_array_equal(same, ~gaps, err_msg=name)


def test_a_gap_is_filled_with_the_reconstruction(bundle: Bundle, rows: RawBatch) -> None:
    filled = generation.denoise(bundle, rows, gain=np.inf)["TX_AMOUNT"][3].as_py()
    assert filled == pytest.approx(generation.reconstruct(bundle, rows)["TX_AMOUNT"][3].as_py())


def test_a_corrupted_cell_is_replaced_and_its_row_kept(bundle: Bundle, rows: RawBatch) -> None:
    name, row = "CUSTOMER_ID_NB_TX_7DAY_WINDOW", 5
    broken = generation.denoise(bundle, with_cell(rows, row, name, 1e6)).slice(row, 1)
    truth = rows.values[name][row]
    spread = np.std(rows.values[name])
    assert abs(broken[name][0].as_py() - truth) < 4 * spread
    whole = generation.denoise(bundle, rows).slice(row, 1)
    others = [n for n in broken.column_names if n != name]
    assert broken.select(others).equals(whole.select(others))


def test_repairing_makes_rows_more_probable_and_never_leaves_a_gap(
    bundle: Bundle, rows: RawBatch
) -> None:
    damaged = with_cell(with_cell(rows, 0, "TX_AMOUNT", 1e5), 1, "TX_AMOUNT", -1e5)
    before = bundle.scorer.score(damaged)
    repaired = bundle.scorer.schema.from_arrow(generation.denoise(bundle, damaged))
    after = bundle.scorer.score(repaired)
    assert (after[:2] < before[:2] - generation.GAIN).all()
    assert not np.isnan(bundle.scorer.encoding.encode(repaired)).any()


def test_a_row_is_repaired_by_itself(bundle: Bundle, rows: RawBatch) -> None:
    """Alone or among others, in one chunk or many."""
    damaged = with_cell(rows, 0, "TX_AMOUNT", 1e5)
    whole = generation.denoise(bundle, damaged)
    for row in (0, 3, 7):
        alone = generation.denoise(bundle, damaged.take(np.array([row])))
        assert_close(alone, whole.slice(row, 1))


def test_an_unseen_level_can_be_repaired(bundle: Bundle) -> None:
    """Encoded rows go through the same repair, whatever they came from."""
    columns = bundle.scorer.encoding.columns
    assert isinstance(columns[-1], Categorical)
    x = generation.sample_encoded(bundle, 50, seed=3)
    x[:, -1] = 0
    repaired = generation.denoise(bundle, x, gain=0.1)["TX_CHANNEL"].to_pylist()
    assert sum(level in columns[-1].levels for level in repaired) > 25


def test_sampled_and_reconstructed_merchants_are_levels_or_bands_and_are_read_back() -> None:
    bundle = merchant_bundle()
    column = bundle.scorer.encoding.columns[-1]
    assert isinstance(column, Categorical)
    rows = bundle.scorer.schema.from_arrow(payments(50, seed=2))
    for table in (
        generation.sample(bundle, 200, seed=0),
        generation.reconstruct(bundle, rows),
        generation.decode(bundle, np.zeros((3, 2), np.float32)),
    ):
        assert set(table["merchant"].to_pylist()) <= set(column.names)
        again = bundle.scorer.encoding.encode(bundle.scorer.schema.from_arrow(table))
        assert column.decode(again[:, -1:]) == table["merchant"].to_pylist()
    repaired = generation.denoise(bundle, rows)
    assert repaired["merchant"].null_count == 0
