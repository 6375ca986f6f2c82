"""URLs: how they are recognised, and that their secrets are not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.io.urls import public_name, public_url, url_of, without_secrets


def test_what_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert url_of(Path("s3://bucket/a.tar")) == "s3://bucket/a.tar"
    assert url_of(Path("https://host/a.tar?x=1").absolute()) == "https://host/a.tar?x=1"
    assert url_of(Path("photos")) is None
    assert url_of(Path("x" * 5000)) is None
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    Path("s3:/bucket").touch()
    assert url_of(Path("s3://bucket")) is None  # a file of that name


def test_no_secret_is_shown() -> None:
    url = "https://me:pass-word@host:8443/a/b.tar?X-Amz-Signature=abcdef&x=1#part"
    assert public_url(url) == "https://host:8443/a/b.tar"
    assert public_name(Path(url)) == "https://host:8443/a/b.tar"
    assert public_name(Path("photos/x")) == "photos/x"
    said = without_secrets(f"403, url='{url}' (me:pass-word) ?X-Amz-Signature=other", url)
    for secret in ("abcdef", "pass-word", "other"):
        assert secret not in said
