"""Create MLflow's read-only account `scoring` for the service, or set its password."""

import os

import requests

USERS = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users"
ADMIN = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
ACCOUNT = {"username": "scoring", "password": os.environ["MLFLOW_SCORING_PASSWORD"]}

answer = requests.patch(f"{USERS}/update-password", json=ACCOUNT, auth=ADMIN, timeout=60)
if answer.status_code == requests.codes.not_found:
    answer = requests.post(f"{USERS}/create", json=ACCOUNT, auth=ADMIN, timeout=60)
if not answer.ok:
    raise SystemExit(
        f"MLflow's account 'scoring' could not be created: {answer.status_code} {answer.text}"
    )
