"""What another alpha would have come to."""

import datetime as dt
import re

import pytest

from anomaly_vae.review import Label, PValueCounts
from serving.console.pages.what_if import ALPHAS
from tests.support.review_cases import count_p_values


@pytest.fixture
def counted(service):
    """100 rows on each of two days; 3 of them have p ≤ 0.02. Cases 1 and 3 are anomalies."""
    today = dt.datetime.now(dt.UTC).date()
    p_values = [0.01, 0.015, 0.02, *[0.5] * 97]
    days = [today, today - dt.timedelta(days=1)]
    service.cases.add_p_values([PValueCounts.of("fraud", "", day, p_values) for day in days])
    verdicts = ["anomaly", "normal", "anomaly"]
    service.cases.labels.add(
        [Label.of("fraud", f"T0000{n}", verdict, "bob") for n, verdict in enumerate(verdicts)]
    )
    return service


def figures(visitor, **query):
    text = visitor.get("/what-if", params=query, headers={"X-Fragment": "1"}).text
    tiles = re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd><dd class=\"muted\">([^<]+)<", text)
    return {name: (value, more) for name, value, more in tiles}


def step(alpha):
    return str(ALPHAS.index(alpha))


def test_alerts_a_day_and_reviewed_precision(counted):
    alice = counted.visitor("alice")
    shown = figures(alice, step=step(0.02))
    assert shown["Alerts a day"] == ("3", "6 on 2 days")
    assert shown["Share of rows"][0] == "3%"
    value, more = shown["Reviewed precision"]
    assert value == "66.7%"
    assert more == "2 of all 3 decided flags; 95% interval 20.8% to 93.9%"
    assert figures(alice, step=step(0.01))["Alerts a day"] == ("1", "2 on 2 days")
    tiny = figures(alice, step=step(0.00002))
    assert tiny["Alerts a day"] == ("0", "0 on 2 days")
    assert tiny["Reviewed precision"][1] == "1 of all 1 decided flags; 95% interval 20.7% to 100%"


def test_above_the_models_own_alpha_it_says_what_is_unknown(counted):
    alice = counted.visitor("alice")
    assert "were never queued" in alice.text(f"/what-if?step={step(0.1)}")
    own = alice.text("/what-if")
    assert "the model's own" in own
    assert "never queued" not in own


def test_versions_and_times_are_chosen(counted):
    alice = counted.visitor("alice")
    today = dt.datetime.now(dt.UTC).date()
    old = today - dt.timedelta(days=40)
    counted.cases.add_p_values([PValueCounts.of("fraud", "2", old, [0.001] * 50)])
    at = {"step": step(0.02)}
    assert figures(alice, **at)["Alerts a day"] == ("3", "6 on 2 days")
    assert figures(alice, **at, days="90")["Alerts a day"] == ("18.7", "56 on 3 days")
    assert figures(alice, **at, days="90", version="2")["Alerts a day"] == ("50", "50 on 1 day")
    assert figures(alice, **at, days="90", version="")["Alerts a day"] == ("3", "6 on 2 days")


@pytest.mark.parametrize(
    "query", ["model=x", "version=9", "days=8", "step=-1", "step=99", "step=x", "step=²"]
)
def test_a_choice_that_is_none_is_refused(service, alice, query):
    assert alice.get(f"/what-if?{query}").status_code == 422


def test_without_p_values_it_says_so(alice):
    assert "No p-values are stored" in alice.text("/what-if")


def test_each_step_is_the_end_of_a_bin():
    from anomaly_vae.review.p_values import is_exact

    assert [alpha for alpha in ALPHAS if not is_exact(alpha)] == []
    assert list(ALPHAS) == sorted(ALPHAS)


def test_the_days_are_drawn(service, alice):
    count_p_values(service.cases, days=3, rows=200)
    text = alice.text("/what-if")
    assert text.count('<rect class="bar') == 3
    assert "alerts of" in text
