"""What pip notes of a package that it installs, written without pip."""

from __future__ import annotations

import tomllib
from pathlib import Path


def write_dist_info(package: Path, site: Path) -> set[str]:
    """The metadata and entry points of a folder with a pyproject.toml, into `site`; returns its modules' names."""
    told = tomllib.loads((package / "pyproject.toml").read_text())
    project, found = told["project"], told["tool"]["setuptools"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(about)
    offers = project["entry-points"].items()
    points = [f"[{group}]\n{name} = {target}\n" for group, parts in offers for name, target in parts.items()]
    (info / "entry_points.txt").write_text("".join(points))
    return {*found.get("py-modules", ()), *found.get("packages", ())}
