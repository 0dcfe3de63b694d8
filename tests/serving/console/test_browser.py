"""The console in a real browser: by keyboard only, on a narrow screen, and by two at once.

The browser and the service start once for all of these tests.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anomaly_vae.review import CaseReason
from serving.models.store import ServedModel
from tests.support.browser import Browser, Page, needs_chromium, started_browser
from tests.support.console import KEYS, SECRETS, Service
from tests.support.image_uploads import image_file
from tests.support.review_cases import case_of, count_p_values, empty, fill
from tests.support.scans import blobs
from tests.support.scoring_service import serving

pytestmark = [pytest.mark.e2e, needs_chromium]

SCRIPT = '"><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
"""Text that runs if a page forgets to escape it."""
VIEWS = ("", "/cases/1", "/what-if", "/models", "/try", "/batches", "/snoozes", "/nowhere")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser."""
    with started_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def running(
    served: ServedModel,
    scanner: ServedModel,
    empty_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Return a service of a table and of scans, and its address."""
    folder = tmp_path_factory.mktemp("running")
    shutil.copy(empty_store, folder / "cases.db")
    service = Service([served, scanner], folder, api_keys=KEYS)
    with serving(service.app) as address:
        yield service, address
    service.close()


@pytest.fixture
def site(running: tuple[Service, str]) -> tuple[Service, str]:
    """Return the service without cases, and its address."""
    empty(running[0].cases)
    return running


@pytest.fixture(scope="module")
def people(chromium: Browser, running: tuple[Service, str]) -> dict[str, Page]:
    """Return the browsers of two people, who sign in by keyboard."""
    pages = {name: chromium.page() for name in ("alice", "bob")}
    for name, page in pages.items():
        page.open(f"{running[1]}/console")
        page.wait("document.activeElement.id === 'key'")
        page.write(SECRETS[name])
        page.press("Enter")
        page.wait("document.body.dataset.page === 'queue'")
    return pages


@pytest.fixture
def alice(people: dict[str, Page]) -> Iterator[Page]:
    """Return the browser of a reviewer; no page may complain about anything."""
    page = people["alice"]
    page.events.clear()
    yield page
    assert not page.problems()
    page.resize(1280, 860)


def labels(service: Service) -> dict[int, tuple[str, str]]:
    found = {one.number: one.label for one in service.cases.all_cases()}
    return {number: (one.label, one.who) for number, one in found.items() if one}


def selected(page: Page) -> str:
    return str(page.run("document.querySelector('tr.selected').id"))


# ---------------------------------------------------------------- keyboard


def test_twenty_cases_are_reviewed_by_keyboard_in_the_queue(site, alice) -> None:
    service, address = site
    fill(service.cases, 30)
    alice.open(f"{address}/console")
    keys = {"a": "anomaly", "n": "normal", "u": "unsure"}
    pressed = ["aanuu"[number % 5] for number in range(20)]
    alice.press(*pressed)  # as fast as a program can
    alice.wait("document.querySelectorAll('.queue .by').length === 20")
    assert selected(alice) == "case-21"
    expected = {n: (keys[key], "alice") for n, key in enumerate(pressed, 1)}
    assert labels(service) == expected
    alice.press("z")  # the last one
    alice.wait("document.querySelector('.toast').textContent.includes('undone')")
    assert service.cases.label_history("fraud", "T00019")[-1].note == "undone"
    alice.press("k", "k", "j")
    assert selected(alice) == "case-19"


def test_cases_are_reviewed_by_keyboard_one_by_one(site, alice) -> None:
    service, address = site
    fill(service.cases, 6)
    alice.open(f"{address}/console")
    alice.press("j", "j", "k", "Enter")
    alice.wait("document.querySelector('h1').textContent.startsWith('Case 2')")
    alice.press("e")
    alice.write("card stolen")
    alice.press("Escape", "a")
    alice.wait("document.querySelector('h1').textContent.startsWith('Case 3')")
    label = service.cases.case(2).label
    assert (label.label, label.who, label.note) == ("anomaly", "alice", "card stolen")
    assert alice.run("document.getElementById('note').value") == ""
    alice.press("z")
    alice.wait("document.querySelector('h1').textContent.startsWith('Case 2')")
    assert service.cases.case(2).status == "open"
    alice.press("j")
    alice.wait("document.querySelector('h1').textContent.startsWith('Case 3')")
    alice.press("s")
    alice.write("new phone")
    alice.press("Enter")
    alice.wait("document.querySelector('h1').textContent.startsWith('Case 4')")
    assert [one.reason for one in service.cases.active_snoozes()] == ["new phone"]
    alice.press("q")
    alice.wait("document.body.dataset.page === 'queue'")
    alice.press("?")
    alice.wait("document.getElementById('help').open")
    alice.press("Escape")
    alice.wait("!document.getElementById('help').open")
    alice.press("/")
    alice.write("C00")
    assert labels(service) == {2: ("unsure", "alice")}


def test_letters_that_are_written_into_a_field_are_no_verdicts(site, alice) -> None:
    service, address = site
    fill(service.cases, 2)
    alice.open(f"{address}/console/cases/1")
    alice.press("e", "a", "n", "u", "j")
    assert alice.run("document.getElementById('note').value") == "anuj"
    assert not labels(service)
    alice.open(f"{address}/console/cases/1")  # a draft survives
    assert alice.run("document.getElementById('note').value") == "anuj"
    alice.run("sessionStorage.clear()")


# ---------------------------------------------------------------- two at once


def test_two_reviewers_at_once_lose_nothing(site, alice, people) -> None:
    service, address = site
    fill(service.cases, 3)
    bob = people["bob"]
    for page in (alice, bob):
        page.open(f"{address}/console/cases/1")
    bob.press("n")
    bob.wait("document.querySelector('h1').textContent.startsWith('Case 2')")
    alice.press("a")
    alice.wait("document.querySelector('.conflict-banner')")
    assert "bob decided normal" in alice.text()
    kept = [(one.label, one.who) for one in service.cases.label_history("fraud", "T00000")]
    assert kept == [("normal", "bob"), ("anomaly", "alice")]
    for page in (alice, bob):
        page.open(f"{address}/console")
    bob.press("a")
    bob.wait("document.querySelector('tr.decided')")
    alice.press("n")
    alice.wait("document.querySelector('.changed')")
    assert "bob decided “anomaly” meanwhile" in alice.text()
    assert len(service.cases.label_history("fraud", "T00001")) == 2


# ---------------------------------------------------------------- views


def test_every_view_is_whole_on_a_narrow_and_on_a_wide_screen(site, alice, tmp_path) -> None:
    service, address = site
    fill(service.cases, 12)
    count_p_values(service.cases, days=3, rows=300)
    for scheme, width in (("light", 1280), ("dark", 390)):
        alice.use_scheme(scheme)
        alice.resize(width, 844)
        for view in VIEWS:
            alice.open(f"{address}/console{view}")
            assert alice.run("document.documentElement.scrollWidth") <= width, view
            assert alice.run("document.querySelectorAll('h1').length") == 1, view
            unnamed = alice.run(UNNAMED)
            assert not unnamed, (view, unnamed)
            assert not alice.run(LOW_CONTRAST), (view, scheme, alice.run(LOW_CONTRAST))
    own = [url for url in alice.requested() if not url.startswith((address, "data:"))]
    assert not own
    alice.screenshot(tmp_path / "narrow.png")
    assert (tmp_path / "narrow.png").read_bytes().startswith(b"\x89PNG")


UNNAMED = """
[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, img, svg')]
  .filter(one => !(one.labels && one.labels.length) && !one.getAttribute('aria-label') &&
    !one.closest('[aria-hidden]') && !one.alt && !one.textContent.trim() &&
    !one.closest('svg[role=img]'))
  .map(one => one.outerHTML)
"""
"""Controls and pictures that a screen reader cannot name."""
LOW_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const colour = text => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = colour(getComputedStyle(one).backgroundColor);
      if (found[3] > 200) return found;
    }
    return [255, 255, 255, 255];
  };
  const low = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !one.checkVisibility() || one.closest('svg, .hidden, .skip, option')) continue;
    const [a, b] = [light(colour(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push([one.outerHTML.slice(0, 120), ratio]);
  }
  return low.length ? JSON.stringify(low.slice(0, 3)) : '';
})()
"""
"""Texts with less contrast than WCAG 2.2 asks for (4.5 : 1)."""


def test_an_error_is_shown_where_it_happens(site, alice) -> None:
    service, address = site
    fill(service.cases, 2)
    alice.open(f"{address}/console/nowhere")
    assert "no such page" in alice.text()
    alice.open(f"{address}/console")
    alice.run("document.querySelector('#case-1 [name=form_token]').value = 'x'")
    alice.press("a")
    alice.wait("!document.querySelector('.toast').hidden")
    assert "another session" in alice.text()
    assert not labels(service)
    alice.events.clear()


def test_what_if_follows_the_slider(site, alice) -> None:
    service, address = site
    count_p_values(service.cases, days=3, rows=300)
    alice.open(f"{address}/console/what-if")
    before = alice.run("document.getElementById('figures').innerText")
    alice.run("document.getElementById('step').focus()")
    for _ in range(6):
        alice("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", windowsVirtualKeyCode=37)
    alice.wait("location.search.includes('step=')")
    after = alice.run("document.getElementById('figures').innerText")
    assert before != after
    assert alice.run("document.getElementById('alpha').textContent") == "0.008"


def test_scans_are_dropped_and_drawn(site, alice, tmp_path) -> None:
    _, address = site
    for number, image in enumerate(blobs(2, seed=1, size=60)):
        (tmp_path / f"{number}.png").write_bytes(image_file(image))
    (tmp_path / "no.png").write_text("no image")
    alice.open(f"{address}/console/try?model=scans")
    node = alice("DOM.getDocument")["root"]["nodeId"]
    found = alice("DOM.querySelector", nodeId=node, selector="[type=file]")["nodeId"]
    files = [str(tmp_path / name) for name in ("0.png", "1.png", "no.png")]
    alice("DOM.setFileInputFiles", nodeId=found, files=files)
    alice.wait("document.querySelector('.chosen').textContent.includes('no.png')")
    alice.run("document.querySelector('.primary').click()")
    alice.wait("document.querySelectorAll('.tried').length === 3")
    assert alice.run("document.querySelectorAll('.tried img').length") == 2
    assert alice.run("document.querySelector('.tried img').naturalWidth") > 300
    assert "not scored" in alice.text()


# ---------------------------------------------------------------- hostile and large


def test_a_script_in_any_text_is_shown_and_never_run(site, alice) -> None:
    service, address = site
    text = SCRIPT
    service.cases.add(
        [
            case_of(
                number, row=f"{text}{number}", model="fraud" if number else text, entity=text,
                entity_column=text, amount_column=text, unit=text, unusual_input=text,
                fields={text: text}, reasons=[CaseReason(text, 1.0, text, text, text)],
            )
            for number in range(2)
        ]
    )  # fmt: skip
    alice.open(f"{address}/console/cases/2")
    alice.press("e")
    alice.write(text)
    alice.press("Escape", "a")
    alice.wait("!document.getElementById('note') || !document.getElementById('note').value")
    alice.open(f"{address}/console/cases/2")
    alice.press("s")
    alice.write(text)
    alice.press("Enter")
    alice.wait("document.querySelector('[role=status]')")
    views = ("?status=all", "/cases/1", "/cases/2", "/cases/1?done=2", "/snoozes", "/what-if")
    for view in (*views, f"?entity={text}&row_id={text}&model={text}&order={text}"):
        alice.open(f"{address}/console{view}")
        assert "<script>window.hacked" in alice.text() + alice.run(
            "[...document.querySelectorAll('input, option')].map(one => one.value).join()"
        ), view
        assert not alice.run("window.hacked || document.querySelector('main script, img[src=x]')")
    assert service.cases.label_history("fraud", f"{text}1")[-1].note == text
    alice.run("sessionStorage.clear()")


def test_ten_thousand_cases(site, alice) -> None:
    service, address = site
    fill(service.cases, 10_000)
    alice.open(f"{address}/console?page=37")
    assert alice.run("document.querySelectorAll('.queue tbody tr').length") == 100
    assert "10\u202f000 cases" in alice.text()
    alice.press("a")
    alice.wait("document.querySelector('tr.decided')")
    assert labels(service) == {3601: ("anomaly", "alice")}
