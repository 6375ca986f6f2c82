"""How far the settings of a run travel through the code: `python benchmarks/config_walk.py [CHECKOUT]`.

A tiny run is trained from its first step, stopped after one epoch and resumed to a third, one process and no loader
processes, with the profiler of the interpreter switched on. From `mae.training.pretrain.pretrain` on it is recorded
where the whole config is:

- A function of `mae` *has* the config if it is called with it as an argument, holds it in a local variable, or reads a
  field of it through any object (`self.config.epochs`, `run.config.epochs`). Methods of the config itself, and
  functions that read the fields of any dataclass (`mae.options`), do not count.
- The *walk* is the sequence of such functions in the order in which they run; staying in one is no step of it, and each
  step from one function to another counts once, however often a loop repeats it.
- A *return* is a step of the walk to a function that it has been in before.

So a chain of functions that hand the config on, and a function that reads it between calls of others that read it too,
make returns; a function that takes the two numbers it needs makes none. Code that the run does not reach (several
processes, non-finite losses, errors) is not counted. The figures of two versions compare only if this script made both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SETTINGS = {
    "variant": "vit_tiny",
    "image_size": (32, 32),
    "patch_size": 16,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "batch_size": 4,
    "workers": 0,
    "preview_every": 1,
    "save_every": 1,
    "device": "cpu",
    "precision": "fp32",
}


@dataclasses.dataclass
class Walk:
    """Where the config was.

    Attributes:
        functions: Each function that had it, in the order of the first time.
        steps: Each step from one to another.
        returns: How many of these led to a function that it had been in before.
    """

    functions: list[str] = dataclasses.field(default_factory=list)
    steps: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    returns: int = 0
    last: str = ""

    def arrive(self, function: str) -> None:
        """The config is in a function now."""
        if function == self.last:
            return
        known = function in self.functions
        if self.last and (self.last, function) not in self.steps:
            self.steps.append((self.last, function))
            self.returns += known
        if not known:
            self.functions.append(function)
        self.last = function

    def report(self) -> dict[str, Any]:
        """The figures."""
        modules = list(dict.fromkeys(name.partition(":")[0] for name in self.functions))
        return {
            "functions": len(self.functions),
            "modules": len(modules),
            "steps": len(self.steps),
            "returns": self.returns,
            "where": self.functions,
        }


class Tracer:
    """Follows the objects of a config class through the functions of a package.

    Args:
        config_class: The class.
        package: The folder whose functions count.
    """

    def __init__(self, config_class: type, package: Path) -> None:
        self.config_class = config_class
        self.package = str(package) + "/"
        self.fields = {field.name for field in dataclasses.fields(config_class)}
        self.walk = Walk()
        self.names: dict[Any, str | None] = {}

    def name(self, frame: FrameType) -> str | None:
        """``module:function`` of a frame whose function counts; None of others."""
        code = frame.f_code
        if code not in self.names:
            inside = code.co_filename.startswith(self.package)
            place = code.co_filename.removeprefix(self.package).removesuffix(".py")
            counts = inside and place != "options" and not code.co_name.startswith("<module")
            # A lambda or comprehension belongs to the function that it is written in.
            function = code.co_qualname.partition(".<locals>")[0]
            self.names[code] = f"{place.replace('/', '.')}:{function}" if counts else None
        return self.names[code]

    def is_method(self, frame: FrameType) -> bool:
        """Whether it is the config's own function, or written inside one."""
        owners = {base.__name__ for base in self.config_class.__mro__}
        return frame.f_code.co_qualname.partition(".")[0] in owners

    def on_event(self, frame: FrameType, event: str, _: Any) -> None:
        """A function is called or returns."""
        if event not in ("call", "return") or (name := self.name(frame)) is None:
            return
        held = any(isinstance(value, self.config_class) for value in frame.f_locals.values())
        if held and not self.is_method(frame):
            self.walk.arrive(name)

    def on_read(self, frame: FrameType, field: str) -> None:
        """A field of a config is read."""
        if field in self.fields and (name := self.name(frame)) is not None and not self.is_method(frame):
            self.walk.arrive(name)


def follow(checkout: Path, images: Path, folder: Path) -> Walk:
    """Train and resume a tiny run with the code of a checkout.

    Args:
        checkout: The folder that holds ``mae``.
        images: Photographs to learn from.
        folder: Where the runs are written.
    """
    sys.path.insert(0, str(checkout))
    from mae.training import pretrain as module
    from mae.training.config import PretrainConfig

    settings = {name: value for name, value in SETTINGS.items() if name in PretrainConfig.__dataclass_fields__}
    config = PretrainConfig(data=(images,), out=folder / "run", **settings)  # type: ignore[arg-type]
    resumed = dataclasses.replace(config, resume=folder / "run", epochs=3)

    tracer = Tracer(PretrainConfig, checkout / "mae")
    plain_read = PretrainConfig.__getattribute__

    def read(self: Any, name: str) -> Any:
        if threading.current_thread() is threading.main_thread():
            tracer.on_read(sys._getframe(1), name)
        return plain_read(self, name)

    type.__setattr__(PretrainConfig, "__getattribute__", read)
    for one in (config, resumed):
        sys.setprofile(tracer.on_event)
        try:
            module.pretrain(one)
        finally:
            sys.setprofile(None)
    return tracer.walk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=HERE, help="a checkout; the one of this file")
    parser.add_argument("--images", type=Path, default=HERE / "sample_images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        walk = follow(arguments.checkout.resolve(), arguments.images.resolve(), Path(folder))
    print(json.dumps(walk.report(), indent=2))


if __name__ == "__main__":
    main()
