"""The committed report lists the current corpus."""

from __future__ import annotations

import re
from pathlib import Path

from tests.torture.report import SECTIONS, cell

REPORT = Path(__file__).parents[2] / "docs/robustness.md"


def test_the_report_lists_every_case_with_its_exit_code() -> None:
    text = REPORT.read_text(encoding="utf-8")
    for section, trials in SECTIONS.items():
        part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
        listed = re.findall(r"^\| (.*?) \| (\d+) \| .* \| [\d.]+ \| \d+ \|$", part, re.MULTILINE)
        assert listed == [(cell(trial.name), str(trial.exit_code)) for trial in trials()], section
