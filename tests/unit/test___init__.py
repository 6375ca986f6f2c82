"""The package's public names: lazy, known to type checkers, and use cases that take plain arguments."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mae
from mae.errors import ConfigError, MaeError
from tests import processes

CALLS = ("compare", "embed", "evaluate", "export", "pretrain", "profile", "reconstruct", "replay", "report")


def test_importing_and_profiling_load_no_torch() -> None:
    code = "import mae, sys; mae.profile('vit_tiny'); dir(mae); assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    assert processes.finish(processes.start_python("-c", code)).returncode == 0


def test_a_type_checker_knows_the_same_names() -> None:
    tree = ast.parse(Path(mae.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {alias.asname for node in ast.walk(checked) if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.targets[0].id for node in checked.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    public = {name for name in names if name is not None and not name.startswith("_")}
    assert public == set(mae.__all__) - {"__version__"} == set(dir(mae)) - {"__version__"}


@pytest.mark.parametrize("name", CALLS)
def test_a_use_case_is_a_plain_call(name: str) -> None:
    call = getattr(mae, name)
    assert call is getattr(mae, name)
    assert "config" not in inspect.signature(call).parameters
    assert call.__doc__ is not None
    assert "--" not in call.__doc__
    with pytest.raises(MaeError) as caught:
        call(nonsense=1)
    assert caught.value.message == "unknown option 'nonsense'"
    assert caught.value.hint == f"see help(mae.{name}) for the names"


def test_plain_arguments_and_field_names() -> None:
    result = mae.profile("vit_tiny", "vit_base", batch_size=8, image_size=64)
    assert [one.variant for one in result.variants] == ["vit_tiny", "vit_base"]
    assert (result.batch_size, result.image_size) == (8, (64, 64))
    with pytest.raises(ConfigError, match=r"^mask_ratio=1e-17 masks none of the 196 patches of vit_tiny"):
        mae.profile("vit_tiny", mask_ratio=1e-17)


def test_a_model_by_name() -> None:
    sizes = {"depth": 1, "decoder_depth": 1}
    model = mae.create_model("vit_tiny", img_size=64, **sizes)
    assert (model.config.embed_dim, model.config.img_size) == (192, (64, 64))
    assert mae.create_model("mae_vit_tiny_patch16", img_size=64, **sizes).config == model.config
    assert mae.create_model(model.config, in_chans=1).config == model.config.replace(in_chans=1)
    with pytest.raises(ConfigError, match="a model has no image_size") as caught:
        mae.create_model("vit_tiny", image_size=64)
    assert caught.value.hint == "did you mean img_size?"
    with pytest.raises(ConfigError, match="unknown variant 'vit_tinny'"):
        mae.create_model("vit_tinny")


def test_every_result_draws_itself(tmp_path: Path) -> None:
    rows = [*range(256)] * 3
    (tmp_path / "<i>photos").mkdir()
    for number in range(2):
        Image.frombytes("RGB", (16, 16), bytes(rows)).save(tmp_path / "<i>photos" / f"{number}.png")
    small = {"variant": "vit_tiny", "image_size": 16, "patch_size": 8, "device": "cpu", "workers": 0}
    run = mae.pretrain(
        tmp_path / "<i>photos", out=tmp_path / "<i>run", batch_size=2, epochs=1, warmup_epochs=0, **small
    )
    result: Any
    drawn = [(run, "loss of predicting zero"), (run, '<img alt="reconstructions" src="data:image/png')]
    weights = {"checkpoint": run.run}
    drawn.append((mae.report(run.run, out=tmp_path / "<i>.html"), "loss of the last epoch"))
    drawn.append((mae.embed(tmp_path / "<i>photos", out=tmp_path / "<i>.npz", workers=0, **weights), "192 float32"))
    drawn.append((mae.export(run.run, to="safetensors", out=tmp_path / "<i>.safetensors"), "our own reading"))
    drawn.append((mae.compare(run.run, reference="paper", image=tmp_path / "<i>photos" / "0.png"), "against paper"))
    drawn.append((mae.profile("vit_tiny"), "training step, GFLOPs an image"))
    for result, words in drawn:
        page = result._repr_html_()
        assert words in page
        assert "<i>" not in page
    assert mae.pretrain(resume=run.run).steps == run.steps  # its settings are in its folder
    with pytest.raises(ConfigError, match=r"^resume .* continues in its own folder, not in out "):
        mae.pretrain(resume=run.run, out=tmp_path)
    assert mae.reconstruct(tmp_path / "<i>photos", **weights)._repr_png_().startswith(b"\x89PNG")
    assert (drawn[-1][0].save(tmp_path / "profile.html")).read_text().count("<table>") == 1
