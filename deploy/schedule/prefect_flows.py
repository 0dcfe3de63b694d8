"""Retrain weekly and score nightly with Prefect; see docs/scheduling.md.

`python prefect_flows.py` registers both schedules and runs them until it is stopped. Start it in
the folder with the configuration. It needs only Prefect: it calls the program `anomaly-vae`, which
has an environment of its own. Each flow returns the JSON object that the program prints.
"""

import json
import os
import subprocess
import tempfile

from prefect import flow, get_run_logger, serve, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.runtime import flow_run
from prefect.states import Completed, State

PROGRAM = os.environ.get("ANOMALY_VAE", "anomaly-vae")
CONFIG = os.environ.get("CONFIG", "payments.yaml")
MODEL = os.environ.get("MODEL", "models:/payments@champion")
INPUT = os.environ.get("INPUT", "incoming")
RETRIES = int(os.environ.get("RETRIES", "2"))
RETRY_SECONDS = float(os.environ.get("RETRY_SECONDS", "600"))
REFUSED = 3  # the exit code of a refused promotion; docs/retraining.md lists all
ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)


class ProgramError(Exception):
    """The program failed; `code` is its exit code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"anomaly-vae ended with exit code {code}: {reason}")
        self.code = code


async def _is_fault(_task: object, _run: object, state: State) -> bool:
    """Return whether a retry may help: wrong usage (2) and interruptions (130) stay as they are."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, ProgramError) and error.code not in (2, 130)


@task(retries=RETRIES, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_is_fault)
def anomaly_vae(*arguments: str) -> dict:
    """Run the program, log its stderr as it comes, and return its JSON result.

    A refused promotion is a result. Any other exit code but 0 is an error.
    """
    logger, reason = get_run_logger(), ""
    with tempfile.TemporaryFile("w+") as result:
        with subprocess.Popen(  # noqa: S603  # what the deployment says
            [PROGRAM, *arguments], stdout=result, stderr=subprocess.PIPE, text=True
        ) as process:
            for line in process.stderr:
                logger.info(line.rstrip())
                reason = line.strip() or reason
        if process.returncode not in (0, REFUSED):
            raise ProgramError(process.returncode, reason)
        result.seek(0)
        return json.load(result)


@flow(name="retrain")
def retrain(config: str = CONFIG) -> dict | State:
    """Train a challenger and promote it; a refusal completes the run in the state 'Refused'."""
    result = anomaly_vae("run", config)
    if result["promoted"]:
        return result
    reasons = [f"- {reason['text']}\n\n  {reason['words']}" for reason in result["reasons"]]
    create_markdown_artifact("\n".join(reasons), key="refused-promotion")
    message = f"version {result['version']} was refused; the champion stays"
    return Completed(name="Refused", message=message, data=result)


@flow(name="score")
def score(model: str = MODEL, input_path: str = INPUT, output: str = "scores") -> dict:
    """Score the input with the champion into a folder named by the scheduled day, in UTC."""
    folder = f"{output}/{flow_run.scheduled_start_time:%Y-%m-%d}"
    return anomaly_vae("score", "--model", model, "--input", input_path, "--output", folder)


if __name__ == "__main__":
    serve(
        retrain.to_deployment("weekly", cron="17 3 * * 1", concurrency_limit=ONE_AT_A_TIME),
        score.to_deployment("nightly", cron="23 5 * * *", concurrency_limit=ONE_AT_A_TIME),
    )
