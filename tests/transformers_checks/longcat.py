"""LongCat under the common tests of transformers; run by `tests/codec/test_transformers_checks.py`.

A test that does not apply is left out by name, with why; all others run as they are.
"""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from codec.hf import LongCatConfig, LongCatFeatureExtractor, LongCatModel
from codec.longcat.config import read_config
from tests.codec.golden import GOLDEN


class LongCatModelTester:
    batch_size = 2
    seq_length = 1600
    is_training = False

    def get_config(self) -> LongCatConfig:
        sizes = read_config(GOLDEN / "config.json")
        decoder = sizes.decoders["16k_4codebooks"].model_copy(update={"width": 32})
        return LongCatConfig.of(sizes.model_copy(update={"decoders": {"16k_4codebooks": decoder}}))

    def prepare_config_and_inputs_for_common(self) -> tuple[LongCatConfig, dict[str, Any]]:
        return self.get_config(), {"input_values": floats_tensor([self.batch_size, 1, self.seq_length], scale=0.1)}


NO_HIDDEN_STATES = "ids and audio come out, no hidden states or attentions, and without gradients"
NOT_APPLICABLE = {
    "test_hidden_states_output": NO_HIDDEN_STATES,
    "test_retain_grad_hidden_states_attentions": NO_HIDDEN_STATES,
    "test_model_outputs_equivalence": f"{NO_HIDDEN_STATES}; tuples and outputs are compared in test_longcat_hf.py",
    "test_model_get_set_embeddings": "the input is a waveform, which no embedding takes",
    "test_init_weights_can_init_buffers": "the k-means codebook is a buffer that is learned, so random before that",
}


class LongCatModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LongCatModel,)
    test_resize_embeddings = False
    has_attentions = False  # attention's weights are not given out

    def setUp(self) -> None:
        self.model_tester = LongCatModelTester()
        self.config_tester = ConfigTester(
            self, config_class=LongCatConfig, common_properties=[], has_text_modality=False
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


for name, why in NOT_APPLICABLE.items():
    setattr(LongCatModelTest, name, unittest.skip(why)(getattr(LongCatModelTest, name)))


class LongCatFeatureExtractorTester:
    batch_size = 7
    feature_size = 1
    min_seq_length, max_seq_length, seq_length_diff = 400, 1600, 200

    def prepare_feat_extract_dict(self) -> dict[str, Any]:
        return {"feature_size": 1, "sampling_rate": 16000, "padding_value": 0.0, "return_attention_mask": True}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list[Any]:
        step = 0 if equal_length else self.seq_length_diff
        lengths = [self.min_seq_length + step * index for index in range(self.batch_size)]
        waveforms = [np.random.default_rng(length).standard_normal(length) for length in lengths]
        return waveforms if numpify else [waveform.tolist() for waveform in waveforms]


class LongCatFeatureExtractorTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = LongCatFeatureExtractor

    def setUp(self) -> None:
        self.feat_extract_tester = LongCatFeatureExtractorTester()

    def test_a_batch_is_padded_with_a_mask(self) -> None:
        waveforms = [torch.randn(length).numpy() for length in (800, 1200)]
        inputs = LongCatFeatureExtractor()(raw_audio=waveforms, sampling_rate=16000, return_tensors="pt")
        assert inputs["input_values"].shape == (2, 1, 1200)
        assert inputs["padding_mask"].sum(-1).tolist() == [800, 1200]
