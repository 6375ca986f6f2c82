"""Measures training on a GPU in at most nine minutes:

    python benchmarks/gpu.py --out results            on a machine with a CUDA device
    python benchmarks/gpu.py --small --device cpu     a rehearsal with tiny models, anywhere

Each part is a process with a time limit, and its results are written to ``gpu.json`` at once. If a part fails or
hangs, the end of its stderr is recorded; if no time is left for a part, it is recorded as skipped; then the next part
runs. ``--resume`` runs the parts that are missing in an earlier ``gpu.json``. The most important parts come first.
Needs torch; if a part needs a package or device that is missing, its result names it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mae.io.files import write_atomically  # noqa: E402

RESULTS, TABLE = "gpu.json", "gpu.txt"
FORMAT = 1
LEAST_SECONDS = 8.0  # torch alone takes most of them to load; a part that has less is not begun
STDERR_LINES = 40
FINISHED = "done"
LACKS = 3  # the exit code of a part that misses a package


@dataclasses.dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: As ``--parts`` takes it.
        runs: The module and its function.
        seconds: Its time limit.
        shows: What for.
    """

    name: str
    runs: str
    seconds: float
    shows: str


PARTS = (
    Part("environment", "gpu_parts.machine:environment", 60, "versions, clocks, measured peaks of matrix products"),
    Part(
        "steps_large",
        "gpu_parts.racing:large",
        130,
        "ViT-L: eager, compiled, beside the official arithmetic and transformers",
    ),
    Part("tests", "gpu_parts.machine:tests", 150, "the tests marked gpu"),
    Part("steps_base", "gpu_parts.racing:base", 80, "ViT-B: the same"),
    Part("graphs", "gpu_parts.racing:graphs", 100, "ViT-B in small batches: eager, compiled, CUDA graphs"),
    Part(
        "memory",
        "gpu_parts.costs:memory",
        60,
        "the largest batch of profile --fit: whether it fits, its peak beside the estimate",
    ),
    Part("resume", "gpu_parts.exact:resume", 45, "whether a resumed run is the same bit for bit"),
    Part("ranks", "gpu_parts.exact:ranks", 45, "one process over NCCL: copies (DDP) and shards (FSDP2)"),
    Part("fp16", "gpu_parts.exact:fp16", 40, "fp16 with its loss scale"),
    Part(
        "steps_huge",
        "gpu_parts.racing:huge",
        80,
        "ViT-H: eager, compiled block by block, beside the official arithmetic",
    ),
    Part("saving", "gpu_parts.costs:saving", 60, "what saving costs the training beside it"),
    Part("attention", "gpu_parts.costs:attention", 40, "which attention kernel is taken and how fast each is"),
    Part("kernels", "gpu_parts.costs:kernels", 40, "which kernels the time of a step goes to"),
    Part("feeding", "gpu_parts.images:feeding", 60, "JPEGs per second from all cores, alone and into training"),
    Part("decoding", "gpu_parts.images:decoding", 40, "JPEGs per second by nvJPEG"),
)


def main(parts: Sequence[Part] = PARTS, script: str = __file__) -> int:
    """Run all parts, or be one of them.

    Args:
        parts: In their order.
        script: What is started for each; it calls this.

    Returns:
        The exit code: 0 if no part failed.
    """
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path(), help=f"folder for {RESULTS} and {TABLE}")
    cli.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    cli.add_argument("--small", action="store_true", help="tiny models and few steps: a rehearsal")
    cli.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    cli.add_argument("--official", type=Path, help="a clone of facebookresearch/mae, to measure it too")
    cli.add_argument("--parts", nargs="+", metavar="PART", help=f"only these of {', '.join(one.name for one in parts)}")
    cli.add_argument("--resume", action="store_true", help=f"go on with {RESULTS} in the folder")
    for hidden in ("--part", "--result", "--folder", "--seconds"):
        cli.add_argument(hidden, help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.part:
        be_part(args, next(one for one in parts if one.name == args.part))
    unknown = set(args.parts or ()) - {one.name for one in parts}
    if unknown:
        cli.error(f"--parts {' '.join(sorted(unknown))}: there are {', '.join(one.name for one in parts)}")
    if args.minutes <= 0:
        cli.error(f"--minutes {args.minutes:g}: must be above 0")
    chosen = [one for one in parts if not args.parts or one.name in args.parts]
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        document = take_up(args)
    except ValueError as error:
        cli.error(str(error))
    results = Results(args.out, document)
    told = Told()
    try:
        conduct(args, chosen, results, script, told)
    finally:
        results.finish()
        print(table(results.document))
    if told.signal:
        return 128 + told.signal
    return int(any(part["status"] in ("failed", "timed out") for part in results.parts.values()))


def take_up(args: argparse.Namespace) -> dict[str, Any]:
    """A new document, or with ``--resume`` the one that is there.

    Raises:
        ValueError: One is there and ``--resume`` was not given, or it is of other settings.
    """
    same = {"format": FORMAT, "device": args.device, "small": args.small}
    path = args.out / RESULTS
    if not path.exists():
        return {**same, "command": " ".join(["python", *sys.argv]), "parts": {}}
    if not args.resume:
        raise ValueError(f"{path} is there already: --resume runs what it lacks; or give another --out")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        unlike = [f"{name} {found[name]}, not {value}" for name, value in same.items() if found[name] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is none that this command wrote ({type(error).__name__}: {error})") from None
    if unlike:
        raise ValueError(f"{path} is of {'; '.join(unlike)}")
    return found


class Results:
    """The document, on the disk after every change."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder = folder
        self.document = document
        self.parts: dict[str, dict[str, Any]] = document["parts"]

    def note(self, name: str, **values: Any) -> None:
        """Write what is known of a part."""
        self.parts[name] = self.parts.get(name, {}) | values
        text = json.dumps(self.document, indent=1) + "\n"
        write_atomically(self.folder / RESULTS, lambda file: file.write(text.encode()))

    def finish(self) -> None:
        """Write the table beside it."""
        text = table(self.document) + "\n"
        write_atomically(self.folder / TABLE, lambda file: file.write(text.encode()))


class Told:
    """Whether the command was told to stop, which it does when what it does is written.

    Attributes:
        signal: The number; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number


def conduct(args: argparse.Namespace, parts: Sequence[Part], results: Results, script: str, told: Told) -> None:
    """Run the parts that are not done, while there is time."""
    end = time.monotonic() + args.minutes * 60
    for part in parts:
        if results.parts.get(part.name, {}).get("status") == FINISHED:
            continue
        results.parts.pop(part.name, None)
        limit = min(part.seconds, end - time.monotonic())
        if limit < min(LEAST_SECONDS, part.seconds):
            results.note(part.name, status="skipped", shows=part.shows, why=f"the {args.minutes:g} minutes were over")
            continue
        print(f"{part.name}: {part.shows}", file=sys.stderr, flush=True)
        results.note(part.name, status="running", shows=part.shows, limit_seconds=round(limit, 1))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            run(args, part.name, limit, results, script, Path(folder), told)
        ended = results.parts[part.name]
        print(f"  {ended['status']} after {ended['seconds']:.0f} s", file=sys.stderr, flush=True)
        if told.signal:
            return


def run(
    args: argparse.Namespace, name: str, limit: float, results: Results, script: str, folder: Path, told: Told
) -> None:
    """One part: started, watched, ended when its time is over, recorded."""
    result, log = folder / "result.json", folder / "stderr"
    command = [sys.executable, script, "--part", name, "--device", args.device, "--result", str(result)]
    command += ["--folder", str(folder), "--seconds", str(limit)]
    command += ["--small"] if args.small else []
    command += ["--official", str(args.official.resolve())] if args.official else []
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began, seen = time.monotonic(), ""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        while (code := exit_code(process)) is None and time.monotonic() - began < limit and not told.signal:
            time.sleep(0.05)
            if (text := read(result)) != seen:  # so that what was measured outlives this process too
                seen = text
                results.note(name, result=json.loads(text))
    finally:
        end(process)
    known = {0: FINISHED, LACKS: "lacks a package", None: "interrupted" if told.signal else "timed out"}
    status = known.get(code, "failed")
    lines = log.read_text(errors="replace").splitlines()
    values = {"exit_code": process.returncode, "stderr": lines[-STDERR_LINES if status != FINISHED else -5 :]}
    if text := read(result):
        values["result"] = json.loads(text)
    results.note(name, status=status, seconds=round(time.monotonic() - began, 2), **values)


def read(path: Path) -> str:
    """A file's text; empty where there is none yet."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def exit_code(process: subprocess.Popen[Any]) -> int | None:
    """Of a process that has ended; its number stays its own until ``end`` is done with it."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process, if it still runs, and all that it has started or left behind."""
    for pid in list(_started_by(process.pid)):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _started_by(pid: int) -> Iterator[int]:
    """All descendants of a process, also those in sessions of their own, where the system tells."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, read(task).split()):
            yield child
            yield from _started_by(child)


def be_part(args: argparse.Namespace, part: Part) -> NoReturn:
    """In a process of its own: run a part, and when it hangs say where."""
    import faulthandler
    import importlib

    seconds = float(args.seconds)
    faulthandler.dump_traceback_later(max(0.5 * seconds, seconds - 2))
    end = time.monotonic() + seconds
    try:
        from gpu_parts.work import Work

        module, _, function = part.runs.partition(":")
        run = getattr(importlib.import_module(module), function)
        run(Work(args.device, args.small, args.official, Path(args.folder), Path(args.result), end))
        code = 0
    except ModuleNotFoundError as error:
        print(f"this part lacks {error.name}: {error}", file=sys.stderr)
        code = LACKS
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written; threads of profilers and compilers may take long to end


def table(document: Mapping[str, Any]) -> str:
    """The results for people."""
    from gpu_parts.table import lines

    return "\n".join(lines(document))


if __name__ == "__main__":
    sys.exit(main())
