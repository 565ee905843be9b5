"""The report of one run: one HTML file that opens offline and that a beginner understands."""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from mbconv.files import write_text
from mbconv.report import findings, sections, words
from mbconv.report.commands import next_commands
from mbconv.report.folder import RunFolder, read_run


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from the run's files and return its path.

    Reads nothing outside the folder, so that a report can be remade at any time and on any
    machine. What an interrupted run has not written yet is left out. Raises UserError where the
    folder is no run, a file in it is broken, or the disk is full.
    """
    run = read_run(run_dir)
    page = template("run.html.j2").render(_context(run))
    path = run.path / "report.html"
    # A file name whose bytes are no UTF-8 is read with lone surrogates, which no page can hold.
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


@cache
def template(name: str) -> Template:
    """One of the package's templates; what is undefined in it is an error."""
    environment = Environment(
        loader=PackageLoader("mbconv.report"),
        autoescape=True,  # class names and paths are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "count": words.count}
    return environment.get_template(name)


def _context(run: RunFolder) -> dict[str, Any]:
    script = files("mbconv.report").joinpath("templates/run.js").read_text(encoding="utf-8")
    return {
        "title": sections.title(run),
        "kicker": sections.kicker(run),
        "name": words.short(run.path.resolve().name),
        "warnings": findings.warnings(run),
        "score": sections.score(run),
        "curve": sections.curve(run),
        "confusion": sections.confusion(run),
        "bars": sections.bars(run),
        "mistakes": sections.mistakes(run),
        "calibration": sections.calibration(run),
        "data": sections.data(run),
        "machine": sections.machine(run),
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
        "commands": next_commands(run),
        "script": script,
        # The page's policy runs the script with this hash and no other.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
