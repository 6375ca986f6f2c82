"""A run's loss over its epochs as a plain SVG, from its ``log.jsonl``; a run that continues another follows it.

python benchmarks/curve.py run/log.jsonl --out docs/images/loss.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 64, 16, 40
LOSS, RATE = "#1f5fbf", "#b4532a"


def read(log: Path) -> list[dict[str, float]]:
    """The epochs' lines."""
    lines = (json.loads(line) for line in log.read_text().splitlines())
    return [line for line in lines if "train_loss" in line]


def draw(epochs: list[dict[str, float]], nothing_learnt: float | None) -> str:
    """Loss on the left axis, learning rate on the right one."""
    losses, rates = [line["train_loss"] for line in epochs], [line["train_lr"] for line in epochs]
    top = max(*losses, nothing_learnt or 0.0)
    low, high = min(losses) - 0.05 * (top - min(losses)), top + 0.05 * (top - min(losses))
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(number: float) -> float:
        return LEFT + across * number / max(1, len(epochs))

    def loss_at(value: float) -> float:
        return TOP + down * (high - value) / (high - low)

    def rate_at(value: float) -> float:
        return TOP + down * (1 - value / max(rates) / 1.05)

    def line(points: list[tuple[float, float]], colour: str) -> str:
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="2"/>'

    def label(x: float, y: float, text: str, colour: str = "#444", anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{text}</text>'

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    parts.append(f'<path d="M{LEFT},{TOP}v{down}h{across}v-{down}" fill="none" stroke="#999"/>')
    for step in range(5):
        loss, rate = low + (high - low) * step / 4, max(rates) * 1.05 * step / 4
        parts.append(label(LEFT - 6, loss_at(loss) + 4, f"{loss:.2f}", LOSS, "end"))
        parts.append(label(WIDTH - RIGHT + 6, rate_at(rate) + 4, f"{rate:.1e}" if step else "0", RATE, "start"))
    for number in range(0, len(epochs) + 1, max(1, round(len(epochs) / 8))):
        parts.append(label(at(number), HEIGHT - BOTTOM + 16, str(number)))
    parts.append(label(LEFT + across / 2, HEIGHT - 6, "epochs"))
    if nothing_learnt:
        y = loss_at(nothing_learnt)
        parts.append(f'<path d="M{LEFT},{y:.1f}h{across}" stroke="#999" stroke-dasharray="4 4"/>')
        parts.append(label(LEFT + across - 6, y + 14, f"nothing learnt, {nothing_learnt:.3f}", "#777", "end"))
    parts.append(line([(at(n + 0.5), rate_at(rate)) for n, rate in enumerate(rates)], RATE))
    parts.append(line([(at(n + 0.5), loss_at(loss)) for n, loss in enumerate(losses)], LOSS))
    parts.append(label(LEFT + across - 6, TOP + 56, "loss, mean of each epoch", LOSS, "end"))
    parts.append(label(LEFT + across - 6, TOP + 74, "learning rate", RATE, "end"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n{body}\n</svg>\n'
    )


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, nargs="+")
    parser.add_argument("--nothing-learnt", type=float, help="Draw this line, too.")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(draw([epoch for log in args.log for epoch in read(log)], args.nothing_learnt))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
