"""A hook of mkdocs: links of a page that lead out of docs/ lead to the repository, and images there come along."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)(\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of one page."""

    def rewrite(found: re.Match[str]) -> str:
        image, text, target, rest = found.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if "://" in target or target.startswith("mailto:") or path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which does not exist")
        if not image:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"{text}{config.repo_url}/{kind}/main/{path}{rest}"
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        here = posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")
        return f"!{text}{here}{rest}"

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(rewrite, part) for part in parts[::2]]
    return "".join(parts)
