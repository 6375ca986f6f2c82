"""Reading a TOML file of settings. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mae.errors import ConfigError
from mae.io.text import shown
from mae.options import STANDARD_STREAM

LARGEST_TOML = 1_000_000  # bytes; a file of all settings with long lists of folders has a few thousand


def read_toml(path: Path, flag: str) -> dict[str, Any]:
    """Read the values of a settings file by field name; ``flag`` is the option that named the file.

    Raises:
        ConfigError: The file is missing, larger than ``LARGEST_TOML``, or not TOML.
    """
    import tomllib

    where = f"{flag} {shown(path)}"
    if STANDARD_STREAM in (path, path.parent):  # the file itself, or the folder that it lies in
        raise ConfigError(f"{flag} - reads no standard input", hint="give its name on this machine")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{where} is a device, a pipe or a socket, not a file")
        with path.open("rb") as file:
            content = file.read(LARGEST_TOML + 1)
    except (OSError, ValueError) as error:  # ValueError: the path holds a zero byte
        raise ConfigError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > LARGEST_TOML:
        raise ConfigError(
            f"{where} is larger than {LARGEST_TOML // 1000} kB, so it is not a settings file",
            hint="give the TOML file, not a checkpoint or data",
        )
    try:
        values = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is not TOML: its byte {error.start} is not UTF-8", hint="save it as text in UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a nest of thousands of brackets
        reason = str(error).splitlines()[0] if isinstance(error, tomllib.TOMLDecodeError) else "too long or too deep"
        raise ConfigError(f"{where} is not TOML: {reason}") from None
    named: dict[str, Any] = {}
    for name, value in values.items():
        field = name.replace("-", "_")
        if field in named:
            raise ConfigError(f"{where} has {field} twice, with - and with _", hint="keep one of them")
        named[field] = value
    return named
