"""Settings for common situations: each fills in defaults, and whatever is given explicitly wins. Standard library only.

To add a preset, add an entry here; the command line, its help, its completion and the documents' test read this table.
"""

from __future__ import annotations

from mae.options import Preset

PRESETS: dict[str, Preset] = {
    "small": Preset(
        "hundreds to thousands of images",
        {
            "variant": "vit_tiny",
            "image_size": 128,
            "patch_size": 16,
            "crop_scale": (0.5, 1.0),
            "batch_size": 48,
            "lr": 1.5e-3,
            "epochs": 400,
            "warmup_epochs": 5.0,
        },
    ),
    "fast": Preset(
        "small models and little time",
        {
            "variant": "vit_tiny",
            "decoder_embed_dim": 128,
            "decoder_depth": 1,
            "decoder_num_heads": 4,
            "crop_scale": (0.5, 1.0),
            "batch_size": 64,
            "lr": 1.5e-3,
            "epochs": 20,
            "warmup_epochs": 1.0,
        },
    ),
}
