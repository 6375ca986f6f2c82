"""The built-in weights: the files that come with the package, and their checksum. Standard library only, no network."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mae.errors import CheckpointError

BUILTIN = "builtin"  # name of these weights on the command line
DEFAULT_RUN = Path("run")  # default folder of ``pretrain``
WEIGHTS_FILE = f"{BUILTIN}.safetensors"
CHECKSUM_FILE = f"{BUILTIN}.sha256"  # as ``sha256sum`` writes it, so that ``sha256sum -c`` checks it
CARD_FILE = "MODEL_CARD.md"
RECIPE_FILE = "config.toml"


def builtin_folder() -> Path:
    """The folder of the built-in weights, their checksum, card and recipe.

    The environment variable ``MAECLI_BUILTIN`` can name another folder with the same files, for a group's own weights.
    """
    if named := os.environ.get("MAECLI_BUILTIN"):
        return Path(named)
    return Path(__file__).parents[1] / "weights"


def builtin_file() -> Path:
    """Path of the built-in weights, after verifying their checksum.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    folder = builtin_folder()
    path = folder / WEIGHTS_FILE
    try:
        wanted = (folder / CHECKSUM_FILE).read_text(encoding="ascii").split()[0]
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"the built-in weights cannot be read: {error.filename}: {error.strerror}", hint=_repair()
        ) from None
    except (IndexError, UnicodeDecodeError):
        raise CheckpointError(
            f"the built-in weights cannot be checked: {folder / CHECKSUM_FILE} holds no checksum", hint=_repair()
        ) from None
    if got != wanted:
        raise CheckpointError(
            f"the built-in weights are damaged: the SHA-256 of {path} must be {wanted[:64]}; got {got}", hint=_repair()
        )
    return path


def _repair() -> str:
    if "MAECLI_BUILTIN" in os.environ:
        return "MAECLI_BUILTIN names the folder; unset it for the weights that come with maecli"
    return "install maecli again (pip install --force-reinstall), or give other weights with --checkpoint"
