"""Promotions at the same time, and killed in the middle: real processes, real databases."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from anomaly_vae.lifecycle.champion_history import ChampionHistory, history
from anomaly_vae.lifecycle.registry import POLICY_TAG, TEST_DIGEST_TAG, TEST_TAG, Registry
from pipelines.promotion.promote import promote, rollback
from tests.support.flows import World
from tests.support.forks import Forks
from tests.support.mlflow_registry import mlflow_server
from tests.support.postgres import postgres
from tests.support.registries import DATABASE, use_registry

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("blank_figures")]


TOGETHER = """
import sys, time
from pathlib import Path
from matplotlib.figure import Figure
from anomaly_vae.lifecycle.champion_history import ChampionHistory
from pipelines import cli

Figure.draw = lambda self, renderer: None  # which takes long

append = ChampionHistory.append

def together(self, *arguments, **named):  # both have been compared with the same champion
    Path("ready-" + sys.argv[-1]).touch()
    while len(list(Path().glob("ready-*"))) < 2:
        time.sleep(0.01)
    return append(self, *arguments, **named)

ChampionHistory.append = together
cli.main()
"""
KILLED = """
import os, signal
from anomaly_vae.lifecycle.registry import Registry
from pipelines import cli

Registry.set_champion = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main()
"""
CROWD = """
import sys
from anomaly_vae.lifecycle.registry import Registry
from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.champion_history import ChampionHistory

registry, won = Registry(), 0
while won < 5:
    succession = ChampionHistory(registry, "fraud")
    champion = registry.champion("fraud").version
    target = str(1 + int(champion) % 3)
    try:
        succession.append("promote", target, champion, {}, sys.argv[1])
    except RegistryError as error:
        assert "run the command again" in str(error), error
    else:
        won += 1
"""


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / DATABASE}"


PLACES: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "sqlite": sqlite,
    "postgres": lambda _: postgres(),
    "server": mlflow_server,
}


@pytest.fixture(
    scope="module",
    params=[
        "sqlite",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("postgres", "server")),
    ],
)
def stocked(
    request: pytest.FixtureRequest,
    migrated: Path,
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Registry]:
    """A registry of each kind with three equal versions."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_registry(migrated, folder, patch)
        with PLACES[request.param](folder) as uri:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            registry = Registry()
            tags = kept(registry, world, folder)
            for _ in range(3):
                with registry.run("fraud", "calibrate", {}) as run:
                    registry.register(run, world.calibrated.bundle, "fraud", tags)
            yield registry


def kept(registry: Registry, world: World, folder: Path) -> dict[str, str]:
    """What a version comes with, the test split in this registry's own artifacts."""
    tags = world.calibrated.version.tags
    if registry.uri.startswith("postgresql"):  # MLflow has no place of its own for artifacts
        registry._client.create_experiment("fraud", (folder / "artifacts").as_uri())
    with registry.run("fraud", "calibrate", {}) as run:
        pq.write_table(world.trained.data.test_table, folder / "test_split.parquet")
        run.log_file(folder / "test_split.parquet")
    where = {TEST_TAG: f"runs:/{run.id}/test_split.parquet"}
    return where | {tag: tags[tag] for tag in (TEST_DIGEST_TAG, POLICY_TAG)}


@pytest.fixture
def before(stocked: Registry) -> int:
    """How many champions there were until version 1, which is champion now."""
    for ready in Path().glob("ready-*"):
        ready.unlink()
    promote(stocked, "fraud", "1")
    return len(moves(stocked))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks.started(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


def champion(registry: Registry) -> str | None:
    found = registry.champion("fraud")
    return found.version if found else None


def moves(registry: Registry) -> list[tuple[str | None, str]]:
    return [
        (one.champion, one.version) for one in history(registry, "fraud") if one.changes_champion
    ]


def test_two_promotions_at_once_cannot_both_win(
    stocked: Registry, before: int, forks: Forks
) -> None:
    both = [(TOGETHER, "promote", "fraud", "--version", version) for version in ("2", "3")]
    ended = dict(zip(("2", "3"), forks.run(*both), strict=True))
    assert sorted(one.code for one in ended.values()) == [0, 1], ended
    (winner,) = (version for version, one in ended.items() if one.code == 0)
    (loser,) = (version for version, one in ended.items() if one.code == 1)
    assert champion(stocked) == winner
    assert moves(stocked)[before:] == [("1", winner)]
    assert f"it was version 1 and is version {winner} now" in ended[loser].err
    assert "run the command again" in ended[loser].err
    assert promote(stocked, "fraud", loser).promoted, "compared with the new champion"
    assert moves(stocked)[before:] == [("1", winner), (winner, loser)]


def test_kill_9_leaves_the_old_champion_and_the_next_command_finishes(
    stocked: Registry, before: int, forks: Forks
) -> None:
    (killed,) = forks.run((KILLED, "promote", "fraud", "--version", "2"))
    assert killed.code == -signal.SIGKILL, killed
    assert champion(stocked) == "1"
    assert promote(stocked, "fraud", "2").promoted
    assert champion(stocked) == "2"
    assert moves(stocked)[before:] == [("1", "2")], "not twice"
    assert rollback(stocked, "fraud")["version"] == "1"


@pytest.mark.slow
def test_a_crowd_leaves_one_line_of_champions(stocked: Registry, before: int, forks: Forks) -> None:
    """Each was promoted over the one before it, and the alias is where the history ends."""
    ended = forks.run(*((CROWD, str(number)) for number in range(2)))
    assert [one.code for one in ended] == [0, 0], ended
    found = moves(stocked)[before:]
    assert len(found) == 2 * 5
    assert [was for was, _ in found] == ["1", *(version for _, version in found[:-1])]
    assert champion(stocked) == found[-1][1]
    assert ChampionHistory(stocked, "fraud").completed is None
