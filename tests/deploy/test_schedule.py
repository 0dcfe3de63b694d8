"""The schedule for cron: its lines run as cron runs them, with a real registry and real data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config
from anomaly_vae.lifecycle.registry import CHAMPION, Registry
from pipelines.cli import app
from tests.support.paths import ROOT
from tests.support.registries import changed, migrated, place
from tests.support.schedule import SCHEDULE, shift_late_amounts, write_config, write_program

__all__ = ["migrated", "place"]

COMMANDS: click.Group = typer.main.get_command(app)  # type: ignore[assignment]
HOME = "/srv/payments"
LINE = re.compile(r"^(?:[\d*/,-]+ +){5}(.+)$", re.MULTILINE)
RETRAIN, SCORE = LINE.findall((SCHEDULE / "crontab").read_text(encoding="utf-8"))
OK, FAULT, USAGE, SKIPPED = 0, 1, 2, 75


class Cron:
    """A folder in place of /srv/payments, where lines run as cron runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(SCHEDULE / "job.sh", folder)
        self.environment = write_program(folder)

    def start(self, line: str, **variables: str) -> subprocess.Popen[str]:
        """Start a line with /bin/sh; cron turns an escaped percent sign into a plain one."""
        command = line.replace(HOME, str(self.folder)).replace(r"\%", "%")
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, line: str, **variables: str) -> tuple[int, str]:
        """Return a line's exit code, and its output, which cron would mail."""
        process = self.start(line, **variables)
        mail, _ = process.communicate()
        return process.returncode, mail

    def logs(self, name: str, ending: str) -> list[Path]:
        return sorted((self.folder / "logs" / name).glob(f"*{ending}"))

    def result(self, name: str) -> dict[str, object]:
        (path,) = self.logs(name, ".json")
        content: dict[str, object] = json.loads(path.read_text())
        return content


@pytest.fixture
def cron(place: Path, config: Config) -> Cron:
    """A folder with job.sh, payments.yaml and an empty registry."""
    write_config(changed(config, name="payments", calibration__alpha=0.05))
    return Cron(place)


@pytest.fixture
def held(cron: Cron) -> Iterator[None]:
    """Hold the lock of `retrain`, as a run that still lives does."""
    lock = cron.folder / "logs/retrain.lock"
    lock.parent.mkdir()
    with subprocess.Popen(["flock", lock, "sleep", "60"], process_group=0) as holder:
        while subprocess.run(["flock", "-n", lock, "true"], check=False).returncode == 0:
            time.sleep(0.02)
        yield
        os.killpg(holder.pid, 9)


@pytest.mark.parametrize("line", [RETRAIN, SCORE])
def test_the_commands_of_the_crontab_parse(line: str) -> None:
    words = shlex.split(line)
    _, command, *arguments = words[words.index("./job.sh") + 1 :]
    COMMANDS.commands[command].make_context(command, arguments)


def test_cron_reads_no_percent_sign_as_a_new_line() -> None:
    assert not re.search(r"(?<!\\)%", RETRAIN + SCORE)
    assert r"\%" in SCORE


@pytest.mark.slow
def test_a_first_champion_is_silent_and_scores_at_night(cron: Cron, transactions: Path) -> None:
    """The second run starts while the first lives, and is skipped."""
    first = cron.start(RETRAIN)
    while not cron.logs("retrain", ".log"):
        time.sleep(0.02)
    code, mail = cron.run(RETRAIN)
    assert (code, mail) == (
        SKIPPED,
        "retrain: skipped, because the previous run is still going\n",
    )
    assert first.communicate()[0] == ""
    assert first.returncode == OK
    assert cron.result("retrain")["promoted"] is True
    (log,) = cron.logs("retrain", ".log")
    assert "version 1 promoted as champion" in log.read_text()

    (cron.folder / "incoming").mkdir()
    shutil.copy(transactions, cron.folder / "incoming")
    assert cron.run(SCORE) == (OK, "")
    assert cron.result("score")["scored"] == 1_500
    (night,) = (cron.folder / "scores").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", night.name)
    assert (night / "summary.json").exists()


@pytest.mark.slow
def test_a_refused_promotion_is_reported_and_is_no_failure(
    cron: Cron, transactions: Path, config: Config
) -> None:
    shift_late_amounts(transactions, cron.folder / "shifted.parquet")
    write_config(changed(config, name="payments", data__path="shifted.parquet"))
    code, mail = cron.run(RETRAIN)
    assert code == OK
    assert mail.startswith("retrain: promotion refused; the champion stays\n")
    result = cron.result("retrain")
    assert result["promoted"] is False
    assert result["reasons"]
    assert all(reason["text"] in mail for reason in result["reasons"])  # type: ignore[attr-defined]
    assert len(cron.logs("retrain", ".log")[0].read_text().split("exit code")) == 2, "not retried"
    assert Registry().models()[0]["aliases"].get(CHAMPION) is None


@pytest.fixture
def nightly(cron: Cron, calibrated: Bundle) -> str:
    """The line that scores, with a bundle instead of the champion, which takes less time."""
    calibrated.save(cron.folder / "bundle")
    return SCORE.replace("models:/payments@champion", "bundle")


def test_a_scored_night_is_silent(cron: Cron, nightly: str, transactions: Path) -> None:
    (cron.folder / "incoming").mkdir()
    shutil.copy(transactions, cron.folder / "incoming")
    assert cron.run(nightly) == (OK, "")
    assert cron.result("score")["scored"] == 1_500
    assert cron.logs("score", ".report") == []


def test_faulty_input_is_retried_and_then_reported(cron: Cron, nightly: str) -> None:
    code, mail = cron.run(nightly, RETRIES="1")
    assert code == FAULT
    assert mail.startswith("score: failed with exit code 1\n")
    assert "error: 'incoming': no CSV, JSON or Parquet file is there" in mail
    (log,) = cron.logs("score", ".log")
    assert log.read_text().count("exit code 1\n") == 2
    assert cron.logs("score", ".json") == []


def test_what_works_on_a_later_try_is_not_reported(
    cron: Cron, nightly: str, transactions: Path
) -> None:
    """The file arrives after the first try."""
    process = cron.start(nightly, RETRIES="99")
    while not (logs := cron.logs("score", ".log")) or "exit code 1" not in logs[0].read_text():
        time.sleep(0.05)
    (cron.folder / "incoming").mkdir()
    shutil.copy(transactions, cron.folder / "incoming")
    assert process.communicate()[0] == ""
    assert process.returncode == OK


def test_wrong_usage_is_reported_at_once_to_the_command_in_notify(cron: Cron) -> None:
    line = RETRAIN.replace("payments.yaml", "--no-such-option")
    code, mail = cron.run(line, NOTIFY='cat > "mail of today"')
    assert (code, mail) == (USAGE, "")
    sent = (cron.folder / "mail of today").read_text()
    assert sent.startswith("retrain: failed with exit code 2\n")
    assert "--no-such-option" in sent
    assert sent.count("exit code 2") == 2, "the headline and one attempt"


def test_a_second_run_is_skipped_while_the_first_lives(cron: Cron, held: None) -> None:
    code, mail = cron.run(RETRAIN)
    assert (code, mail) == (
        SKIPPED,
        "retrain: skipped, because the previous run is still going\n",
    )
    assert cron.logs("retrain", ".log") == []


def test_a_report_that_cannot_be_sent_is_kept_and_named(cron: Cron, held: None) -> None:
    code, mail = cron.run(RETRAIN, NOTIFY="exit 9")
    (report,) = cron.logs("retrain", ".report")
    assert code == SKIPPED
    assert mail == f"retrain: NOTIFY failed; the report is logs/retrain/{report.name}\n"
    assert "skipped" in report.read_text()


def test_logs_older_than_keep_days_are_removed(cron: Cron) -> None:
    folder = cron.folder / "logs/retrain"
    folder.mkdir(parents=True)
    for age in (3, 1):
        path = folder / f"{age}.log"
        path.touch()
        os.utime(path, times=(time.time() - (age + 0.5) * 86_400,) * 2)
    cron.run(RETRAIN.replace("payments.yaml", "--no-such-option"), KEEP_DAYS="2")
    assert not (folder / "3.log").exists()
    assert (folder / "1.log").exists()


def test_without_arguments_the_script_says_how_it_is_used() -> None:
    done = subprocess.run(["sh", SCHEDULE / "job.sh"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr == "usage: job.sh NAME COMMAND [ARGUMENT]...\n"


def test_the_variables_of_the_script_are_documented_with_their_defaults() -> None:
    script = (SCHEDULE / "job.sh").read_text(encoding="utf-8")
    page = (ROOT / "docs/scheduling.md").read_text(encoding="utf-8")
    variables = dict(re.findall(r"\$\{(\w+):=(\w+)\}", script))
    assert len(variables) == 4
    for name, default in variables.items():
        assert f"`{name}`" in page
        assert f"{name} ({default})" in script
        assert re.search(rf"^\| `.*{name}.* \| .*{default}.* \| ", page, re.MULTILINE)
