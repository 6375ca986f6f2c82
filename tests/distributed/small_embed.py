"""Runs the real ``embed`` with parts of four images, for processes that torchrun starts."""

from __future__ import annotations

from mae.evaluation import store
from maecli.app import app

if __name__ == "__main__":
    store.MOST_PART_IMAGES = 4
    app()
