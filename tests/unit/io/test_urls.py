"""URLs: how they are recognised, and that their secrets are not shown."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest

from mae.io.text import shown
from mae.io.urls import public_name, public_url, url_of, without_secrets
from mae.options import path_of


def test_what_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert url_of(Path("s3://bucket/a.tar")) == "s3://bucket/a.tar"
    assert url_of(Path("https://host/a.tar?x=1").absolute()) == "https://host/a.tar?x=1"
    assert url_of(Path("S3://Bucket/A.tar")) == "s3://Bucket/A.tar"
    assert url_of(Path("photos")) is None
    assert url_of(Path("x" * 5000)) is None
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    Path("s3:/bucket").touch()
    assert url_of(Path("s3://bucket")) is None  # a file of that name


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a//b/./c.tar",
        "https://host//a.tar",
        "https://host/a.tar?signature=x//y/./z/&to=https://other//",
        "https://host/a/../b.tar",
    ],
)
def test_slashes_of_a_url_are_kept(url: str) -> None:
    path = path_of(url)
    assert (url_of(path), url_of(path.absolute())) == (url, url)
    assert public_name(path) == url.partition("?")[0]
    assert shown(path) == url
    assert path_of(path) == path
    assert [path_of(text) for text in ("a//b/", "s3:/a//b", "s3://bucket/a.tar/")] == [
        Path(text) for text in ("a/b", "s3:/a/b", "s3://bucket/a.tar")
    ]


def test_paths_of_windows() -> None:
    url = PureWindowsPath("s3://bucket/train-{0..9}.tar")
    assert url_of(url) == "s3://bucket/train-{0..9}.tar"  # type: ignore[arg-type]
    assert shown(url / "cat" / "1.png") == "s3://bucket/train-{0..9}.tar/cat/1.png"  # type: ignore[arg-type]
    folder = PureWindowsPath(r"C:\photos\cat")
    assert url_of(folder) is None  # type: ignore[arg-type]
    assert shown(folder) == r"C:\photos\cat"  # type: ignore[arg-type]


def test_no_secret_is_shown() -> None:
    url = "https://me:pass-word@host:8443/a/b.tar?X-Amz-Signature=abcdef&x=1#part"
    assert public_url(url) == "https://host:8443/a/b.tar"
    assert public_name(Path(url)) == "https://host:8443/a/b.tar"
    assert public_name(Path("photos/x")) == "photos/x"
    said = without_secrets(f"403, url='{url}' (me:pass-word) ?X-Amz-Signature=other", url)
    for secret in ("abcdef", "pass-word", "other"):
        assert secret not in said


@pytest.mark.parametrize(
    "url",
    [
        *(f"s3://KEY:{secret}@bucket/a.tar" for secret in ("secret", "se/cret", "se#cr?et", "12/cret", "a@b/cret")),
        *(f"https://KEY:{secret}@bucket/a.tar" for secret in ("secret", "se/cret", "se#cr?et", "/cret", "a@b/cret")),
        *(f"https://KEY:{secret}@bucket/a.tar" for secret in ("12/cret", "12?cret", "12#cret", "12/a@b/c")),
    ],
)
def test_no_password_is_shown_whatever_it_holds(url: str) -> None:
    scheme, secret = url.split("://")[0], url.split("KEY:")[1].removesuffix("@bucket/a.tar")
    assert public_url(url) == f"{scheme}://bucket/a.tar"
    said = without_secrets(f"{url} {secret} KEY:{secret}", url)
    assert said.replace("...", "").split() == [f"{scheme}://@bucket/a.tar"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://KEY:secret", "s3://"),
        ("s3://12:34/cret@bucket/a.tar", "s3://bucket/a.tar"),
        ("s3://bucket/a#1.tar", "s3://bucket/a#1.tar"),
        ("s3://bucket/a@2.tar", "s3://bucket/a@2.tar"),
        ("hf://datasets/me/photos@main/a.tar", "hf://datasets/me/photos@main/a.tar"),
        ("https://host:8443/a@2.tar", "https://2.tar"),  # host:8443/a could be a user and a password
        ("https://host:8443/a%402.tar", "https://host:8443/a%402.tar"),
        ("https://host/a@2.tar", "https://host/a@2.tar"),
        ("https://host:8443/a.tar", "https://host:8443/a.tar"),
        ("https://127.0.0.1:80/a@2.tar", "https://127.0.0.1:80/a@2.tar"),
        ("http://localhost:80/a@2.tar", "http://localhost:80/a@2.tar"),
        ("https://[::1]:80/a@2.tar", "https://[::1]:80/a@2.tar"),
        ("http://[::1]/a@2.tar", "http://[::1]/a@2.tar"),
    ],
)
def test_public_names_of_unusual_urls(url: str, name: str) -> None:
    assert public_url(url) == name
