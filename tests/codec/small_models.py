"""Small models of the transformers package with random weights, by their `model_type`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CARDINALITY = 64

_DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_size": CARDINALITY, "codebook_dim": 4}


def small_model(model_type: str, **changes: Any) -> Any:
    """A model in evaluation mode; `changes` go over its config."""
    import transformers

    settings: dict[str, dict[str, Any]] = {
        "mimi": {
            "hidden_size": 32,
            "num_filters": 4,
            "codebook_size": CARDINALITY,
            "codebook_dim": 16,
            "vector_quantization_hidden_dimension": 16,
            "num_quantizers": 5,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "intermediate_size": 64,
            "sliding_window": 20,
            "upsampling_ratios": [4, 4, 3, 2],
            "upsample_groups": 32,
        },
        "encodec": {
            "hidden_size": 16,
            "num_filters": 4,
            "codebook_size": CARDINALITY,
            "target_bandwidths": [1.5, 3.0, 6.0],
        },
        # An odd stride: then the decoder makes fewer samples than its frames stand for.
        "dac": {**_DAC, "n_codebooks": 4, "downsampling_ratios": [2, 4, 5]},
        "xcodec": {
            "target_bandwidths": [0.5, 1, 2],
            "codebook_size": CARDINALITY,
            "acoustic_model_config": {
                **_DAC,
                "hidden_size": 64,
                "downsampling_ratios": [8, 5, 4, 2],
                "upsampling_ratios": [8, 5, 4, 2],
            },
            "semantic_model_config": {
                "model_type": "hubert",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "conv_dim": [16] * 7,
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 4,
            },
        },
    }
    class_name = {"mimi": "Mimi", "encodec": "Encodec", "dac": "Dac", "xcodec": "Xcodec"}[model_type]
    config = getattr(transformers, f"{class_name}Config")(**{**settings[model_type], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{class_name}Model")(config)
        for name, buffer in model.named_buffers():
            if name.endswith(("embed", "embed_sum")):  # zero in a new model: then every id is 0
                buffer.normal_()
    return model.eval()


def save_small_model(folder: Path, model_type: str, **changes: Any) -> Path:
    """A small model saved as `save_pretrained` does; returns the folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    small_model(model_type, **changes).save_pretrained(folder)
    return folder
