"""Every dialect, wrapper and prefix gives the same tensors under the same names."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mae.checkpoints import Checkpoint, build_model, load_checkpoint
from mae.checkpoints.dialects import from_hugging_face, to_hugging_face
from mae.config import MAEConfig
from tests.golden import official

TINY = official.GOLDEN["golden_tiny"]
WEIGHTS = official.weights(TINY)
ENCODER = {key: tensor for key, tensor in WEIGHTS.items() if not official.is_decoder(key)}


def same(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(state) == set(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(state[key], tensor), key


def read(tmp_path: Path, document: Any, name: str = "file.pth") -> Checkpoint:
    torch.save(document, tmp_path / name)
    return load_checkpoint(tmp_path / name)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {"model": OrderedDict(state)},
        lambda state: {"model": {key: torch.nn.Parameter(tensor) for key, tensor in state.items()}},
        lambda state: {"model": prefixed("module.", state)},
        lambda state: {"model": prefixed("_orig_mod.", state)},
        lambda state: {"model": prefixed("_orig_mod.module.", state)},
        lambda state: {"model": prefixed("module._orig_mod.", state)},
        lambda state: {"state_dict": prefixed("model.", state)},
        lambda state: {
            "model": {("encoder." if not official.is_decoder(key) else "") + key: t for key, t in state.items()}
        },
    ],
)
@pytest.mark.parametrize("state", [WEIGHTS, ENCODER], ids=["full", "encoder"])
def test_wrappers_and_prefixes(
    wrap: Callable[[dict[str, Tensor]], Any], state: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint = read(tmp_path, wrap(dict(state)))
    same(checkpoint.state, state)
    assert checkpoint.kind == ("full" if state is WEIGHTS else "encoder")
    assert checkpoint.dialect == "official"
    assert checkpoint.norm_pix_loss is None


def test_the_old_container(tmp_path: Path) -> None:
    for kind in ("full", "encoder", "training"):
        path = tmp_path / f"{kind}.pth"
        torch.save(official.checkpoint(TINY, kind), path, _use_new_zipfile_serialization=False)
        same(load_checkpoint(path).state, ENCODER if kind == "encoder" else WEIGHTS)


def test_a_trainers_file(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, official.checkpoint(TINY, "training"))
    same(checkpoint.state, WEIGHTS)
    assert (checkpoint.kind, checkpoint.epoch, checkpoint.norm_pix_loss) == ("training", 19, True)
    assert checkpoint.args["mask_ratio"] == 0.75
    assert checkpoint.optimizer is not None
    assert checkpoint.scaler == {"scale": 65536.0}


def test_a_fine_tuned_file(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in ENCODER.items() if not key.startswith("norm.")}
    for name, shape in {
        "fc_norm.weight": (128,),
        "fc_norm.bias": (128,),
        "head.weight": (10, 128),
        "head.bias": (10,),
    }.items():
        state[name] = torch.ones(shape)
    checkpoint = read(tmp_path, {"model": state})
    assert checkpoint.kind == "fine-tuned"
    assert not checkpoint.has_decoder
    same(checkpoint.state, state)


@pytest.mark.parametrize("kind", ["full", "encoder"])
def test_safetensors(kind: str, tmp_path: Path) -> None:
    state = WEIGHTS if kind == "full" else ENCODER
    save_file(state, tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    same(checkpoint.state, state)
    assert (checkpoint.kind, checkpoint.dialect) == (kind, "official" if kind == "full" else "timm")


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    """The file begins with the length of its header; a pickle also begins with 0x80."""
    path = tmp_path / "model.safetensors"
    for padding in range(0, 256, 8):
        save_file(ENCODER, path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    same(load_checkpoint(path).state, ENCODER)


def test_timms_own_file(tmp_path: Path) -> None:
    """The file that timm saves of a model of the same sizes has our names without the decoder's."""
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(img_size=64, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=0)
    model.load_state_dict(ENCODER)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    same(checkpoint.state, ENCODER)
    assert (checkpoint.kind, checkpoint.dialect) == ("encoder", "timm")


def test_classic_hugging_face_names_by_hand() -> None:
    names = set(to_hugging_face(WEIGHTS))
    assert {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.encoder.layer.2.attention.attention.query.weight",
        "vit.encoder.layer.2.attention.attention.value.bias",
        "vit.encoder.layer.0.attention.output.dense.weight",
        "vit.encoder.layer.0.intermediate.dense.bias",
        "vit.encoder.layer.0.output.dense.weight",
        "vit.encoder.layer.1.layernorm_before.weight",
        "vit.encoder.layer.1.layernorm_after.bias",
        "vit.layernorm.weight",
        "decoder.mask_token",
        "decoder.decoder_pos_embed",
        "decoder.decoder_embed.weight",
        "decoder.decoder_layers.1.attention.attention.key.weight",
        "decoder.decoder_layers.1.output.dense.bias",
        "decoder.decoder_norm.weight",
        "decoder.decoder_pred.bias",
    } <= names
    assert len(names) == len(WEIGHTS) + 4 * (TINY.depth + TINY.decoder_depth)  # q, k, v for each qkv, twice
    query = to_hugging_face(WEIGHTS)["vit.encoder.layer.1.attention.attention.key.weight"]
    assert torch.equal(query, WEIGHTS["blocks.1.attn.qkv.weight"][128:256])


def _in_memory(key: str) -> str:
    """Convert the classic names to those of transformers 5 in memory."""
    key = key.replace("vit.encoder.layer.", "vit.layers.").replace("attention.output.dense.", "attention.o_proj.")
    for part in ("query", "key", "value"):
        key = key.replace(f"attention.attention.{part}.", f"attention.{part[0]}_proj.")
    return key.replace("intermediate.dense.", "mlp.fc1.").replace(".output.dense.", ".mlp.fc2.")


def _as_saved(key: str) -> str:
    return key.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")


@pytest.mark.parametrize(
    ("rename", "dialect"),
    [
        (lambda key: key, "huggingface"),
        (_in_memory, "huggingface (in memory, 5.x)"),
        (_as_saved, "huggingface (saved by 5.x)"),
    ],
)
def test_the_three_hugging_face_dialects(rename: Callable[[str], str], dialect: str, tmp_path: Path) -> None:
    foreign = {rename(key): tensor.clone() for key, tensor in to_hugging_face(WEIGHTS).items()}
    same(from_hugging_face(foreign), WEIGHTS)
    config = {"model_type": "vit_mae", "image_size": 64, "num_attention_heads": 2, "decoder_num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"norm_pix_loss": True}))
    save_file(foreign, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = load_checkpoint(path)
        same(checkpoint.state, WEIGHTS)
        assert checkpoint.dialect == dialect
        assert checkpoint.config == TINY.replace(norm_pix_loss=True)
        assert checkpoint.norm_pix_loss is True
    encoder = {key.removeprefix("vit."): tensor for key, tensor in foreign.items() if key.startswith("vit.")}
    same(read(tmp_path, encoder).state, ENCODER)  # a bare ViTMAEModel


def test_the_dialects_that_the_installed_transformers_speaks(tmp_path: Path) -> None:
    """With the state dict and the files of the library itself."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=512, image_size=64, patch_size=8,
        decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=256,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    in_memory = from_hugging_face(model.state_dict())
    assert set(in_memory) == set(WEIGHTS)
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    same(checkpoint.state, in_memory)
    assert checkpoint.config == TINY
    assert torch.equal(
        checkpoint.state["decoder_blocks.1.mlp.fc1.weight"], model.decoder.decoder_layers[1].mlp.fc1.weight
    )


def test_a_lone_hugging_face_file_does_not_say_what_it_predicts(tmp_path: Path) -> None:
    assert read(tmp_path, to_hugging_face(WEIGHTS), "pytorch_model.bin").norm_pix_loss is None


def test_queries_without_keys_are_missing_not_a_crash(tmp_path: Path) -> None:
    foreign = to_hugging_face(WEIGHTS)
    del foreign["vit.encoder.layer.0.attention.attention.key.weight"]
    foreign["vit.encoder.layer.1.attention.attention.key.weight"] = torch.ones(3, 3)
    missing = set(WEIGHTS) - set(read(tmp_path, foreign).state)
    assert missing == {"blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"}


SIZES = {
    "rectangle": MAEConfig((32, 48), 8, 3, 32, 1, 2, 32, 1, 2),
    "upright": MAEConfig((48, 32), 8, 3, 32, 1, 2, 32, 1, 2),
    "as many patches as a square": MAEConfig((16, 144), 8, 3, 32, 1, 2, 32, 1, 2),
    "one row": MAEConfig((8, 56), 8, 3, 32, 1, 2, 32, 1, 2),
    "one patch": MAEConfig((8, 8), 8, 3, 32, 1, 2, 32, 1, 2),
    "five channels": MAEConfig((32, 32), 8, 5, 64, 2, 1, 32, 1, 1),
    "odd patches": MAEConfig((21, 35), 7, 1, 20, 1, 1, 12, 1, 1),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_read_off_the_tensors(name: str, tmp_path: Path) -> None:
    torch.save(official.checkpoint(SIZES[name]), tmp_path / "file.pth")
    heads = (SIZES[name].num_heads, SIZES[name].decoder_num_heads)
    checkpoint = load_checkpoint(tmp_path / "file.pth", num_heads=heads[0], decoder_num_heads=heads[1])
    assert checkpoint.config == SIZES[name]
    assert checkpoint.num_parameters == sum(tensor.numel() for tensor in checkpoint.state.values())
    assert checkpoint.dtypes == ("float32",)
    assert not checkpoint.notes


@pytest.mark.parametrize("name", ["vit_base", "vit_large", "vit_huge"])
def test_published_variants_by_shape(name: str) -> None:
    from mae.checkpoints.sizes import Declared, config_from_shapes, variant_of

    shapes = official.shapes(official.GOLDEN[name])
    config, notes, assumed = config_from_shapes(shapes, Declared())
    assert (config, variant_of(config), notes, assumed) == (official.GOLDEN[name], name, (), ())
    encoder = {key: shape for key, shape in shapes.items() if not official.is_decoder(key)}
    assert variant_of(config_from_shapes(encoder, Declared())[0], has_decoder=False) == name


def test_heads_are_guessed_aloud_and_can_be_said(tmp_path: Path) -> None:
    torch.save(official.checkpoint(TINY), tmp_path / "file.pth")
    guessed = load_checkpoint(tmp_path / "file.pth")
    assert (guessed.config.num_heads, guessed.config.decoder_num_heads) == (2, 2)
    assert any("decoder_num_heads: 2 is assumed" in note for note in guessed.notes)
    assert guessed.assumed == ("num_heads", "decoder_num_heads")
    said = load_checkpoint(tmp_path / "file.pth", decoder_num_heads=4)
    assert said.config.decoder_num_heads == 4
    assert said.assumed == ("num_heads",)


def test_patches_that_are_no_square_are_taken_for_a_wide_image() -> None:
    from mae.checkpoints.sizes import Declared, config_from_shapes

    shapes = official.shapes(TINY)
    shapes |= {key: (1, 1 + 6 * 10, shape[2]) for key, shape in shapes.items() if "pos_embed" in key}
    config, notes, _ = config_from_shapes(shapes, Declared(num_heads=4, decoder_num_heads=4))
    assert config.grid == (6, 10)
    assert notes == ("60 patches are no square: taken as 6 rows of 10; give the image size if it is another rectangle",)


def test_hidden_widths_that_a_quotient_rounds_down(tmp_path: Path) -> None:
    """240 / 44 * 44 is a little less than 240 in floating point."""
    config = MAEConfig((16, 16), 8, 3, 44, 1, 1, 44, 1, 1, mlp_ratio=240.5 / 44)
    from mae.models import create_model

    torch.save({"model": create_model(config).state_dict()}, tmp_path / "file.pth")
    model, _ = build_model(load_checkpoint(tmp_path / "file.pth", num_heads=1, decoder_num_heads=1))
    assert model.encoder.blocks[0].mlp.fc1.out_features == 240


def test_released_files_are_known_by_name(tmp_path: Path) -> None:
    for name, normalised in (("mae_pretrain_vit_base_full", True), ("mae_visualize_vit_large", False)):
        checkpoint = read(tmp_path, official.checkpoint(TINY), f"{name}.pth")
        assert checkpoint.norm_pix_loss is normalised
        assert any("CC BY-NC 4.0" in note for note in checkpoint.notes)
    assert not any("CC BY-NC" in note for note in read(tmp_path, official.checkpoint(TINY), "mine.pth").notes)


def test_reading_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, official.checkpoint(TINY, "training"))


def crossmae(*, weighted: bool) -> dict[str, Tensor]:
    """A file of CrossMAE: the official encoder, and a decoder with cross-attention."""
    state = {key: tensor for key, tensor in WEIGHTS.items() if not official.is_decoder(key)}
    width, own = TINY.embed_dim, TINY.decoder_embed_dim
    state |= {"mask_token": torch.zeros(1, 1, own), "decoder_pos_embed": torch.zeros(1, 65, own)}
    for block in range(2):
        name = f"decoder_blocks.{block}."
        state |= {f"{name}cross_attn.q.weight": torch.zeros(own, own), f"{name}norm1.weight": torch.zeros(own)}
        state |= {f"{name}cross_attn.kv.weight": torch.zeros(2 * own, width)}
        if weighted:
            state |= {f"dec_norms.{block}.weight": torch.ones(width)}
    if weighted:
        state |= {"wfm.linear.weight": torch.zeros(2, 3)}
        del state["norm.weight"], state["norm.bias"]
    return state


@pytest.mark.parametrize("weighted", [False, True])
def test_the_encoder_of_crossmae_is_read_and_its_decoder_is_not(weighted: bool, tmp_path: Path) -> None:
    from mae.checkpoints.build import build_encoder
    from mae.errors import CheckpointError

    checkpoint = read(tmp_path, {"model": crossmae(weighted=weighted)})
    assert (checkpoint.dialect, checkpoint.kind, checkpoint.has_decoder) == ("CrossMAE", "encoder", False)
    assert "a CrossMAE file" in checkpoint.notes[0]
    imgs, _ = official.inputs(TINY)
    plain = read(tmp_path, {"model": {key: WEIGHTS[key] for key in WEIGHTS if not official.is_decoder(key)}}, "x.pth")
    with torch.no_grad():
        ours, wanted = (build_encoder(one)[0] for one in (checkpoint, plain))
        if weighted:
            wanted.encoder.norm.reset_parameters()
        assert torch.equal(ours.encode(imgs), wanted.encode(imgs))
    with pytest.raises(CheckpointError, match="holds an encoder only"):
        build_model(checkpoint)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"cls_token": torch.zeros(1, 8, 128)}, "a Pixio model, or another one with 8 class tokens"),
        ({"register_tokens": torch.zeros(1, 4, 128)}, "a DINO model with register tokens"),
        ({"blocks.0.ls1.gamma": torch.zeros(128)}, "a model with LayerScale, such as DINOv2 or CAPI"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(64)}, "a model that normalises queries and keys"),
    ],
)
def test_other_encoders_are_named_and_refused(more: dict[str, Tensor], name: str, tmp_path: Path) -> None:
    from mae.errors import CheckpointError

    with pytest.raises(CheckpointError, match=name) as caught:
        read(tmp_path, {"model": WEIGHTS | more})
    assert caught.value.hint is not None


def without(*parts: str) -> dict[str, Tensor]:
    return {f"encoder.{key}": tensor for key, tensor in WEIGHTS.items() if not key.startswith(("decoder_", *parts))}


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (
            without("cls_token", "pos_embed", "mask_token")
            | {
                "mask_token": torch.zeros(1, 1, 64),
                "encoder_to_decoder.weight": torch.zeros(64, 128),
                "encoder.blocks.0.attn.q_bias": torch.zeros(128),
                "decoder.head.weight": torch.zeros(768, 64),
            },
            "a MAE-pytorch model",
        ),
        (
            without() | {"decoder.0.weight": torch.zeros(3072, 128, 1, 1), "decoder.0.bias": torch.zeros(3072)},
            "a SimMIM model",
        ),
        (without("mask_token") | {"encoder.blocks.0.attn.q_bias": torch.zeros(128)}, "a BEiT-like model"),
        (
            without("mask_token") | {"encoder.rel_pos_bias.relative_position_bias_table": torch.zeros(732, 12)},
            "a BEiT or SimMIM model",
        ),
        (without("mask_token") | {"encoder.attn_pool.latent": torch.zeros(1, 1, 128)}, "such as SigLIP"),
        (without("mask_token") | {"encoder.blocks.0.mlp.ffn_ln.weight": torch.zeros(128)}, "an EVA-02 model"),
        (
            without("mask_token", "cls_token", "pos_embed") | {"encoder.pos_embed": torch.zeros(1, 16, 128)},
            "a model without a class token, such as I-JEPA",
        ),
    ],
)
def test_models_whose_keys_begin_like_ours_are_named(state: dict[str, Tensor], name: str, tmp_path: Path) -> None:
    from mae.errors import CheckpointError

    with pytest.raises(CheckpointError, match=name) as caught:
        read(tmp_path, {"model": state})
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("modality_encoders.IMAGE.extra_tokens", "a data2vec 2.0 model"),
        ("visual.class_embedding", "a CLIP model"),
        ("vision_model.head.probe", "a SigLIP model"),
    ],
)
def test_other_vision_towers_are_named(key: str, name: str, tmp_path: Path) -> None:
    from mae.errors import CheckpointError

    with pytest.raises(CheckpointError, match=f"its keys are those of {name}"):
        read(tmp_path, {"model": {key: torch.zeros(1, 1, 128)}})


def test_pixio_in_transformers_names(tmp_path: Path) -> None:
    from mae.errors import CheckpointError

    foreign = to_hugging_face(WEIGHTS) | {"vit.embeddings.cls_token": torch.zeros(1, 8, 128)}
    with pytest.raises(CheckpointError, match="a Pixio model"):
        read(tmp_path, foreign)
