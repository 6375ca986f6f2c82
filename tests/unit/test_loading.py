"""Imports without garbage collection, which is enabled again afterwards."""

from __future__ import annotations

import gc
import sys

import pytest

from maecli.loading import without_collections


def test_collections_pause_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_collections():
        assert gc.isenabled() is ("torch" in sys.modules)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    try:
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled()
        with pytest.raises(ImportError), without_collections():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
