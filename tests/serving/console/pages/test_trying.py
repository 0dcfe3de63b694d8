"""Trying rows and scans."""

import json
from dataclasses import replace

import pytest

from tests.support.console import Service


def test_the_form_has_each_column_with_its_usual_values(alice, served):
    text = alice.text("/try")
    for column in served.schema.names:
        assert f'name="cell:{column}"' in text
    assert "usually" in text


def test_a_row_is_scored_with_reasons(alice):
    answer = alice.post("/try", **{"from": "fields", "cell:TX_AMOUNT": "90000"})
    assert answer.status_code == 200
    assert "1 of 1 flagged" in answer.text
    assert "TX_AMOUNT 90000, usually" in answer.text
    assert "this score" in answer.text
    assert 'value="90000"' in answer.text


def test_an_empty_field_is_a_missing_value(alice):
    answer = alice.post("/try", **{"from": "fields", "cell:TX_AMOUNT": " "})
    assert "Unusual input" in answer.text or "not flagged" in answer.text


def test_a_cell_that_does_not_fit_is_named(alice):
    answer = alice.post("/try", **{"from": "fields", "cell:TX_AMOUNT": "12,50"})
    assert answer.status_code == 200
    assert "column &#39;TX_AMOUNT&#39;" in answer.text
    assert "expected a number" in answer.text
    assert "not scored" in answer.text


RECORDS = [{"TRANSACTION_ID": 7, "TX_AMOUNT": 12.5}, {"TX_AMOUNT": 90000}, {"TX_AMOUNT": "x"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps({"records": RECORDS}),
        "\n".join(map(json.dumps, RECORDS)),
        "TRANSACTION_ID,TX_AMOUNT\n7,12.5\n,90000\n,x\n",
        "TRANSACTION_ID;TX_AMOUNT\r\n7;12.5\r\n;90000\r\n;x\r\n",
        "TRANSACTION_ID\tTX_AMOUNT\n7\t12.5\n\t90000\n\tx",
    ],
)
def test_pasted_rows_are_scored(alice, text):
    answer = alice.post("/try", **{"from": "text", "text": text})
    assert "1 of 3 flagged" in answer.text
    assert "TRANSACTION_ID 7" in answer.text
    assert "row 2" in answer.text
    assert answer.text.count("not scored</span>") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "paste one or more rows"),
        (" \n", "paste one or more rows"),
        ("TX_AMOUNT\n", "no row"),
        ("[]", "no row"),
        ("a,b\n1", "another number of cells"),
        ("a,b\n1,2,3", "another number of cells"),
        ("{broken", "line 1: not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"records": 3}', "expected a JSON object"),
        ('{"a": 1}\n3', "expected a JSON object"),
        ("TX_AMOUNT\n" + "1\n" * 201, "at most 200"),
        ('a\n"' + "x" * 140_000 + '"', "field larger"),
        ("[" * 5_000, "not JSON"),
    ],
)
def test_what_cannot_be_read_is_explained_and_kept(alice, text, said):
    answer = alice.post("/try", **{"from": "text", "text": text})
    assert answer.status_code == 422
    assert said in answer.text
    if "\n" not in text and len(text) < 20:
        assert text.replace('"', "&#34;") in answer.text


def test_foreign_columns_are_explained(alice):
    answer = alice.post("/try", **{"from": "text", "text": "tx_amount\n5"})
    assert "may mean &#39;TX_AMOUNT&#39;" in answer.text


def test_nothing_is_stored_or_counted(service, alice):
    before = service.cases.count()
    alice.post("/try", **{"from": "fields", "cell:TX_AMOUNT": "90000"})
    model = service.app.state.store.current["fraud"]
    assert service.app.state.metrics.guarantees.tracker(model).report().rows == 0
    assert not service.app.state.cases._waiting
    assert service.cases.count() == before


def test_an_unknown_model_is_refused(alice):
    assert alice.get("/try?model=x").status_code == 404
    assert alice.post("/try", model="x", text="a").status_code == 404


def test_the_alternative_text_names_no_panel_that_is_not_drawn(service_of, keen_scanner, pngs):
    for changes, text in (
        ({"expects": False}, "The scan and its heatmap"),
        ({"localizes": False}, "The scan, what the model expected, and no heatmap"),
    ):
        scale = replace(keen_scanner.heat_scale, **changes)
        alice = service_of(replace(keen_scanner, heat_scale=scale)).visitor("alice")
        answer = alice.post("/try", files=[("files", ("a.png", pngs[0]))])
        assert f'alt="{text}' in answer.text


def test_scans_are_scored_and_drawn(service_of, keen_scanner, pngs):
    service: Service = service_of(keen_scanner)
    alice = service.visitor("alice")
    assert 'type="file"' in alice.text("/try")
    files = [("files", ("a<b.png", pngs[0])), ("files", ("c.png", b"no image"))]
    answer = alice.post("/try", files=files)
    assert answer.status_code == 200
    assert "a&lt;b.png" in answer.text
    assert answer.text.count("data:image/png;base64,iVBOR") == 1
    assert 'alt="The scan, what the model expected, and its heatmap"' in answer.text
    assert "the area from x" in answer.text
    assert answer.text.count("not scored</span>") == 1
    nothing = alice.post("/try", files=[("files", ("", b""))])
    assert nothing.status_code == 422
    assert "choose one or more images" in nothing.text
