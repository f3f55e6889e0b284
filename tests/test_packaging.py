"""What a package registry would show; `.ci/package` builds the archives and looks into them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import foveate

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOOK = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
REPOSITORY = PROJECT["project"]["urls"]["Repository"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"```.*?```", re.DOTALL)


def long_description() -> str:
    """README.md as the build hook makes it."""
    assert HOOK["fragments"] == [{"path": "README.md"}]
    text = README
    for rule in HOOK["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text.replace("$HFPR_VERSION", foveate.__version__)


def test_no_link_of_the_long_description_is_relative():
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", long_description()))
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []


def test_they_lead_to_what_readme_links_to():
    before = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", FENCED.sub("", README))
    after = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", FENCED.sub("", long_description()))
    raw, pages = REPOSITORY.replace("//github.com", "//raw.githubusercontent.com"), f"{REPOSITORY}/blob"
    for (image, old), (_, new) in zip(before, after, strict=True):
        home = raw if image else pages
        assert new == (old if old.startswith("https://") else f"{home}/v{foveate.__version__}/{old}")


def test_code_and_html_need_no_rewriting():
    assert FENCED.findall(long_description()) == FENCED.findall(README)
    assert not re.search(r"<(img|a)\b|^\[[^\]]+\]:", README, flags=re.MULTILINE)  # of these the hook knows nothing


def test_project_urls():
    urls = PROJECT["project"]["urls"]
    assert {"Repository", "Documentation", "Issues", "Changelog"} <= set(urls)
    for url in urls.values():
        assert url.startswith(REPOSITORY)
        if "/blob/main/" in url:
            assert (ROOT / url.split("/blob/main/")[1]).is_file()


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", text, flags=re.MULTILINE)
    assert versions[0] == foveate.__version__


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "src/foveate/__init__.py"}
