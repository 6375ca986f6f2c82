"""Lists every place where the code behaves differently on an accelerator, and the test that covers it.

If such a place is added or removed, this test fails until the list names its test, or why none is needed.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from tests.rehearsal.branches import ROOT, branches, in_source, naming_mps


class Covered(NamedTuple):
    """How many places a function has, and the test that runs them (``tests/...::name``) or why none has to.

    A function that names an Apple GPU says what is known of that: torch cannot pretend one, and none was at hand.
    """

    places: int
    by: str
    apple: str = ""


FAKE = "tests/rehearsal/test_fake_cuda.py::"
TWO = "tests/rehearsal/test_two_gpus.py::test_two_processes_start_on_two_gpus"
GPU = "tests/gpu/test_gpu.py::"
STEP = FAKE + "test_a_step_never_makes_the_host_wait"
CHOICES = "only the values that an option takes; mae/system/device.py makes something of them"
ON_PAPER = "arithmetic on sizes, with no device; tests/unit/profiling holds it against torch's own counts"

LISTED = {
    "mae/attention.py attend": Covered(1, STEP),
    "mae/config.py": Covered(2, CHOICES),
    "mae/checkpoints/load.py _refuse_inflated": Covered(1, "files are read to the host, whatever the machine has"),
    "mae/data/loader.py loader_workers": Covered(1, "only a number of processes, by cores"),
    "mae/system/device.py _multiplies_bf16": Covered(3, TWO),
    "mae/system/device.py precision_reason": Covered(2, GPU + "test_doctor_measures_the_gpu"),
    "mae/system/device.py resolve_device": Covered(
        10, "tests/unit/system/test_device.py::test_a_gpu_has_an_index", "test_device.py says there is one, and asks"
    ),
    "mae/profiling/doctor.py": Covered(2, GPU + "test_doctor_measures_the_gpu", "only the side of a matrix"),
    "mae/profiling/doctor.py _warnings": Covered(3, "advice for machines that compute on a CPU"),
    "mae/system/environment.py graphics_cards": Covered(3, TWO),
    "mae/evaluation/evaluate.py _probe_device": Covered(1, "an Apple GPU computes no float64, so the host does"),
    "mae/evaluation/extract.py extract": Covered(1, GPU + "test_embed_gives_the_features_of_a_cpu"),
    "mae/mae.py MaskedAutoencoder.forward_loss": Covered(1, FAKE + "test_using_a_model_does_not_wait_either"),
    "mae/system/precision.py choose_precision": Covered(1, "fp16 is refused on a CPU and nowhere else"),
    "mae/profiling/config.py ProfileConfig._native_bf16": Covered(2, ON_PAPER),
    "mae/profiling/config.py ProfileConfig.assumed_device": Covered(1, ON_PAPER),
    "mae/profiling/measuring.py": Covered(2, GPU + "test_profile_measures_the_gpu", "only sides of matrices"),
    "mae/profiling/measuring.py _give_freed_memory_back": Covered(1, "glibc's memory, which a GPU's is no part of"),
    "mae/profiling/measuring.py _wait_for": Covered(
        4, GPU + "test_profile_measures_the_gpu", "torch.mps.synchronize is called as documented"
    ),
    "mae/profiling/measuring.py measure_machine": Covered(2, GPU + "test_profile_measures_the_gpu"),
    "mae/profiling/measuring.py peak_bytes": Covered(
        3, GPU + "test_profile_measures_the_gpu", "torch tells no peak there, so none is given"
    ),
    "mae/profiling/measuring.py training_time": Covered(1, GPU + "test_profile_measures_the_gpu"),
    "mae/profiling/memory.py": Covered(2, ON_PAPER),
    "mae/profiling/memory.py _optimizer_passing": Covered(1, ON_PAPER),
    "mae/profiling/memory.py fit": Covered(1, ON_PAPER),
    "mae/profiling/memory.py process_bytes": Covered(1, ON_PAPER),
    "mae/profiling/memory.py training_memory": Covered(1, ON_PAPER),
    "mae/profiling/config.py ProfileConfig.__post_init__": Covered(1, CHOICES),
    "mae/profiling/run.py _plan": Covered(1, GPU + "test_profile_measures_the_gpu"),
    "mae/profiling/run.py profile": Covered(1, GPU + "test_profile_measures_the_gpu"),
    "mae/profiling/tape.py Tape.__init__": Covered(2, ON_PAPER),
    "mae/transformer.py _keeps_less": Covered(1, STEP),
    "mae/training/data_module.py DataModule.__init__": Covered(1, TWO),
    "mae/training/optim.py adamw": Covered(1, STEP),
    "mae/training/plan.py check_plan": Covered(1, "a warning of a run that takes days on a CPU"),
    "mae/training/engine.py _time_batch": Covered(1, GPU + "test_a_run_goes_on_bit_for_bit"),
    "mae/system/distributed.py Ranks.join": Covered(5, TWO),
    "mae/training/replay.py replay": Covered(2, "fp16 becomes fp32 on a CPU, and only a GPU has another memory"),
    "mae/training/checkpointer.py Checkpointer.save": Covered(
        1, FAKE + "test_a_state_is_copied_to_the_host_before_it_is_written"
    ),
    "mae/training/step.py TrainingStep.__init__": Covered(1, STEP),
    "mae/training/step.py TrainingStep._gradient_norm": Covered(
        1, STEP, "its tensors are not grouped: one by one the norm is the same"
    ),
    "mae/training/step.py TrainingStep._on_device": Covered(2, STEP),
    "mae/training/monitor.py StepMonitor.due": Covered(
        1, "tests/unit/training/test_pretrain.py::test_losses_read_in_groups_as_on_a_gpu_change_nothing"
    ),
    "mae/training/tasks/classification.py ClassificationTask._logits": Covered(
        1, FAKE + "test_held_out_images_are_copied_while_the_host_goes_on"
    ),
    "maecli/views/profile.py": Covered(2, "names of devices for people"),
    "maecli/views/profile.py _conditions": Covered(1, "a CPU's threads, for people"),
}  # fmt: skip


def test_every_place_is_listed() -> None:
    found, listed = branches(), {place: covered.places for place, covered in LISTED.items()}
    unlike = {place: (found.get(place), listed.get(place)) for place in found | listed}
    assert {place: pair for place, pair in unlike.items() if pair[0] != pair[1]} == {}, "(in the code, in the list)"


def test_every_place_is_run_or_explained() -> None:
    for place, covered in LISTED.items():
        file, _, name = covered.by.partition("::")
        if name:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{place}: no {covered.by}"
        else:
            assert len(covered.by.split()) > 4, f"{place} has no reason"
    tested = {place for place, covered in LISTED.items() if "::" in covered.by}
    assert {place for place, covered in LISTED.items() if covered.apple} == tested & naming_mps()


def test_each_kind_of_place_is_seen() -> None:
    text = '''
        """Of cuda, which documentation may name."""
        SIDES = {"cpu": 1, "mps": 2}

        class Step:
            """On cuda."""

            def run(self, device, tensor):
                if device.type == "cpu" or device.type in ("cuda", "xpu"):
                    return tensor.is_cuda
                torch.cuda.synchronize()
                return torch.backends.mps.is_available(), "cpu"
    '''
    assert list(in_source(textwrap.dedent(text), "a.py")) == ["a.py", *["a.py Step.run"] * 5]
