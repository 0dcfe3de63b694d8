"""Fitting: it learns what can be known, repeats bit by bit, resumes, stops and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import linalg, stats

from anomaly_vae.config.model import ImageModelConfig, ModelConfig
from anomaly_vae.config.training import (
    AugmentationConfig,
    CorruptionConfig,
    ImageTrainingConfig,
    TrainingConfig,
)
from anomaly_vae.data.encoding import Layout
from anomaly_vae.errors import TrainingError
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.builder import build
from anomaly_vae.models.vae import VAE
from anomaly_vae.training import trainer
from anomaly_vae.training.augmentation import DistortedImages, Identity, NoisyCells, View
from anomaly_vae.training.gradients import Batch
from anomaly_vae.training.trainer import (
    Epoch,
    History,
    State,
    _Trainer,
    batches,
    fit,
    flatten_weights,
)

Rows = NDArray[np.float32]
LAYOUT = Layout(4, 0, ())


def toy(n: int = 256, seed: int = 0) -> Rows:
    """Four columns that one hidden number explains."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1)) * np.array([1, -1, 0.5, 2]) + 0.2 * rng.normal(size=(n, 4))
    return x.astype(np.float32)


def config(**changes: Any) -> TrainingConfig:
    usual = {"epochs": 6, "batch_size": 64, "beta": 1.0, "noise": 0.0, "keep": "best"}
    return TrainingConfig.model_validate({**usual, "learning_rate": 4e-3, **changes})


def model(seed: int = 0, **changes: Any) -> VAE:
    small = {"latent_dim": 2, "hidden_dim": 8, "depth": 1, "members": 1, **changes}
    return build(ModelConfig.model_validate(small), LAYOUT, seed)


def weights(fitted: VAE) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in fitted.state_dict().items()}


def a_trainer(n: int = 256, **changes: Any) -> _Trainer:
    return _Trainer(model(), toy(n), toy(64, 1), config(**changes).resolve(n))


# ---------------------------------------------------------------- it learns


def test_the_elbo_improves_on_data_that_can_be_learned() -> None:
    history = fit(model(), toy(), toy(64, 1), config(epochs=40))
    assert history.best.validation_elbo > history.epochs[0].validation_elbo + 2
    assert history.epochs[-1].train_log_prob > history.epochs[0].train_log_prob + 2


@pytest.mark.parametrize("latent", [2, 3])
def test_a_linear_vae_finds_the_principal_subspace_and_nearly_the_true_likelihood(
    latent: int,
) -> None:
    """Probabilistic PCA (Tipping & Bishop 1999): the decoder spans the leading eigenvectors, and
    since a diagonal posterior can be exact, the held-out ELBO comes close to log p(x) itself. A
    third latent dimension finds nothing more, and costs nothing."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    W, mean = basis[:, :2] * np.array([2.0, 1.2]), rng.normal(size=6)
    covariance = W @ W.T + 0.3 * np.eye(6)
    law = stats.multivariate_normal(mean, covariance, seed=rng)
    train, held_out = (law.rvs(n).astype(np.float32) for n in (2_000, 1_000))
    textbook = ModelConfig(depth=0, latent_dim=latent, members=1, posterior_variance="row")
    linear = build(textbook, Layout(6, 0, ()))
    fit(linear, train, held_out, config(epochs=80, batch_size=128, learning_rate=0.02, hide=0.0))
    decoder = linear.decoder.network.skip.weight.detach().numpy()[:6]
    leading, _, _ = np.linalg.svd(decoder)
    assert np.rad2deg(linalg.subspace_angles(leading[:, :2], W)).max() < 8
    noise = torch.randn(1_000, 64, latent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = torch.from_numpy(held_out)
        elbo = linear.elbo(x, noise).bound.mean().item()
        tighter = linear.importance_weighted(x, noise).bound.mean().item()
    truth = law.logpdf(held_out).mean()
    assert elbo < tighter < truth + 0.01
    assert elbo == pytest.approx(truth, abs=0.08)


def test_a_fit_learns_to_do_without_hidden_cells() -> None:
    """With cells hidden in training, a missing value is guessed from the other columns."""
    x = toy(512)
    x[::3, 0] = np.nan
    fitted = model()
    fit(fitted, x, toy(64, 1), config(epochs=60, hide=0.2, learning_rate=0.01))
    held_out = toy(200, 2)
    hidden = held_out.copy()
    hidden[:, 3] = np.nan
    with torch.no_grad():
        code, _ = fitted.posterior(torch.from_numpy(hidden))
        guess = fitted.decode(code).mean[:, 3].numpy()
    assert np.corrcoef(guess, held_out[:, 3])[0, 1] > 0.9


def test_rows_that_are_trimmed_do_not_teach() -> None:
    """One row in ten lies far off the line; without them the fit is that of the others."""
    clean, dirty = toy(512), toy(512)
    dirty[::10] = [5, 5, -5, -5]
    odd = dirty[:1]

    def surprise(x: Rows, **changes: Any) -> float:
        made = model()
        fit(made, x, toy(64, 1), config(epochs=40, **changes))
        with torch.no_grad():
            return -made.elbo(torch.from_numpy(odd), torch.zeros(1, 2)).bound.item()

    plain, trimmed = surprise(dirty), surprise(dirty, trim=0.2)
    assert plain < 0.1 * surprise(clean)
    assert trimmed > 10 * plain


def test_the_guard_does_not_learn_the_rows_that_fit_worst_and_the_others_do() -> None:
    dirty = toy(512)
    dirty[::10] = [5, 5, -5, -5]
    made = model(members=2)
    fit(made, dirty, toy(64, 1), config(epochs=40, guard=0.2))
    with torch.no_grad():
        learned, guard = -made.elbo(torch.from_numpy(dirty[:1]), torch.zeros(1, 2)).bound[:, 0]
        ordinary = -made.elbo(torch.from_numpy(dirty[1:10]), torch.zeros(1, 2)).bound.mean(1)
    assert guard > 10 * learned
    assert abs(ordinary[0] - ordinary[1]) < 1


# ---------------------------------------------------------------- it repeats


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    runs = []
    for seed in (0, 0, 1):
        fitted = model()
        fit(fitted, toy(), toy(64, 1), config(seed=seed))
        runs.append(weights(fitted))
        torch.rand(3)  # what happens outside changes nothing
    assert runs[0] == runs[1] != runs[2]


def test_initial_weights_depend_on_their_seed_alone() -> None:
    state = torch.get_rng_state()
    first = weights(model(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert weights(model(seed=3)) == first != weights(model(seed=4))


# ---------------------------------------------------------------- it resumes


def interrupted_at(epoch: int, checkpoint: Path, **changes: Any) -> None:
    """A fit that somebody stops after so many epochs."""

    def stop(finished: Epoch, _: int) -> None:
        if finished.epoch == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model(), toy(), toy(64, 1), config(**changes), stop, checkpoint)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints go, with one after every epoch."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    return tmp_path / "below" / "fit.safetensors"


def test_an_interrupted_fit_resumed_equals_an_unbroken_one_bit_by_bit(checkpoint: Path) -> None:
    """Its first call of ``on_epoch`` tells where it went on."""
    unbroken = model()
    expected = fit(unbroken, toy(), toy(64, 1), config())
    for epoch in (2, 4):  # twice interrupted
        interrupted_at(epoch, checkpoint)
    assert checkpoint.exists()
    resumed, seen = model(seed=9), []  # whatever its weights were
    history = fit(
        resumed, toy(), toy(64, 1), config(), lambda epoch, _: seen.append(epoch.epoch), checkpoint
    )
    assert seen == [5]
    assert weights(resumed) == weights(unbroken)
    assert history == expected
    assert not list(checkpoint.parent.iterdir())


# ---------------------------------------------------------------- members


def test_members_learn_side_by_side_what_each_learns_alone() -> None:
    """The gradient of one member's weights is a third of what it is alone, with the same noise."""
    several = model(members=3)
    run = _Trainer(several, toy(), toy(64, 1), config(hide=0.0).resolve(256))
    x = run.x.expand(3, -1, -1)
    noise = run._draw(x).noise.unsqueeze(-2)
    several.elbo(x, noise).bound.mean().backward()
    for member in range(3):
        alone = model()
        state = several.state_dict()
        alone.load_state_dict(
            {k: state[k][member].view_as(v) for k, v in alone.state_dict().items()}
        )
        alone.elbo(run.x, noise[member]).bound.mean().backward()
        for name, value in alone.named_parameters():
            together = dict(several.named_parameters())[name].grad
            assert value.grad is not None
            assert together is not None
            torch.testing.assert_close(
                3 * together[member].view_as(value), value.grad, rtol=1e-4, atol=1e-6
            )


def test_members_go_their_own_ways_through_the_rows() -> None:
    run = _Trainer(model(members=3), toy(), toy(64, 1), config().resolve(256))
    order = run._order()
    assert order.shape == (256, 3)
    assert all(sorted(column.tolist()) == list(range(256)) for column in order.T)
    assert not torch.equal(order[:, 0], order[:, 1])


def test_a_fit_of_members_improves_each_and_repeats(checkpoint: Path) -> None:
    unbroken, plan = model(members=2), {"epochs": 20, "keep": "last"}
    before = unbroken.elbo(torch.from_numpy(toy(64, 1)), torch.zeros(1, 2)).bound.mean(-1)
    expected = fit(unbroken, toy(), toy(64, 1), config(**plan))
    after = unbroken.elbo(torch.from_numpy(toy(64, 1)), torch.zeros(1, 2)).bound.mean(-1)
    assert torch.all(after > before + 1)
    again = model(members=2)
    assert fit(again, toy(), toy(64, 1), config(**plan), None, checkpoint) == expected
    assert weights(again) == weights(unbroken)


def test_early_stopping_is_the_same_after_resuming(checkpoint: Path) -> None:
    """The best weights so far and the patience spent are part of the checkpoint."""
    changes = {"epochs": 200, "patience": 2, "kl_warmup": 0.0, "learning_rate": 0.05}
    unbroken = model()
    expected = fit(unbroken, toy(), toy(64, 1), config(**changes))
    assert expected.stopped_early
    interrupted_at(len(expected.epochs) - 1, checkpoint, **changes)
    resumed = model()
    assert fit(resumed, toy(), toy(64, 1), config(**changes), None, checkpoint) == expected
    assert weights(resumed) == weights(unbroken)


def image_model(seed: int = 0, network: str = "convolutional") -> VAE:
    small = {"network": network, "width": 4, "hidden_dim": 8, "latent_dim": 2}
    return build(ImageModelConfig.model_validate(small), ImageLayout(1, 16), seed)


def noise_images(n: int, seed: int = 0) -> Rows:
    """(n, 256)"""
    return np.random.default_rng(seed).random((n, 256)).astype(np.float32)


def test_a_resumed_fit_of_images_equals_an_unbroken_one_bit_by_bit(checkpoint: Path) -> None:
    """Whose running statistics of batch norm, and random views, are part of the checkpoint."""
    plan = ImageTrainingConfig(epochs=4, batch_size=32).resolve(64)
    shown = AugmentationConfig(flip=0.5, rotation=0.5)
    views = DistortedImages(ImageLayout(1, 16), shown, CorruptionConfig())
    x, held_out = noise_images(64), noise_images(16, 1)

    def stop(finished: Epoch, _: int) -> None:
        if finished.epoch == 1:
            raise KeyboardInterrupt

    unbroken, resumed = image_model(), image_model(seed=9)
    expected = fit(unbroken, x, held_out, plan, views=views)
    with pytest.raises(KeyboardInterrupt):
        fit(image_model(), x, held_out, plan, stop, checkpoint, views)
    assert len(State.load(checkpoint).epochs) == 2
    assert fit(resumed, x, held_out, plan, None, checkpoint, views) == expected
    assert weights(resumed) == weights(unbroken)
    assert any("running_mean" in name for name in weights(resumed))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a checkpoint at all")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _change(
    path: Path, history: list[dict[str, Any]] | None = None, **tensors: torch.Tensor
) -> None:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if history is not None:
        metadata["epochs"] = json.dumps(history)
    save_file({**held, **tensors}, path, metadata)


def _of_another_version(path: Path) -> None:
    _change(path, history=[{"epoch": 0, "loss": 1.0}])


def _of_another_device(path: Path) -> None:
    _change(path, generator=torch.zeros(16, dtype=torch.uint8))


def _of_another_model(path: Path) -> None:
    _change(path, **{"model.decoder.network.skip.bias": torch.zeros(3)})


def _of_another_optimiser(path: Path) -> None:
    _change(path, **{"optimizer.exp_avg": torch.zeros(3)})


def _without_its_best_weights(path: Path) -> None:
    state = State.load(path)
    kept = {name: held for name, held in state.tensors.items() if not name.startswith("best.")}
    state._replace(tensors=kept).save(path)


@pytest.mark.parametrize(
    "spoil",
    [
        _truncated,
        _garbage,
        _empty,
        _of_another_version,
        _of_another_device,
        _of_another_model,
        _of_another_optimiser,
        _without_its_best_weights,
    ],
)
def test_a_checkpoint_that_does_not_fit_is_left_aside(spoil: Any, checkpoint: Path) -> None:
    """Nothing of it is taken over: the fit is the one without a checkpoint."""
    fresh = model()
    expected = fit(fresh, toy(), toy(64, 1), config())
    interrupted_at(3, checkpoint)
    spoil(checkpoint)
    fitted = model()
    assert fit(fitted, toy(), toy(64, 1), config(), None, checkpoint) == expected
    assert weights(fitted) == weights(fresh)


def _changed_after(steps: int, error: BaseException) -> type[_Trainer]:
    """A trainer that is stopped in the middle of an epoch, its weights moved on already."""

    class Stopped(_Trainer):
        def _step(self, batch: Batch, step: int) -> torch.Tensor:
            done = super()._step(batch, step)
            if step == steps:
                raise error
            return done

    return Stopped


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (2, 0), (4, 1), (14, 3)])
def test_ctrl_c_at_any_step_leaves_the_last_whole_epoch_to_resume_from(
    steps: int, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the epochs are and however soon it comes: before the first one ended too."""
    unbroken = model()
    expected = fit(unbroken, toy(), toy(64, 1), config())
    path = tmp_path / "fit.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_Trainer", _changed_after(steps, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fit(model(), toy(), toy(64, 1), config(), None, path)
    assert len(State.load(path).epochs) == epochs
    resumed = model(seed=9)
    assert fit(resumed, toy(), toy(64, 1), config(), None, path) == expected
    assert weights(resumed) == weights(unbroken)


def test_a_fit_that_is_killed_leaves_its_initial_state_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fit.safetensors"
    monkeypatch.setattr(trainer, "_Trainer", _changed_after(0, SystemError()))
    with pytest.raises(SystemError):  # nothing is done on the way out
        fit(model(), toy(), toy(64, 1), config(), None, path)
    assert State.load(path).epochs == ()


def test_checkpoints_are_not_written_more_often_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at the start and one when interrupted: an epoch takes milliseconds."""
    written: list[int] = []
    save = State.save

    def count(state: State, path: Path) -> None:
        written.append(len(state.epochs))
        save(state, path)

    monkeypatch.setattr(State, "save", count)
    interrupted_at(3, tmp_path / "fit.safetensors")
    assert written == [0, 4]


# ---------------------------------------------------------------- it stops


class Scripted(_Trainer):
    """A trainer whose validation objective follows a script, and whose weights count epochs."""

    script: tuple[float, ...] = ()

    def _epoch(self, number: int) -> Epoch:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(number)
        objective = self.script[number]
        return Epoch(number, 1.0, 0.1, 0.0, 0.0, objective, 0.0, objective)


def follow(script: tuple[float, ...], **changes: Any) -> tuple[VAE, History]:
    Scripted.script = script
    plan = config(epochs=len(script), **changes).resolve(64)
    run = Scripted(model(), toy(64), toy(64, 1), plan)
    for _ in run.epochs():
        pass
    return run.model, run.finish()


def test_it_stops_after_patience_epochs_without_a_better_one_and_keeps_the_best() -> None:
    fitted, history = follow((1, 5, 3, 4, 5, 9, 9, 9), patience=3, kl_warmup=0.0)
    assert len(history.epochs) == 5  # 3, 4 and 5 again are no better
    assert history.stopped_early
    assert history.best_epoch == 1
    assert all((value == 1).all() for value in fitted.parameters())


def test_it_runs_to_the_end_while_it_improves() -> None:
    fitted, history = follow(tuple(range(12)), patience=1, kl_warmup=0.0)
    assert not history.stopped_early
    assert len(history.epochs) == 12
    assert history.best_epoch == 11
    assert all((value == 11).all() for value in fitted.parameters())


def test_patience_does_not_begin_before_the_kl_warm_up_has_ended() -> None:
    _, history = follow((9,) + (0,) * 19, patience=2, kl_warmup=0.5)
    assert len(history.epochs) == 10 + 2 + 1
    assert history.best_epoch == 0


def test_the_fitted_model_has_the_weights_of_its_best_epoch() -> None:
    seen: list[float] = []
    fitted = model()
    history = fit(
        fitted,
        toy(),
        toy(64, 1),
        config(epochs=30, learning_rate=0.1, kl_warmup=0.0),
        lambda epoch, _: seen.append(epoch.validation_elbo),
    )
    assert history.best.validation_elbo == max(seen)
    with torch.no_grad():
        noise = a_trainer()._validation_noise(64)
        elbo = fitted.elbo(torch.from_numpy(toy(64, 1)), noise).bound.mean().item()
    assert elbo == pytest.approx(max(seen), abs=1e-5)
    assert not fitted.training


# ---------------------------------------------------------------- schedules and objective


def test_the_kl_weight_rises_linearly_and_stays() -> None:
    run = a_trainer(epochs=10, kl_warmup=0.3, beta=4.0)
    assert run.steps == 40
    assert [run.beta(step) for step in (0, 3, 6, 12, 39)] == pytest.approx([0, 1, 2, 4, 4])
    assert a_trainer(kl_warmup=0.0, beta=0.5).beta(0) == 0.5


def test_the_learning_rate_warms_up_and_falls_to_zero_like_a_cosine() -> None:
    run = a_trainer(epochs=50, learning_rate=0.1)
    rates = [run.learning_rate(step) for step in range(run.steps)]
    top = int(np.argmax(rates))
    assert top == trainer.LEARNING_RATE_WARMUP * run.steps == 10
    assert rates[top] == 0.1
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) < 0)
    assert rates[0] > 0
    assert rates[top + (run.steps - top) // 2] == pytest.approx(0.05)
    assert 0 < rates[-1] < 1e-4
    assert run.learning_rate(run.steps) == pytest.approx(0, abs=1e-12)


def test_epochs_record_the_schedules_they_ran_under() -> None:
    seen: list[tuple[Epoch, int]] = []
    plan = config(epochs=10, kl_warmup=0.5, beta=2.0)
    fit(model(), toy(), toy(64, 1), plan, lambda epoch, planned: seen.append((epoch, planned)))
    assert [epoch.epoch for epoch, _ in seen] == list(range(10))
    assert {planned for _, planned in seen} == {10}
    assert [epoch.beta for epoch, _ in seen] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6] + [2] * 5)
    last = seen[-1][0]
    assert last.validation_objective == last.validation_log_prob - 2 * last.validation_kl
    assert last.validation_elbo == last.validation_log_prob - last.validation_kl


def test_a_larger_beta_spends_fewer_nats_and_free_bits_keep_them() -> None:
    def rate(**changes: Any) -> float:
        plan = config(epochs=30, learning_rate=0.02, kl_warmup=0.0, **changes)
        return fit(model(), toy(), toy(64, 1), plan).epochs[-1].validation_kl

    plain, costly = rate(), rate(beta=30.0)
    assert costly < 0.3 < plain
    assert rate(beta=30.0, free_bits=1.0) > 1


def test_a_step_descends_the_negative_elbo() -> None:
    """One optimiser step with the whole data as its batch against autograd by hand."""
    run = a_trainer(hide=0.0, kl_warmup=0.0, clip_norm=1e9, weight_decay=0.0)
    twin = model()
    batch = run._draw(run.x)
    run._step(batch, step=5)
    terms = twin.elbo(run.x, batch.noise.unsqueeze(-2))
    (-terms.bound.mean()).backward()
    for ours, theirs in zip(run.model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped() -> None:
    run = a_trainer(clip_norm=0.01)
    run._step(run._draw(run.x), step=5)
    norms = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_encoder_sees_the_view_and_the_likelihood_its_target() -> None:
    """With one hidden from it, and the other unknown, what is left is one bound in closed form."""

    class Halved(Identity):
        loss_scale = 8.0

        def __call__(self, x: torch.Tensor, generator: torch.Generator) -> View:
            return View(x / 2, x)

    run = _Trainer(model(), toy(), toy(64, 1), config().resolve(256), Halved())
    batch = run._draw(run.x)
    with torch.no_grad():
        found = run.model.infer(run.x / 2, batch.noise.unsqueeze(-2))
        truth = run.model.terms(found, run.x)
    log_prob, kl = run._step(batch, step=5).tolist()
    assert log_prob == pytest.approx(truth.log_prob.sum().item(), rel=1e-5)
    assert kl == pytest.approx(truth.kl.sum().item(), rel=1e-5)


def test_views_draw_from_the_generator_that_a_checkpoint_keeps(tmp_path: Path) -> None:
    def fitted(checkpoint: Path | None, epochs: int) -> VAE:
        one = model()
        views = NoisyCells(0.3, range(4))
        fit(one, toy(), toy(64, 1), config(epochs=epochs), None, checkpoint, views)
        return one

    assert weights(fitted(None, 4)) == weights(fitted(tmp_path / "c.safetensors", 4))
    assert weights(fitted(None, 4)) != weights(fitted(None, 3))
    plain = model()
    fit(plain, toy(), toy(64, 1), config(epochs=4))
    assert weights(plain) != weights(fitted(None, 4))


@pytest.mark.parametrize("variance", ["shared", "row"])
def test_a_loss_is_divided_by_the_views_scale_before_it_is_clipped(variance: str) -> None:
    """Whether its gradient is known or found by differentiation."""

    class Scaled(Identity):
        loss_scale = 1e6

    runs = []
    for views in (Identity(), Scaled()):
        of = model(posterior_variance=variance)
        run = _Trainer(of, toy(), toy(64, 1), config(clip_norm=1e9).resolve(256), views)
        run._step(run._draw(run.x)._replace(noise=torch.zeros(256, 2)), step=5)
        norms = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
        runs.append(torch.stack(norms).norm().item())
    assert runs[0] / runs[1] == pytest.approx(1e6, rel=1e-3)


def test_a_step_is_that_of_the_librarys_adamw() -> None:
    run, twin = a_trainer(weight_decay=0.1), model()
    optimiser = torch.optim.AdamW(twin.parameters(), weight_decay=0.1)
    for step in range(3):
        run._step(run._draw(run.x), step)
        optimiser.param_groups[0]["lr"] = run.learning_rate(step)
        for ours, theirs in zip(run.model.parameters(), twin.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()
        optimiser.step()
    for ours, theirs in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_in_one_tensor_are_what_they_were(layout: torch.memory_format) -> None:
    """Their order in memory stays; a change of the whole is a change of each."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(3, 1, 1, bias=False))
    net.to(memory_format=layout)  # type: ignore[call-overload]
    before = [weight.detach().clone() for weight in net.parameters()]
    strides = [weight.stride() for weight in net.parameters()]
    x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    whole, gradient = flatten_weights(list(net.parameters()))
    assert whole.shape == gradient.shape == (sum(weight.numel() for weight in before),)
    assert [weight.stride() for weight in net.parameters()] == strides
    net(x).sum().backward()
    for weight, value, slope in zip(net.parameters(), before, gradients, strict=True):
        assert torch.equal(weight, value)
        torch.testing.assert_close(weight.grad, slope)
    with torch.no_grad():
        whole.sub_(gradient)
    for weight, value, slope in zip(net.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(weight.detach(), value - slope)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("together", [0, 500, 1 << 16])
def test_batches_are_the_same_rows_however_many_are_drawn_at_once(
    together: int, members: int
) -> None:
    views = Identity()
    views.max_values = together
    several = model(members=members)
    run = _Trainer(several, toy(199), toy(64, 1), config(batch_size=33).resolve(199), views)
    order = run._order()
    run._order = lambda: order  # type: ignore[method-assign]
    found, wanted = list(run._batches()), batches(order, 33)
    assert len(found) == len(wanted) == run.steps_per_epoch == 6
    for batch, rows in zip(found, wanted, strict=True):
        assert torch.equal(batch.target, run.x[rows.movedim(-1, 0)])
        assert torch.equal(batch.features, several.features(batch.target))
        assert batch.noise.shape == (*batch.target.shape[:-1], 2)


@pytest.mark.parametrize(
    ("rows", "size", "lengths"),
    [
        (200, 64, [64, 64, 64, 8]),
        (129, 64, [64, 65]),
        (65, 64, [65]),
        (64, 64, [64]),
        (1, 64, [1]),
        (3, 1, [1, 2]),
    ],
)
def test_no_row_is_left_alone_in_a_batch(rows: int, size: int, lengths: list[int]) -> None:
    parts = batches(torch.arange(rows), size)
    assert [len(part) for part in parts] == lengths
    assert torch.equal(torch.cat(parts), torch.arange(rows))


def test_images_are_fitted_whatever_their_number_leaves_over() -> None:
    """Batch norm cannot take the statistics of one."""
    plan = ImageTrainingConfig(epochs=1, batch_size=8, threads=1).resolve(17)
    small = {"network": "convolutional", "width": 2, "hidden_dim": 4, "latent_dim": 2}
    built = build(ImageModelConfig.model_validate(small), ImageLayout(1, 16))
    x = np.random.default_rng(0).random((17, 256)).astype(np.float32)
    history = fit(built, x, x[:1], plan)
    assert math.isfinite(history.best.validation_elbo)


def test_images_are_fitted_in_bfloat16_on_the_cpu_too() -> None:
    """And end near where they would otherwise; their weights stay float32."""
    fitted, twin = image_model(), image_model()
    histories = [
        fit(one, noise_images(64), noise_images(16, 1), plan.resolve(64))
        for one, plan in (
            (fitted, ImageTrainingConfig(epochs=3, batch_size=32, precision="bfloat16")),
            (twin, ImageTrainingConfig(epochs=3, batch_size=32)),
        )
    ]
    for epoch in histories[0].epochs:
        assert all(math.isfinite(value) for value in vars(epoch).values())
    assert {value.dtype for value in fitted.parameters()} == {torch.float32}
    assert weights(fitted) != weights(twin)
    ends = [history.epochs[-1].train_log_prob for history in histories]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_every_row_is_seen_once_an_epoch() -> None:
    run = a_trainer(n=200)  # no multiple of the batch
    seen: list[torch.Tensor] = []

    def record(batch: Batch, step: int) -> torch.Tensor:
        seen.append(batch.target)
        return torch.zeros(2)

    run._step = record  # type: ignore[method-assign]
    run._epoch(0)
    assert [len(x) for x in seen] == [64, 64, 64, 8]
    rows = torch.cat(seen)
    assert not torch.equal(rows, run.x)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, run.x.tolist()))


@pytest.mark.parametrize("network", ["dense", "convolutional", "hierarchical"])
def test_images_are_one_batch_at_a_time(network: str) -> None:
    """Whatever the encoder sees of them, and as many as the image has rows of pixels, or not."""
    made = image_model(network=network)
    distorted = DistortedImages(ImageLayout(1, 16), AugmentationConfig(), CorruptionConfig())
    for batch_size in (8, 16, 24):
        plan = ImageTrainingConfig(epochs=1, batch_size=batch_size, threads=1).resolve(40)
        history = fit(made, noise_images(40), noise_images(8, 1), plan, views=distorted)
        assert math.isfinite(history.best.train_log_prob)


# ---------------------------------------------------------------- it refuses


@pytest.mark.parametrize(
    ("changes", "scale"), [({"learning_rate": 1e30}, 1.0), ({}, 1e30), ({"beta": 1e38}, 1e18)]
)
def test_a_fit_that_diverges_says_so_and_what_to_lower(
    changes: dict[str, Any], scale: float
) -> None:
    with pytest.raises(TrainingError) as caught:
        fit(model(), toy() * np.float32(scale), toy(64, 1), config(epochs=3, **changes))
    message = str(caught.value)
    assert "not finite after epoch" in message
    assert "lower training.learning_rate" in message
    assert "model.variance_floor" in message
    assert "\n" not in message


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="no CUDA device is available; use auto"):
        fit(model(), toy(), toy(64, 1), config(device="cuda"))


def test_the_history_of_a_fit_is_finite() -> None:
    history = fit(model(), toy(), toy(64, 1), config())
    for epoch in history.epochs:
        assert all(math.isfinite(value) for value in vars(epoch).values())
