"""Training keys that are not given follow from the number of rows."""

from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.config.training import ImageTrainingConfig, TrainingConfig


@given(st.integers(1, 5_000_000))
def test_absent_training_keys_are_chosen_within_their_bounds(n_rows: int) -> None:
    training = TrainingConfig().resolve(n_rows)
    assert training.batch_size is not None
    assert training.epochs is not None
    assert 32 <= training.batch_size <= 512
    assert 3 <= training.epochs <= 300


def test_given_training_keys_are_not_chosen() -> None:
    training = TrainingConfig(epochs=2, batch_size=7).resolve(100_000)
    assert (training.epochs, training.batch_size) == (2, 7)


@given(st.integers(1, 5_000_000))
def test_absent_training_keys_of_images_are_chosen_within_their_bounds(n_images: int) -> None:
    training = ImageTrainingConfig().resolve(n_images)
    assert training.batch_size is not None
    assert training.epochs is not None
    assert 32 <= training.batch_size <= 512
    assert 3 <= training.epochs <= 300
