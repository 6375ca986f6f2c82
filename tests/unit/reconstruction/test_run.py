"""Reconstruction with a small model: masks, image sizes, targets and errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mae
from mae.checkpoints import load_checkpoint, save_checkpoint
from mae.errors import CheckpointError, ConfigError, DataError
from mae.mae import MaskedAutoencoder
from mae.pos_embed import sincos_2d
from mae.reconstruction.animation import LAST_MILLISECONDS, write_animation
from mae.reconstruction.config import ReconstructConfig
from mae.reconstruction.grid import draw_grid
from mae.reconstruction.run import ANIMATED_RATIOS, NOTHING_MASKED_NOTE, Reconstructor, reconstruct
from tests.unit.data.sources.test_base import write_parquet, write_tar, write_zip


def small_model(**changes: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    return MaskedAutoencoder(**({"img_size": 32, "patch_size": 8, "decoder_num_heads": 2} | sizes | changes))  # type: ignore[arg-type]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)).resize((80, 50), Image.Resampling.BICUBIC).save(
        path
    )
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    save_checkpoint(path, small_model(), args={"norm_pix_loss": False})
    return path


@pytest.fixture
def config(image: Path, weights: Path, tmp_path: Path) -> ReconstructConfig:
    out = tmp_path / "grid.png"
    return ReconstructConfig(images=(image,), checkpoint=weights, out=out, resize=False, device="cpu")


def test_a_grid_and_its_numbers(config: ReconstructConfig) -> None:
    result = reconstruct(config)
    page = opened(config.out)
    assert page.format == "PNG"
    assert page.width > 4 * 192
    (one,) = result.images
    assert (one.image_size, one.mask_ratio) == ((32, 32), 0.75)
    assert one.loss > 0
    assert 0 < one.psnr < 40
    assert not result.norm_pix
    assert result.norm_pix_source == "checkpoint"


def test_titles_tell_the_masked_fractions_of_all_images(
    config: ReconstructConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 15 patches 80 % are masked, of 16 patches 75 %; the title must not be that of the last image alone."""
    square, titles = tmp_path / "square.png", []
    Image.new("RGB", (64, 64)).save(square)

    def drawn(given: list[str], *rest: object) -> Image.Image:
        titles.append(given)
        return draw_grid(given, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("mae.reconstruction.run.draw_grid", drawn)
    both = dataclasses.replace(config, images=(config.images[0], square), resize=True)
    reconstruct(both)
    reconstruct(dataclasses.replace(both, mask_ratio=(0.75, 0.5)))
    assert titles[0][1] == "masked 75 to 80%"
    assert titles[1] == [
        "original", "masked 75 to 80%", "with visible 75 to 80%", "masked 50 to 53%", "with visible 50 to 53%"
    ]  # fmt: skip


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".webp", "WEBP"), (".JPEG", "JPEG")])
def test_the_suffix_chooses_the_format(config: ReconstructConfig, tmp_path: Path, suffix: str, kind: str) -> None:
    reconstruct(dataclasses.replace(config, out=tmp_path / f"grid{suffix}"))
    assert opened(tmp_path / f"grid{suffix}").format == kind


def test_the_default_seed_gives_the_published_mask(config: ReconstructConfig, tmp_path: Path) -> None:
    published = json.loads((Path(__file__).parents[2] / "golden/golden_mask_seed2.json").read_text())["mask"]
    weights = tmp_path / "fourteen.pth"
    save_checkpoint(weights, small_model(img_size=224, patch_size=16), args={"norm_pix_loss": False})
    result = reconstruct(dataclasses.replace(config, checkpoint=weights, separate=tmp_path / "panels"))
    names = [path.name for path in result.separate]
    assert names == [f"001-photo-{name}.png" for name in ("original", "masked", "reconstruction", "with-visible")]
    masked = np.asarray(opened(tmp_path / "panels/001-photo-masked.png")).reshape(14, 16, 14, 16, 3)
    flat = (masked == (124, 116, 104)).all(axis=(1, 3, 4)).reshape(-1)
    assert flat.astype(int).tolist() == published


def test_several_ratios_share_the_noise_and_make_columns(config: ReconstructConfig) -> None:
    one = opened(reconstruct(config).out).width
    result = reconstruct(dataclasses.replace(config, mask_ratio=(0.5, 0.75, 0.9)))
    assert [image.mask_ratio for image in result.images] == [0.5, 0.75, 15 / 16]
    assert opened(result.out).width > 1.6 * one


def test_an_own_mask_removes_what_is_white(config: ReconstructConfig, tmp_path: Path) -> None:
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[1, 2] = mask[3, 0] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST).save(path)
    result = reconstruct(dataclasses.replace(config, mask=path, separate=tmp_path / "panels"))
    assert result.images[0].mask_ratio == 2 / 16
    masked = np.asarray(opened(tmp_path / "panels/001-photo-masked.png")).reshape(4, 8, 4, 8, 3)
    assert ((masked == (124, 116, 104)).all(axis=(1, 3, 4)) == (mask > 0)).all()
    for value, message in ((0, "masks no patch"), (255, "masks every patch")):
        Image.new("L", (8, 8), value).save(path)
        with pytest.raises(DataError, match=message):
            reconstruct(dataclasses.replace(config, mask=path))


@pytest.mark.parametrize(("size", "columns"), [((80, 50), 1), ((40, 25), 2)])
def test_a_mask_of_the_images_size_is_cropped_with_it(
    config: ReconstructConfig, tmp_path: Path, size: tuple[int, int], columns: int
) -> None:
    """Two fifths of the mask's width are white; of the middle 50 of the image's 80 pixels they cover a third."""
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[:, : size[0] * 2 // 5] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    assert reconstruct(dataclasses.replace(config, mask=path)).images[0].mask_ratio == columns / 4


def test_positions_of_another_frame_lie_between_those_of_the_weights(config: ReconstructConfig, weights: Path) -> None:
    reconstructor = Reconstructor(config, load_checkpoint(weights), torch.device("cpu"))
    wanted = sincos_2d(32, (3, 5), scaled_to=(4, 4))
    assert torch.equal(reconstructor.model_for((24, 40)).pos_embed, wanted)


def test_a_whole_image_gets_a_frame_of_its_shape(config: ReconstructConfig) -> None:
    for resize in (True, None):
        result = reconstruct(dataclasses.replace(config, resize=resize))
        assert result.images[0].image_size == (24, 40)
        assert result.notes == ()
    larger = reconstruct(dataclasses.replace(config, resize=None, image_size=(64, 64)))
    assert larger.images[0].image_size == (48, 80)
    rectangle = reconstruct(dataclasses.replace(config, resize=None, image_size=(24, 32)))
    assert rectangle.images[0].image_size == (24, 32)


def test_learnt_positions_keep_their_frame(config: ReconstructConfig, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.pos_embed += 0.1 * torch.randn(model.pos_embed.shape)
    save_checkpoint(tmp_path / "learnt.pth", model, args={"norm_pix_loss": False})
    config = dataclasses.replace(config, checkpoint=tmp_path / "learnt.pth", resize=None)
    result = reconstruct(config)
    assert result.images[0].image_size == (32, 32)
    assert result.notes[0].startswith(
        "the centre of each image is shown, because pos_embed of the checkpoint is learnt"
    )
    stretched = reconstruct(dataclasses.replace(config, resize=True))
    assert stretched.images[0].image_size == (24, 40)
    assert any(note.startswith("pos_embed is resampled (bicubic)") for note in stretched.notes)


def test_another_frame_is_said_aloud(config: ReconstructConfig) -> None:
    result = reconstruct(dataclasses.replace(config, image_size=(64, 48)))
    assert result.images[0].image_size == (64, 48)
    assert any("4x4 patches in the file, 8x6 here" in note for note in result.notes)
    with pytest.raises(ConfigError, match="not a whole number of patches"):
        reconstruct(dataclasses.replace(config, image_size=(60, 48)))


def test_what_the_decoder_predicts(config: ReconstructConfig, tmp_path: Path) -> None:
    for stated, override, expected, source in (
        (True, "auto", True, "checkpoint"),
        (True, "off", False, "option"),
        (False, "on", True, "option"),
    ):
        weights = tmp_path / f"{stated}.pth"
        save_checkpoint(weights, small_model(norm_pix_loss=stated), args={"norm_pix_loss": stated})
        result = reconstruct(dataclasses.replace(config, checkpoint=weights, norm_pix=override))
        assert (result.norm_pix, result.norm_pix_source) == (expected, source)
        assert any("taken from the original" in note for note in result.notes) == expected
        assert any("These weights predict" in note for note in result.notes) == (stated and override == "auto")
        assert any(f"with --norm-pix {override} its" in note for note in result.notes) == (source == "option")


def test_a_silent_file_is_asked_by_its_predictions(config: ReconstructConfig, tmp_path: Path) -> None:
    """A constant bright prediction is closer to the raw pixels of a bright image than to normalised ones."""
    bright = tmp_path / "bright.png"
    Image.effect_noise((40, 40), 20).point(lambda value: 200 + value // 8).convert("RGB").save(bright)
    for bias, expected in ((1.7, False), (0.0, True)):
        model = small_model()
        with torch.no_grad():
            model.decoder.pred.weight.zero_()
            model.decoder.pred.bias.fill_(bias)
        weights = tmp_path / "silent.pth"
        torch.save({"model": model.state_dict()}, weights)
        result = reconstruct(dataclasses.replace(config, images=(bright,), checkpoint=weights))
        assert (result.norm_pix, result.norm_pix_source) == (expected, "inferred")
        assert any("does not say what its decoder predicts" in note for note in result.notes)


def test_folders_skip_what_is_broken_and_named_files_do_not(config: ReconstructConfig, image: Path) -> None:
    broken = image.parent / "broken.jpg"
    broken.touch()
    result = reconstruct(dataclasses.replace(config, images=(image.parent,)))
    assert [one.path for one in result.images] == [image]
    assert [path for path, _ in result.skipped] == [broken]
    with pytest.raises(DataError, match=r"broken\.jpg"):
        reconstruct(dataclasses.replace(config, images=(image, broken)))


def test_grey_and_alpha_models(config: ReconstructConfig, tmp_path: Path) -> None:
    for in_chans in (1, 4):
        weights = tmp_path / f"{in_chans}.pth"
        save_checkpoint(weights, small_model(in_chans=in_chans), args={"norm_pix_loss": False})
        assert reconstruct(dataclasses.replace(config, checkpoint=weights)).images[0].loss > 0


def test_a_folder_gives_its_first_few_and_says_so(config: ReconstructConfig, image: Path) -> None:
    folder = image.parent / "many"
    folder.mkdir()
    for number in range(11):
        shutil.copy(image, folder / f"{number:02d}.png")
    result = reconstruct(dataclasses.replace(config, images=(folder,)))
    assert [one.path.name for one in result.images] == [f"{number:02d}.png" for number in range(8)]
    assert f"{folder}: 8 of 11 images; --limit 11 shows all" in result.notes
    height = opened(result.out).height
    counted: list[tuple[int, int]] = []
    three = reconstruct(
        dataclasses.replace(config, images=(folder, image), limit=2), lambda *count: counted.append(count)
    )
    assert [one.path for one in three.images] == [folder / "00.png", folder / "01.png", image]
    assert counted == [(1, 3), (2, 3), (3, 3)]
    assert opened(three.out).height < height / 2


def test_archives_and_tables_are_read(config: ReconstructConfig, image: Path, tmp_path: Path) -> None:
    content = {f"{number}.png": image.read_bytes() for number in range(3)}
    places = [write(tmp_path / name, content) for name, write in (("a.tar", write_tar), ("b.zip", write_zip))]
    places.append(write_parquet(tmp_path / "c.parquet", content))
    result = reconstruct(dataclasses.replace(config, images=tuple(places), limit=2))
    names = [str(one.path.relative_to(tmp_path)) for one in result.images]
    assert names == ["a.tar/0.png", "a.tar/1.png", "b.zip/0.png", "b.zip/1.png", "c.parquet/row 0", "c.parquet/row 1"]
    assert len({one.psnr for one in result.images}) == 1


def test_nothing_removed_has_no_numbers(config: ReconstructConfig, tmp_path: Path) -> None:
    result = reconstruct(dataclasses.replace(config, mask_ratio=(0.0,), separate=tmp_path / "panels"))
    (one,) = result.images
    assert (one.mask_ratio, one.loss, one.psnr) == (0, None, None)
    assert NOTHING_MASKED_NOTE in result.notes
    reconstruction = np.asarray(opened(tmp_path / "panels/001-photo-reconstruction.png"))
    assert not (reconstruction >= 191).all(axis=2).any()  # the decoder's output as it is, not a white page
    several = reconstruct(dataclasses.replace(config, mask_ratio=(0.0, 0.5)))
    assert [one.psnr is None for one in several.images] == [True, False]


@pytest.mark.parametrize(("bias", "expected"), [(1.7, False), (0.0, True)])
def test_a_silent_file_is_asked_by_removed_patches(
    config: ReconstructConfig, tmp_path: Path, bias: float, expected: bool
) -> None:
    """Also if no patch is masked, where there is no loss and no PSNR."""
    bright = tmp_path / "bright.png"
    Image.effect_noise((40, 40), 20).point(lambda value: 200 + value // 8).convert("RGB").save(bright)
    model = small_model()
    with torch.no_grad():
        model.decoder.pred.weight.zero_()
        model.decoder.pred.bias.fill_(bias)
    torch.save({"model": model.state_dict()}, tmp_path / "silent.pth")
    silent = dataclasses.replace(config, images=(bright,), checkpoint=tmp_path / "silent.pth", mask_ratio=(0.0,))
    assert reconstruct(silent).norm_pix == expected


def test_the_panels_of_visible_patches_are_faint(config: ReconstructConfig, tmp_path: Path) -> None:
    reconstruct(dataclasses.replace(config, separate=tmp_path / "panels"))
    panels = {
        name: np.asarray(opened(tmp_path / f"panels/001-photo-{name}.png")).reshape(4, 8, 4, 8, 3)
        for name in ("masked", "reconstruction")
    }
    removed = (panels["masked"] == (124, 116, 104)).all(axis=(1, 3, 4))
    faint = (panels["reconstruction"] >= 191).all(axis=(1, 3, 4))
    assert (faint == ~removed).all()


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (20_000, 10), (10, 20_000)])
@pytest.mark.parametrize("resize", [False, True])
def test_extreme_shapes_stay_on_a_page(config: ReconstructConfig, size: tuple[int, int], resize: bool) -> None:
    path = config.out.with_name("long.png")
    Image.new("RGB", size, "teal").save(path)
    result = reconstruct(dataclasses.replace(config, images=(path,), resize=resize))
    assert max(opened(config.out).size) < 1500
    assert any("which is another shape" in note for note in result.notes) == resize


@pytest.mark.parametrize("read", ["image", "image in a folder", "mask", "checkpoint"])
def test_what_is_read_is_never_written_over(config: ReconstructConfig, image: Path, tmp_path: Path, read: str) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(image, tmp_path / "folder/photo.png")
    shutil.copy(image, tmp_path / "mask.png")
    shutil.copy(config.checkpoint, tmp_path / "weights.png")  # the format is recognised by the content
    paths = {
        "image": image,
        "image in a folder": tmp_path / "folder/photo.png",
        "mask": tmp_path / "mask.png",
        "checkpoint": tmp_path / "weights.png",
    }
    changes = {"image in a folder": {"images": (tmp_path / "folder",)}, "mask": {"mask": tmp_path / "mask.png"}}
    changes |= {"checkpoint": {"checkpoint": tmp_path / "weights.png"}}
    before = paths[read].read_bytes()
    with pytest.raises(ConfigError, match=f"--out .* is the {read} itself|lies in .*folder, whose files are read"):
        reconstruct(dataclasses.replace(config, out=paths[read], **changes.get(read, {})))  # type: ignore[arg-type]
    assert paths[read].read_bytes() == before


def test_no_panel_is_written_over_an_image(config: ReconstructConfig, image: Path) -> None:
    """The second image has the file name of a panel of the first one; nothing is written."""
    second = image.parent / "panels" / "001-photo-original.png"
    second.parent.mkdir()
    shutil.copy(image, second)
    before = second.read_bytes()
    with pytest.raises(ConfigError, match=r"--separate .*001-photo-original\.png is the image itself"):
        reconstruct(dataclasses.replace(config, images=(image, second), separate=second.parent))
    assert second.read_bytes() == before
    assert [path.name for path in second.parent.iterdir()] == [second.name]
    assert not config.out.exists()


def test_the_page_is_not_written_over_a_panel(config: ReconstructConfig, image: Path) -> None:
    panels = image.parent / "panels"
    panels.mkdir()
    out = panels / f"001-{image.stem}-original.png"
    with pytest.raises(ConfigError, match="is a panel of --separate and another output"):
        reconstruct(dataclasses.replace(config, separate=panels, out=out))
    assert list(panels.iterdir()) == []


def test_a_page_is_drawn_over_and_over(config: ReconstructConfig, image: Path, tmp_path: Path) -> None:
    """The image may be written into the folder of the images, under another name."""
    for _ in range(2):
        reconstruct(dataclasses.replace(config, out=image.parent / "again.png", separate=tmp_path))


def test_an_own_mask_has_its_own_ratio(config: ReconstructConfig, tmp_path: Path) -> None:
    for ratios in ((0.75,), (0.5, 0.6)):
        with pytest.raises(ConfigError, match=r"--mask and (several )?--mask-ratio") as caught:
            dataclasses.replace(config, mask=tmp_path / "m.png", mask_ratio=ratios)
        assert caught.value.hint == "drop one of them"


def test_a_page_for_standard_output(config: ReconstructConfig, tmp_path: Path) -> None:
    for name, begins in ((None, b"\x89PNG"), ("png", b"\x89PNG"), ("jpg", b"\xff\xd8\xff"), ("webp", b"RIFF")):
        before = set(tmp_path.iterdir())
        result = reconstruct(dataclasses.replace(config, out=Path("-"), format=name))
        assert result.page is not None
        assert result.page.startswith(begins)
        assert set(tmp_path.iterdir()) == before
    with pytest.raises(ConfigError, match="the suffix of a file name gives its format"):
        dataclasses.replace(config, format="png")


def test_refusals(config: ReconstructConfig, tmp_path: Path) -> None:
    encoder = {key: value for key, value in small_model().state_dict().items() if "decoder" not in key}
    del encoder["mask_token"]
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match="encoder only") as caught:
        reconstruct(dataclasses.replace(config, checkpoint=tmp_path / "encoder.pth"))
    assert caught.value.hint is not None
    assert "mae_visualize_vit_base" in caught.value.hint
    head = {"head.weight": torch.zeros(3, encoder["cls_token"].shape[-1]), "head.bias": torch.zeros(3)}
    trained_from = "those that it was trained from, 'my run', or"
    for init, hint in (("", "for instance"), ("builtin", "for instance"), ("my run", trained_from)):
        torch.save({"model": encoder | head, "args": {"finetune": init}}, tmp_path / "classifier.pth")
        with pytest.raises(CheckpointError, match="holds a classifier") as caught:
            reconstruct(dataclasses.replace(config, checkpoint=tmp_path / "classifier.pth"))
        assert caught.value.hint == f"use weights with a decoder, {hint} the built-in ones, builtin"
    with pytest.raises(ConfigError, match="no folder"):
        reconstruct(dataclasses.replace(config, out=tmp_path / "none/grid.png"))
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        dataclasses.replace(config, out=tmp_path / "grid.tif")
    with pytest.raises(ConfigError, match="--mask and several"):
        dataclasses.replace(config, mask=tmp_path / "m.png", mask_ratio=(0.5, 0.6))
    with pytest.raises(ConfigError, match="leaves none"):
        reconstruct(dataclasses.replace(config, mask_ratio=(0.99,)))


def test_images_in_memory_are_drawn_and_nothing_is_written(
    image: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    expected = mae.reconstruct(image, checkpoint=weights, device="cpu")
    pixels = np.asarray(opened(image))
    given = [Image.fromarray(pixels), pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
    result = mae.reconstruct(given, image, checkpoint=weights, device="cpu")
    assert [one.path.name for one in result.images] == ["image 1", "image 2", "image 3", "photo.png"]
    assert {one.psnr for one in result.images} == {expected.images[0].psnr}
    assert (result.out, result.page) == (None, None)
    assert sorted(tmp_path.iterdir()) == before
    with Image.open(image) as file:
        assert mae.reconstruct(file, checkpoint=weights).images[0].path == Path("photo.png")


def test_the_drawing_is_the_file(config: ReconstructConfig, tmp_path: Path) -> None:
    result = mae.reconstruct(config)
    page = np.asarray(opened(config.out))
    assert (np.asarray(result.image) == page).all()
    assert result.save(tmp_path / "again.png") == tmp_path / "again.png"
    assert (tmp_path / "again.png").read_bytes() == config.out.read_bytes() == result._repr_png_()
    with pytest.raises(ConfigError, match=r"the name must end in \.png"):
        result.save(tmp_path / "again.gif")


def test_what_goes_wrong_is_told_in_python(image: Path, weights: Path) -> None:
    for options, message in (
        ({"out": "grid.gif"}, "out grid.gif: the name must end in .png, .jpg, .jpeg, .webp"),
        (
            {"mask": image, "mask_ratio": (0.5, 0.75)},
            "mask and several mask_ratio: the mask already determines the ratio",
        ),
        ({"norm_pix": "of"}, "norm_pix must be one of auto, on, off; got 'of'"),
        ({"device": "cuda:9"}, "device must be one of auto, cuda, mps, cpu; got 'cuda:9'"),
    ):
        with pytest.raises(ConfigError) as caught:
            mae.reconstruct(image, checkpoint=weights, **options)
        assert caught.value.message.startswith(message)
    with pytest.raises(TypeError, match="image 2: wanted a path, a PIL image"):
        mae.reconstruct([image, 3], checkpoint=weights)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_of_growing_masks(config: ReconstructConfig, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"growing{suffix}"
    result = reconstruct(dataclasses.replace(config, animate=path))
    assert result.animation == path
    with Image.open(path) as film:
        assert film.n_frames == 15  # of 16 patches 1 to 15 are masked; equal frames are one
        assert (len(ANIMATED_RATIOS), ANIMATED_RATIOS[0], ANIMATED_RATIOS[-1]) == (19, 0.05, 0.95)
        assert film.size == (result.image.width, film.height)
        masked = []
        for number in (0, 7, 14):
            film.seek(number)
            panel = np.asarray(film.convert("RGB"))[60:180, 12 + 192 + 6 : 12 + 2 * 192 + 6].astype(int)
            masked.append((abs(panel - (124, 116, 104)).max(axis=2) < 12).mean())
        assert masked[0] < masked[1] < masked[2]
        assert film.info["loop"] == 0  # without end
        assert film.info["duration"] >= LAST_MILLISECONDS
    with pytest.raises(ConfigError, match=r"the name must end in \.webp, \.gif"):
        dataclasses.replace(config, animate=tmp_path / "growing.png")
    with pytest.raises(ConfigError, match="--mask is one mask"):
        dataclasses.replace(config, animate=path, mask=path)
    with pytest.raises(ConfigError, match="is the image itself"):
        reconstruct(dataclasses.replace(config, images=(path,), animate=path))
    with pytest.raises(ConfigError, match="--out and --animate are the same file"):
        reconstruct(dataclasses.replace(config, out=tmp_path / "one.webp", animate=tmp_path / "one.webp"))


def test_an_animation_may_be_as_long_as_its_format_holds(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20_000, 2), colour) for colour in ("red", "blue")]
    write_animation(tmp_path / "long.gif", frames)
    with Image.open(tmp_path / "long.gif") as image:
        assert image.size == (20_000, 2)
    with pytest.raises(ConfigError, match="20,000 x 2 pixels are more than WEBP can hold"):
        write_animation(tmp_path / "long.webp", frames)


def test_panels_of_nearly_equal_ratios_have_names_of_their_own(tmp_path: Path, image: Path) -> None:
    """Both are 75 % when rounded, and panels of the same name would replace each other."""
    save_checkpoint(tmp_path / "many.pth", small_model(img_size=128))
    result = reconstruct(
        ReconstructConfig((image,), tmp_path / "many.pth", None, mask_ratio=(0.75, 0.752), separate=tmp_path / "panels")
    )
    names = [path.name for path in result.separate if "masked" in path.name]
    assert names == ["001-photo-masked-75.png", "001-photo-masked-75.38.png"]
    assert all(path.is_file() for path in result.separate)
    assert len(result.separate) == 7


def test_panels_of_an_image_with_the_longest_name(config: ReconstructConfig, image: Path, tmp_path: Path) -> None:
    long = image.rename(image.with_name("ä" * 125 + image.suffix))
    result = reconstruct(dataclasses.replace(config, images=(long,), separate=tmp_path / "panels"))
    assert [path.name[:8] for path in result.separate] == ["001-ääää"] * 4
    assert all(path.is_file() for path in result.separate)
