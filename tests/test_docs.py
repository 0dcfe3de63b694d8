"""Compare the documents with the code: commands, keys, settings, modules and links."""

import re
import shlex
from copy import deepcopy
from pathlib import Path

import click
import pytest
import typer
import yaml

from anomaly_vae.config import ImageConfig, TabularConfig, validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.config.loading import fields
from pipelines.cli import app
from serving.settings import describe_settings
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
COMMAND_PAGE = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
COMMANDS: click.Group = typer.main.get_command(app)  # type: ignore[assignment]
MINIMAL = {"name": "x", "data": {"path": "x.parquet"}}


def snippets(text: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [content for marked, content in fences if marked == language]


def command_lines(text: str) -> list[list[str]]:
    """Return the arguments of each command line in the unmarked code blocks of a page."""
    blocks = "\n".join(snippets(text, "")).replace("\\\n", " ")
    lines = re.findall(r"^ *(anomaly-vae .*?)(?:\s{2,}#.*)?$", blocks, re.MULTILINE)
    return [shlex.split(line)[1:] for line in lines]


def every_command_line() -> list[list[str]]:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    return sorted(line for text in (README, *texts) for line in command_lines(text))


@pytest.mark.parametrize("line", every_command_line(), ids=" ".join)
def test_commands_of_the_documents_parse(line: list[str]) -> None:
    name, *arguments = line
    COMMANDS.commands[name].make_context(name, arguments)


def test_the_readme_has_commands() -> None:
    assert len(command_lines(README)) >= 3


@pytest.mark.parametrize("name", sorted(COMMANDS.commands))
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"`{name}\b", COMMAND_PAGE)


def documented_keys(text: str) -> dict[str, str]:
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| [^|]* \| (.*) \|$", text, re.MULTILINE)
    return dict(rows)


TABLES, _, IMAGES = CONFIGURATION.partition("\n## Images\n")
OF_TABLES = documented_keys(TABLES)
OF_IMAGES = OF_TABLES | documented_keys(IMAGES)
"""Where images say nothing else, they have what tables have."""


@pytest.mark.parametrize(("key", "description"), list(fields(TabularConfig)))
def test_every_key_of_a_table_is_documented_as_the_code_says(key: str, description: str) -> None:
    assert OF_TABLES.get(key) == description


@pytest.mark.parametrize(("key", "description"), list(fields(ImageConfig)))
def test_every_key_of_images_is_documented_as_the_code_says(key: str, description: str) -> None:
    assert OF_IMAGES.get(key) == description


def test_documented_keys_exist() -> None:
    assert set(OF_TABLES) == {key for key, _ in fields(TabularConfig)}
    assert set(documented_keys(IMAGES)) <= {key for key, _ in fields(ImageConfig)}


WITH_SNIPPETS = ("README", "docs/configuration", "docs/promotion", "docs/scans", "docs/thresholds")
SNIPPETS = [
    snippet
    for page in WITH_SNIPPETS
    for snippet in snippets((ROOT / f"{page}.md").read_text(encoding="utf-8"), "yaml")
]


@pytest.mark.parametrize("text", SNIPPETS)
def test_configurations_in_the_documents_are_valid(text: str) -> None:
    content = merged(deepcopy(MINIMAL), yaml.safe_load(text))
    if content.get("kind") != "image":
        content["data"].setdefault("time", "created_at")  # which some of the splits need
    assert validate_config(content).recorded()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert validate_config(yaml.safe_load(path.read_text(encoding="utf-8"))).name


def test_the_lines_that_the_fraud_configuration_comments_out_are_the_other_way() -> None:
    """A user who uncomments them has what fraud-windows.yaml says."""
    text = (ROOT / "configs" / "fraud.yaml").read_text(encoding="utf-8")
    content = text[text.index("\nkind:") :]
    uncommented = yaml.safe_load(re.sub(r"^#(?=  )", "", content, flags=re.MULTILINE))
    other = yaml.safe_load((ROOT / "configs" / "fraud-windows.yaml").read_text(encoding="utf-8"))
    assert uncommented["data"].pop("ignore")
    assert {**uncommented, "name": other["name"]} == other


@pytest.mark.parametrize("setting", list(describe_settings()), ids=lambda setting: setting.name)
def test_every_setting_of_the_service_is_documented_as_the_code_says(setting: object) -> None:
    name, default, description = (
        getattr(setting, part) for part in ("name", "default", "description")
    )
    shown = f"`{default}`" if default else ""
    assert f"| `{name}` | {shown} | {description} |" in SERVING


def test_the_architecture_names_every_module() -> None:
    for package in ("anomaly_vae", "pipelines", "serving", "tools"):
        modules = {p.name for p in (ROOT / package).rglob("*.py")} - {"__init__.py"}
        missing = sorted(name for name in modules if name not in ARCHITECTURE)
        assert not missing, f"docs/architecture.md lacks {missing} of {package}"


def test_the_architecture_names_no_module_that_is_gone() -> None:
    tree = snippets(ARCHITECTURE, "")[0]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    tracked = ("anomaly_vae", "pipelines", "serving", "tools", "tests", "benchmarks")
    real = {path.name for top in tracked for path in (ROOT / top).rglob("*.py")}
    assert named <= real


def walk_names() -> list[str]:
    """Return every name in code style in the walks of docs/architecture.md."""
    walks = re.findall(r"^## Walk.*?(?=^## )", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    return sorted(set(re.findall(r"`([A-Za-z_][\w./]*)`", "".join(walks))))


SOURCES = [
    path
    for top in ("anomaly_vae", "pipelines", "serving", "tests")
    for path in (ROOT / top).rglob("*.py")
]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


@pytest.mark.parametrize("name", walk_names())
def test_the_walks_of_the_architecture_name_what_exists(name: str) -> None:
    if name.endswith(".py"):
        assert any(str(path).endswith(f"/{name}") for path in SOURCES)
    else:
        last = name.rpartition(".")[2]
        assert re.search(
            rf"\b(def|class) {last}\b|^ +{last}:|[\"']{last}[\"']", SOURCE, re.MULTILINE
        )


LINK = re.compile(r"\]\(([^)#:]*)#?([^):]*)\)")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    tops = (*ROOT.glob("*.md"), ROOT / "deploy/README.md", ROOT / "benchmarks/RESULTS.md")
    for path in (*tops, *(ROOT / "docs").glob("*.md")):
        for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
            linked = path.parent / target if target else path
            assert linked.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in anchors(linked), (
                f"{path.name} links to {target}#{anchor}"
            )
