"""Memory that autograd keeps from the forward to the backward pass, in bytes. Standard library only.

A ``Tape`` records the operations in forward order, each with the bytes that it keeps, the gradients of its weights,
and the temporary memory of its backward pass. The peak follows by playing it backwards: kept tensors are freed one by
one while gradients are added.
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT = 4  # bytes of float32: weights, gradients, AdamW's moments, norms, the residual stream
_HALF = 2


class Step(NamedTuple):
    """One operation.

    Attributes:
        kept: Bytes that its backward pass needs, so kept from the forward pass until then.
        gradients: Bytes of its weights' gradients, there from its backward pass on.
        passing: Temporary bytes of its backward pass.
    """

    kept: int
    gradients: int = 0
    passing: int = 0


def playback_peak(steps: list[Step], *, accumulate: bool = False) -> int:
    """The most bytes at once during the backward pass over steps in forward order.

    With ``accumulate`` all gradients are there from the start, and each step's new one comes on top.
    """
    kept = peak = sum(step.kept for step in steps)
    there = sum(step.gradients for step in steps) if accumulate else 0
    for step in reversed(steps):
        peak = max(peak, kept + there + step.gradients + step.passing)
        there += 0 if accumulate else step.gradients
        kept -= step.kept
    return peak


class Tape:
    """Records the operations of a forward pass over a batch.

    Args:
        batch: Images.
        precision: ``fp32``, or ``bf16`` or ``fp16`` under autocast: matrix products in 16 bits with weights
            cast once per pass; norms, the residual stream and all weights in float32.
        device: ``cuda`` and ``mps`` have a fused attention kernel that never stores the attention weights;
            on a ``cpu`` the model uses one in float32 only, and blocks compute norms and GELU again in the backward
            pass (``mae.transformer``).

    Attributes:
        scratch: Bytes of the memory that GELU's results of all blocks share, if blocks compute them again.
    """

    def __init__(self, batch: int, precision: str, device: str) -> None:
        self.batch = batch
        self.half = precision != "fp32"
        self.size = _HALF if self.half else FLOAT
        self.fused_attention = device != "cpu" or not self.half
        self.keeps_less = device == "cpu" and not self.half
        self.scratch = 0
        self.steps: list[Step] = []
        self.cast_weights = 0

    @property
    def kept(self) -> int:
        """Bytes kept at the end of the forward pass."""
        return sum(step.kept for step in self.steps)

    def norm(self, tokens: int, width: int, *, per_image: bool = True) -> None:
        """LayerNorm keeps its input, which is the residual stream, and two statistics per token."""
        tokens *= self.batch if per_image else 1
        values = tokens * width * FLOAT
        self.steps.append(Step(values + 2 * tokens * FLOAT, 2 * width * FLOAT, passing=3 * values))

    def linear(
        self,
        tokens: int,
        inputs: int,
        outputs: int,
        *,
        keep: bool = True,
        per_image: bool = True,
        again: bool = False,
    ) -> None:
        """A product keeps its input and its weight's 16-bit copy.

        Args:
            tokens, inputs, outputs: Sizes.
            keep: Whether no other step keeps the input already.
            per_image: Whether every image has such tokens, or the batch has them once.
            again: Whether the same weight is met a second time.
        """
        tokens *= self.batch if per_image else 1
        weight = 0 if again else inputs * outputs
        cast = weight * _HALF if self.half else 0
        self.cast_weights += cast
        self.steps.append(
            Step(
                kept=(tokens * inputs * self.size if keep else 0) + cast,
                gradients=(weight + outputs) * FLOAT,
                passing=tokens * ((inputs + outputs) * self.size + min(inputs, outputs) * FLOAT) + cast,
            )
        )

    def attention(self, queries: int, keys: int, width: int, heads: int) -> None:
        """Attention keeps queries, keys and values, and what its kernel needs for the backward pass."""
        tensors = self.batch * (queries + 2 * keys) * width * self.size
        out = self.batch * queries * width * self.size
        weights = self.batch * heads * queries * keys * self.size
        if self.fused_attention:
            extra, passing = self.batch * heads * queries * FLOAT, 0
        else:
            extra, passing = weights, 2 * weights
        self.steps.append(Step(tensors + out + extra, passing=tensors + out + passing))

    def norm_linear(self, tokens: int, inputs: int, outputs: int) -> None:
        """LayerNorm and a product; in blocks that keep less, the norm's input is all that is kept."""
        if not self.keeps_less:
            self.norm(tokens, inputs)
            self.linear(tokens, inputs, outputs)
            return
        stream = self.batch * tokens * inputs * FLOAT
        gradients = (inputs * outputs + outputs + 2 * inputs) * FLOAT
        passing = 3 * stream + self.batch * tokens * outputs * FLOAT
        self.steps.append(Step(stream, gradients, passing))

    def gelu(self, tokens: int, width: int) -> None:
        """GELU keeps its input."""
        values = self.batch * tokens * width * self.size
        self.steps.append(Step(values, passing=2 * values))

    def block(self, tokens: int, width: int, heads: int, mlp_ratio: float) -> None:
        """A Transformer block over all tokens."""
        self.norm_linear(tokens, width, 3 * width)
        self.attention(tokens, tokens, width, heads)
        self.finish_block(tokens, width, mlp_ratio)

    def finish_block(self, tokens: int, width: int, mlp_ratio: float) -> None:
        """What follows attention's products: its projection, the second norm and the MLP."""
        hidden = int(width * mlp_ratio)
        if self.keeps_less:  # the norm's input and the MLP's hidden values
            stream, values = (self.batch * tokens * size * FLOAT for size in (width, hidden))
            gradients = (width * (width + 2 * hidden) + hidden + 4 * width) * FLOAT
            self.steps.append(Step(stream + values, gradients, passing=4 * stream))
            self.scratch = max(self.scratch, values)
            return
        self.linear(tokens, width, width, keep=False)  # attention's result is kept by attention
        self.norm(tokens, width)
        self.linear(tokens, width, hidden)
        self.gelu(tokens, hidden)
        self.linear(tokens, hidden, width)

    def checkpoint_from(self, first: int, inputs: int) -> None:
        """Make the steps from number ``first`` on one that keeps ``inputs`` bytes and is run again for its backward."""
        inner = self.steps[first:]
        gradients = sum(step.gradients for step in inner)
        self.steps[first:] = [Step(inputs, gradients, passing=playback_peak(inner) - inputs - gradients)]
