"""The `README.md` of a converted checkpoint, as the hub shows it."""

from __future__ import annotations

import math

from codec.base import CodecInfo
from codec.hf.configuration import LongCatConfig

_CARD = """\
---
license: mit
library_name: transformers
tags:
- audio
- speech
- audio-codec
- audio-tokenizer
---

# LongCat-Audio-Codec, for transformers

The [LongCat semantic-acoustic speech codec](https://arxiv.org/abs/2510.15227), converted {source}.
Its weights are under the MIT licence of the published codec{license}.
Only their form has changed: weight norm is folded, and all parts stand in one safetensors file.

| | |
| --- | --- |
| input | mono, {rate} Hz, at most 30 s at once |
| frames | {frame_rate:.4g} a second, {hop} samples each; a clip has ceil(samples / {hop}) |
| ids of a frame | {cardinalities}: the semantic one first, then acoustic, coarse to fine |
| bits a second | {semantic_bits:.0f} semantic, {acoustic_bits:.0f} for each acoustic codebook |
| decoders | {decoders} |
| the encoder's published files | SHA-256 {hash} |

## Use

With voxmill and its extra `hf` installed; the import makes transformers know the model:

```python
import codec.hf
import torch
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("THIS_FOLDER").eval()
extractor = AutoFeatureExtractor.from_pretrained("THIS_FOLDER")

clips = [torch.randn(16000).numpy(), torch.randn(40000).numpy()]
inputs = extractor(raw_audio=clips, sampling_rate={rate}, return_tensors="pt")
codes = model.encode(**inputs).audio_codes  # int64 [2, {num_codebooks}, frames], 0 past a clip's own frames
semantic, acoustic = codes[:, 0], codes[:, 1:]
audio = model.decode(codes, inputs["padding_mask"]).audio_values  # float32 [2, 1, samples]
```

A clip's ids do not depend on what it is batched with. To tokenize a dataset in object storage:
`voxmill run --codec THIS_FOLDER --input 's3://bucket/shards/' --output s3://bucket/tokens`.
"""


def model_card(config: LongCatConfig, source_uri: str, published: CodecInfo, has_license: bool) -> str:
    """The card of a converted checkpoint; `published` is what the files were that it was converted from."""
    sizes = config.sizes
    semantic, acoustic = sizes.semantic.cardinality, sizes.acoustic.cardinality
    decoders = "; ".join(
        f"to {one.sample_rate_hz} Hz, of {one.num_codebooks} acoustic codebook{'s' * (one.num_codebooks > 1)} or fewer"
        for one in sizes.decoders.values()
    )
    return _CARD.format(
        # A path of somebody's machine says nothing to others.
        source=f"from `{source_uri}`" if "://" in source_uri else "from its published files",
        license=" (see LICENSE)" if has_license else "",
        rate=sizes.sample_rate_hz,
        frame_rate=config.frame_rate,
        hop=sizes.frame_size,
        cardinalities=" + ".join(str(size) for size in config.codebook_sizes),
        semantic_bits=math.log2(semantic) * config.frame_rate,
        acoustic_bits=math.log2(acoustic) * config.frame_rate,
        decoders=decoders or "none",
        hash=published.checkpoint_hash,
        num_codebooks=config.num_quantizers,
    )
