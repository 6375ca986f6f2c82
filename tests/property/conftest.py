"""The same examples every time, and no more than take a few seconds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("maecli", derandomize=True, database=None, deadline=None, max_examples=80)
settings.load_profile("maecli")
