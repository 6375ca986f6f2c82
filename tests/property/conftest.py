"""Hypothesis settings: the same examples in every run, and only as many as take a few seconds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("maecli", derandomize=True, database=None, deadline=None, max_examples=80)
settings.load_profile("maecli")
