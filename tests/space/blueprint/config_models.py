"""Tiny configurations of every family that is described without transformers, and variants."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers

from tunemath.runner.blueprints import blueprint_of
from tunemath.space import Blueprint
from tunemath.space.blueprint import config

Values = dict[str, Any]

_DECODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_HEAD = _DECODER | {"head_dim": 16}
_ENCODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MODERN = _ENCODER | {"cls_token_id": 1, "sep_token_id": 2}
_GPT = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ROTARY = _GPT | {"rotary_dim": 4}
_NEO = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
    "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 40,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MPT = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SHARED = {"shared_expert_intermediate_size": 40}
_ROUTED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_LATENT = _ROUTED | {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
_DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "head_dim": 8, "num_hidden_layers": 4,
}  # fmt: skip
_JAMBA = {
    "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1,
}  # fmt: skip
_SEQ2SEQ = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 56, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "max_position_embeddings": 40, "forced_eos_token_id": 2,
}  # fmt: skip
_WHISPER = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 56, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "num_mel_bins": 8, "max_source_positions": 32,
    "max_target_positions": 24,
}  # fmt: skip
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_DISTIL = {
    "vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
    "max_position_embeddings": 40,
}  # fmt: skip
_IMAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_TOWERS = {"text_config": _ENCODER, "vision_config": _IMAGE}
_BIASED = {"attention_bias": True, "mlp_bias": True}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}

# Each model type: its configuration, and what may differ from it.
FAMILIES: dict[str, tuple[Values, tuple[Values, ...]]] = {
    "albert": (
        _ENCODER | {"embedding_size": 16},
        ({"num_hidden_groups": 2, "inner_group_num": 2}, {"tie_word_embeddings": False}),
    ),
    "arcee": (_DECODER, (_BIASED,)),
    "bart": (_SEQ2SEQ, ({"tie_word_embeddings": False},)),
    "bert": (_ENCODER, ({"is_decoder": True, "add_cross_attention": True},)),
    "blenderbot": (_SEQ2SEQ, ()),
    "bloom": (
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ({"n_embed": 16}, {"num_hidden_layers": 1}),
    ),
    "camembert": (_ENCODER, ({"tie_word_embeddings": False},)),
    "clip": (
        _TOWERS | {"projection_dim": 16},
        ({"text_config_dict": {"hidden_size": 16}}, {"text_config": None, "vision_config": None}),
    ),
    "clip_text_model": (_ENCODER, ({"projection_dim": 16},)),
    "clip_vision_model": (_IMAGE, ()),
    "codegen": (_ROTARY, ({"n_inner": 40},)),
    "cohere": (_DECODER, ({"use_qk_norm": True, "attention_bias": True},)),
    "cohere2": (_DECODER, ({"head_dim": 16},)),
    "deberta": (
        _ENCODER,
        (
            _DISENTANGLED,
            _DISENTANGLED | {"pos_att_type": "c2p|p2c", "max_relative_positions": 8},
            {"position_biased_input": False, "type_vocab_size": 2, "talking_head": True},
            {"embedding_size": 16},
            {"legacy": False},
        ),
    ),
    "deberta-v2": (
        _ENCODER,
        (
            _DISENTANGLED | {"share_att_key": True, "position_buckets": 8, "conv_kernel_size": 3}
            | {"norm_rel_ebd": "layer_norm", "conv_groups": 2},
            _DISENTANGLED,
            {"embedding_size": 16, "type_vocab_size": 2, "legacy": False},
        ),
    ),
    "deepseek_v2": (
        _DECODER | _LATENT,
        ({"q_lora_rank": None}, {"n_shared_experts": 2, "attention_bias": True}),
    ),
    "deepseek_v3": (
        _DECODER | _LATENT,
        ({"q_lora_rank": None}, {"n_shared_experts": 2, "attention_bias": True}),
    ),
    "deit": (_IMAGE, ({"image_size": [16, 24]},)),
    "dinov2": (
        _IMAGE,
        ({"use_swiglu_ffn": True}, {"qkv_bias": False, "mlp_ratio": 2, "use_mask_token": False}),
    ),
    "distilbert": (_DISTIL, ({"sinusoidal_pos_embds": True}, {"tie_word_embeddings": False})),
    "electra": (
        _ENCODER | {"embedding_size": 16},
        ({"embedding_size": 32}, {"summary_use_proj": False}),
    ),
    "ernie4_5": (_DECODER, ({"use_bias": True},)),
    "exaone4": (_DECODER, ({"sliding_window": None, "layer_types": ["full_attention"] * 2},)),
    "falcon": (
        _ENCODER,
        (
            {"multi_query": False, "bias": True},
            {"new_decoder_architecture": True, "num_kv_heads": 2},
            {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
            {"parallel_attn": False},
            {"multi_query": False, "parallel_attn": False, "alibi": True, "ffn_hidden_size": 40},
        ),
    ),
    "gemma": (_HEAD, ({"attention_bias": True}, {"num_key_value_heads": 1})),
    "gemma2": (_HEAD, ({"attention_bias": True, "tie_word_embeddings": False},)),
    "gemma3": ({"text_config": _HEAD, "vision_config": _IMAGE, "mm_tokens_per_image": 4}, ()),
    "gemma3_text": (_HEAD, ({"attention_bias": True, "sliding_window_pattern": 2},)),
    "glm": (_DECODER | {"head_dim": 8}, ({"attention_bias": False},)),
    "glm4": (_DECODER | {"head_dim": 8}, ()),
    "glm4_moe": (
        _HEAD | _ROUTED,
        ({"use_qk_norm": True, "attention_bias": True}, {"first_k_dense_replace": 0}),
    ),
    "gpt2": (
        _GPT,
        (
            {"n_inner": 40, "add_cross_attention": True},
            {"tie_word_embeddings": False},
            {"hidden_size": 16, "num_hidden_layers": 1},
        ),
    ),
    "gpt_bigcode": (_GPT, ({"multi_query": False, "n_inner": 40},)),
    "gpt_neo": (_NEO, ({"intermediate_size": 40},)),
    "gpt_neox": (_ENCODER, ({"attention_bias": False, "tie_word_embeddings": True},)),
    "gpt_oss": (_HEAD | _LOCAL, ({"attention_bias": False},)),
    "gptj": (_ROTARY, ({"n_inner": 40, "tie_word_embeddings": True},)),
    "granite": (_DECODER, (_BIASED,)),
    "granitemoe": (_DECODER | _LOCAL, ({"attention_bias": True},)),
    "granitemoeshared": (
        _DECODER | _LOCAL | {"shared_intermediate_size": 40},
        ({"shared_intermediate_size": 0},),
    ),
    "jamba": (
        _DECODER | _JAMBA,
        ({"mamba_dt_rank": 4, "mamba_proj_bias": True}, {"num_experts": 1}),
    ),
    "llama": (
        _DECODER,
        (
            _BIASED,
            {"tie_word_embeddings": True},
            {"head_dim": 6, "num_key_value_heads": 1},
            {"num_key_value_heads": None},
        ),
    ),
    "llama4_text": (
        _DECODER | _LOCAL | {"intermediate_size_mlp": 40, "head_dim": 8},
        ({"interleave_moe_layer_step": 2, "attention_bias": True}, {"moe_layers": [0]}),
    ),
    "m2m_100": (_SEQ2SEQ, ()),
    "mbart": (_SEQ2SEQ, ({"tie_word_embeddings": False},)),
    "ministral3": (_HEAD, ()),
    "mistral": (_DECODER, ({"head_dim": 16}, {"tie_word_embeddings": True})),
    "mixtral": (_DECODER | _LOCAL, ({"head_dim": 16},)),
    "modernbert": (
        _MODERN,
        (
            _BIASED | {"norm_bias": True, "decoder_bias": False, "classifier_bias": True},
            {"tie_word_embeddings": False},
        ),
    ),
    "mpt": (_MPT, ({"expansion_ratio": 2, "no_bias": False, "attn_config": {"qk_ln": True}},)),
    "mt5": (_T5, ({"num_decoder_layers": 1},)),
    "nemotron": (_DECODER, (_BIASED, {"head_dim": 16})),
    "olmo": (_DECODER, ({"attention_bias": True},)),
    "olmo2": (_DECODER, ({"attention_bias": True},)),
    "olmo3": (_DECODER, ({"attention_bias": True},)),
    "olmoe": (_DECODER | _EXPERTS, ({"attention_bias": True, "tie_word_embeddings": True},)),
    "opt": (
        _ENCODER | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        (
            {"word_embed_proj_dim": 16},
            {"do_layer_norm_before": False, "word_embed_proj_dim": None},
            {"enable_bias": False},
            {"layer_norm_elementwise_affine": False},
            {"_remove_final_layer_norm": True},
        ),
    ),
    "pegasus": (_SEQ2SEQ, ()),
    "phi": (_DECODER, ({"qk_layernorm": True},)),
    "phi3": (_DECODER, ({"tie_word_embeddings": True, "num_key_value_heads": 4},)),
    "phimoe": (_DECODER | _LOCAL, ({"attention_bias": True, "lm_head_bias": True},)),
    "qwen2": (
        _DECODER,
        ({"head_dim": 16}, {"use_sliding_window": True, "max_window_layers": 1}),
    ),
    "qwen2_moe": (
        _DECODER | _EXPERTS | _SHARED,
        (
            {"mlp_only_layers": [0], "use_sliding_window": True},
            {"decoder_sparse_step": 2},
            {"qkv_bias": False, "mlp_only_layers": None},
        ),
    ),
    "qwen3": (_DECODER, ({"attention_bias": True}, {"head_dim": 16})),
    "qwen3_moe": (
        _DECODER | _EXPERTS,
        (
            {"mlp_only_layers": [1], "attention_bias": True},
            {"decoder_sparse_step": 2, "num_local_experts": 3},
        ),
    ),
    "qwen3_next": (
        _DECODER | _EXPERTS | _SHARED | _DELTA,
        ({"full_attention_interval": 2, "attention_bias": True},),
    ),
    "roberta": (
        _ENCODER,
        ({"is_decoder": True, "add_cross_attention": True, "tie_word_embeddings": False},),
    ),
    "seed_oss": (_DECODER, ({"attention_bias": False, "attention_out_bias": True},)),
    "siglip": (_TOWERS, ()),
    "siglip_text_model": (_ENCODER, ({"projection_size": 20},)),
    "siglip_vision_model": (_IMAGE, ({"vision_use_head": False},)),
    "smollm3": (_DECODER, (_BIASED, {"use_sliding_window": True, "sliding_window": 8})),
    "stablelm": (
        _DECODER,
        ({"use_qkv_bias": True, "qk_layernorm": True}, {"use_parallel_residual": True}),
    ),
    "starcoder2": (_DECODER, ({"use_bias": False},)),
    "t5": (
        _T5,
        ({"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
         {"num_decoder_layers": 1}, {"feed_forward_proj": "gated-gelu", "is_gated_act": False}),
    ),
    "umt5": (_T5, ({"num_decoder_layers": 1},)),
    "vit": (_IMAGE, ({"qkv_bias": False, "pooler_output_size": 20, "num_labels": 0},)),
    "whisper": (_WHISPER, ({"use_weighted_layer_sum": True},)),
    "xlm-roberta": (_ENCODER, ({"tie_word_embeddings": False},)),
}  # fmt: skip

# DistilBERT answers questions by two numbers, and transformers refuses others.
TWO_LABELS = ("DistilBertForQuestionAnswering",)
THREE_LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}}


FACTS = Path(config.__file__).with_name("facts.json")
CLASSES: dict[str, list[str]] = {
    model_type: facts["classes"]
    for model_type, facts in json.loads(FACTS.read_text())["types"].items()
}
"""The classes that transformers has for each model type; scripts/facts.py wrote them down."""


def live(values: Values, architecture: str) -> Blueprint:
    """Return the blueprint of the model that transformers builds on the meta device."""
    settings = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(copy.deepcopy(values))
    with torch.device("meta"):
        return blueprint_of(getattr(transformers, architecture)(settings))


def plain(values: Any) -> Any:
    """Return a configuration as JSON has it."""
    return json.loads(json.dumps(values, default=str))


def values_of(model_type: str, architecture: str, **more: object) -> dict[str, object]:
    labels = {} if architecture in TWO_LABELS else THREE_LABELS
    given = {"model_type": model_type, "architectures": [architecture]}
    return {**given, **FAMILIES[model_type][0], **labels, **more}


def assert_equal(ours: Blueprint | None, theirs: Blueprint) -> None:
    """Hold a blueprint against the live model's; of the configuration, the fields that both have.

    Names of labels and parts with many more fields are left out.
    """
    assert ours is not None
    for each in fields(Blueprint):
        if each.name != "config":
            assert getattr(ours, each.name) == getattr(theirs, each.name), each.name
    left_out = ("architectures", "id2label", "text_config", "vision_config", "attn_config")
    shared = [key for key in ours.config if key in theirs.config and key not in left_out]
    mine, yours = plain(dict(ours.config)), plain(dict(theirs.config))
    assert {key: mine[key] for key in shared} == {key: yours[key] for key in shared}
