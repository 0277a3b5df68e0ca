"""The version, the changelog and the page on migration agree."""

import re
from datetime import date
from pathlib import Path

from packaging.version import Version

import quietstar

HOME = Path(__file__).parents[1]
RELEASES = re.findall(r"^## (\S+) - (\S+)$", (HOME / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_newest_release_of_the_changelog_is_this_version():
    headings = re.findall(r"^## (.+)$", (HOME / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings == ["Unreleased", *(f"{version} - {day}" for version, day in RELEASES)]
    assert RELEASES[0][0] == quietstar.__version__
    assert sorted(RELEASES, key=lambda release: Version(release[0]), reverse=True) == RELEASES
    days = [date.fromisoformat(day) for _, day in RELEASES]
    assert sorted(days, reverse=True) == days


def test_the_page_on_migration_leads_to_releases():
    pages = re.findall(r"^# From (\S+) to (\S+)$", (HOME / "docs" / "migration.md").read_text(), re.MULTILINE)
    assert pages
    for before, after in pages:
        assert Version(before) < Version(after)
        assert after in dict(RELEASES)
