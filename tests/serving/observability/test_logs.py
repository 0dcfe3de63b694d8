"""The access log and errors tell what happened without what clients sent."""

import json
import logging

import pytest

from serving.observability.logs import (
    LOG_FIELDS,
    JsonFormatter,
    TextFormatter,
    configure,
    log_request,
)
from tests.support.image_uploads import uploads


def test_the_access_log_counts_images(scan_client, pngs, caplog):
    with caplog.at_level(logging.INFO, logger="serving.access"):
        scan_client.post("/score", files=uploads(pngs[:3]))
    (line,) = [record.facts for record in caplog.records if record.name == "serving.access"]
    assert (line["model"], line["records"], line["status"]) == ("scans", 3, 200)


def test_the_access_log_tells_no_secrets(client, caplog, records):
    with caplog.at_level(logging.INFO, logger="serving.access"):
        body = {"records": [{**records[0], "TX_CHANNEL": "mallory"}]}
        client.post("/score?secret=mallory", json=body, headers={"X-API-Key": "mallory"})
        client.get("/health/live")
        client.get("/mallory")
    lines = [record.facts for record in caplog.records if record.name == "serving.access"]
    assert "mallory" not in json.dumps(lines)
    scored, missed = lines
    assert scored.pop("seconds") > 0
    assert scored.pop("request_id")
    assert scored == {
        "method": "POST", "route": "/score", "status": 200, "model": "fraud", "records": 1
    }  # fmt: skip
    assert (missed["route"], missed["status"]) == ("unmatched", 404)


def test_errors_are_logged_without_their_message():
    from serving.observability.logs import JsonFormatter

    try:
        raise ValueError("secret amount 1234.56")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "failed", (), (ValueError, error, error.__traceback__)
        )
    line = json.loads(JsonFormatter().format(record))
    assert line["error"] == "ValueError"
    assert "test_errors_are_logged" in line["trace"][0]
    assert "secret" not in json.dumps(line)


def line(facts=(), error=None, level=logging.WARNING):
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("serving", level, "f", 1, "reload %s", ("failed",), exc_info)
    record.created = 1_700_000_000.25
    setattr(record, LOG_FIELDS, dict(facts))
    return record


def test_a_line_in_json_has_its_fields():
    assert json.loads(JsonFormatter().format(line({"model": "fraud", "records": 3}))) == {
        "time": "2023-11-14T22:13:20.250+00:00", "level": "warning", "logger": "serving",
        "event": "reload failed", "model": "fraud", "records": 3,
    }  # fmt: skip


def test_a_line_of_text_has_the_same_fields():
    text = TextFormatter().format(line({"model": "fraud", "records": 3}))
    assert text == "2023-11-14T22:13:20.250+00:00 warning reload failed model=fraud records=3"
    text = TextFormatter().format(line(error=ValueError("secret amount 1234.56")))
    assert text.endswith("reload failed error=ValueError trace=[]")


def test_a_line_of_another_library_has_no_fields():
    record = logging.LogRecord("uvicorn", logging.INFO, "f", 1, "started", (), None)
    found = json.loads(JsonFormatter().format(record))
    assert set(found) == {"time", "level", "logger", "event"}
    assert TextFormatter().format(record).endswith(" info started ")


def test_a_request_is_logged_at_its_level(caplog):
    with caplog.at_level(logging.INFO, logger="serving.access"):
        log_request(logging.WARNING, {"status": 500})
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "request")
    assert record.facts == {"status": 500}


def test_lines_go_to_stderr_from_a_level_on(monkeypatch, capsys):
    root = logging.getLogger()
    switches = ("logThreads", "logProcesses", "logMultiprocessing")
    for switch in switches:
        monkeypatch.setattr(logging, switch, getattr(logging, switch))
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure("warning")
    logging.getLogger("anything").info("quiet")
    logging.getLogger("anything").warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(one)["event"] for one in err.splitlines()] == ["loud"]


@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_no_line_contains_the_password_of_an_address(formatter):
    said = "no http://bob:s3cret@h:1"
    record = logging.LogRecord("uvicorn", logging.INFO, "f", 1, said, (), None)
    vars(record)[LOG_FIELDS] = {"detail": said}
    text = formatter().format(record)
    assert "s3cret" not in text
    assert text.count("no http://h:1") == 2
