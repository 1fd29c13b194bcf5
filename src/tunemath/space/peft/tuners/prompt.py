"""Virtual tokens before the input: prompt tuning, its multitask form, P-tuning and CPT."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Part
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.parts import linear_parts
from tunemath.space.peft.tuners.prompt_learning import (
    Sizes,
    encoder_change,
    prompt_sizes,
    word_embeddings,
)
from tunemath.space.peft.tuners.settings import one_of, whole

__all__ = ["cpt", "multitask_prompt_tuning", "p_tuning", "prompt_tuning"]

_FROM_VOCABULARY = ("TEXT", "SAMPLE_VOCAB")
_FROM_SOURCE = ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")


def prompt_tuning(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return a prompt of N = n · submodules embeddings: ``N d``.

    Source: Lester et al. 2021, arXiv 2104.08691.
    """
    sizes = prompt_sizes(blueprint, config)
    width = _embedding_width(blueprint, config, sizes)
    prompt = Part("embedding.weight", (sizes.prompt, width))
    return encoder_change(blueprint, config, (prompt,), sizes.prompt * width)


def multitask_prompt_tuning(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return a prompt that t tasks share and a product of rank r for each: ``N d + t r (N + d)``.

    Source: Wang et al. 2023, arXiv 2303.02861.
    """
    if config["prompt_tuning_init"] in _FROM_SOURCE:
        _require(config, "prompt_tuning_init_state_dict_path")
    sizes = prompt_sizes(blueprint, config)
    n, d, width = sizes.prompt, sizes.width, _embedding_width(blueprint, config, sizes)
    tasks, rank = whole(config, "num_tasks"), whole(config, "num_ranks")
    parts = (
        Part("embedding.weight", (n, width)),
        Part("prefix_task_cols", (tasks, n, rank)),
        Part("prefix_task_rows", (tasks, rank, d)),
    )
    return encoder_change(blueprint, config, parts, n * width + tasks * rank * (n + d))


def _embedding_width(blueprint: Blueprint, config: AdapterConfig, sizes: Sizes) -> int:
    """Return the prompt's width; one that starts as words takes theirs, whatever token_dim says."""
    if config["prompt_tuning_init"] == "TEXT":
        _require(config, "tokenizer_name_or_path")
        _require(config, "prompt_tuning_init_text")
    if config["inference_mode"] or config["prompt_tuning_init"] not in _FROM_VOCABULARY:
        return sizes.width
    return _words(blueprint, config)[1]


def _require(config: AdapterConfig, key: str) -> None:
    if not config[key]:
        raise ModelError(
            f"{config.peft_type}: {key} is {config[key]!r}, and prompt_tuning_init "
            f"{config['prompt_tuning_init']} needs it; set it, or start from RANDOM"
        )


def _words(blueprint: Blueprint, config: AdapterConfig) -> tuple[int, int]:
    """Return the rows and width of the word embeddings."""
    found = word_embeddings(blueprint)
    if found is None or found.kind != "embedding":
        raise ModelError(
            f"{config.peft_type} starts from word embeddings, and PEFT finds none in this model: "
            "no embedding has vocab_size rows"
        )
    return found.d_in, found.d_out


def p_tuning(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return a prompt and the network, h wide, that computes it.

    MLP: ``N d + (d h + h) + (h² + h) + (h d + d)``. LSTM of l layers in both directions:
    ``N d + 8h (d + h + 2) + 8h (3h + 2)(l - 1) + (4h² + 2h) + (2h d + d)``.

    With ``inference_mode`` PEFT makes no network.

    Source: Liu et al. 2021, arXiv 2103.10385.
    """
    sizes = prompt_sizes(blueprint, config)
    n, d, h = sizes.prompt, sizes.width, sizes.hidden
    prompt = Part("embedding.weight", (n, d))
    if config["inference_mode"]:
        return encoder_change(blueprint, config, (prompt,), n * d)
    if one_of(config, "encoder_reparameterization_type", ("MLP", "LSTM")) == "MLP":
        layers = (
            *linear_parts("mlp_head.0", d, h),
            *linear_parts("mlp_head.2", h, h),
            *linear_parts("mlp_head.4", h, d),
        )
        network = (d * h + h) + (h * h + h) + (h * d + d)
    else:
        depth = whole(config, "encoder_num_layers")
        layers = (
            *_lstm_parts(depth, d, h),
            *linear_parts("mlp_head.0", 2 * h, 2 * h),
            *linear_parts("mlp_head.2", 2 * h, d),
        )
        lstm = 8 * h * (d + h + 2) + 8 * h * (3 * h + 2) * (depth - 1)
        network = lstm + (4 * h * h + 2 * h) + (2 * h * d + d)
    return encoder_change(blueprint, config, (prompt, *layers), n * d + network)


def _lstm_parts(depth: int, d_in: int, h: int) -> list[Part]:
    """Return torch's tensors of a bidirectional LSTM, whose four gates lie in one matrix."""
    parts = []
    for layer in range(depth):
        width = d_in if layer == 0 else 2 * h
        for direction in ("", "_reverse"):
            end = f"l{layer}{direction}"
            parts += [
                Part(f"lstm_head.weight_ih_{end}", (4 * h, width)),
                Part(f"lstm_head.weight_hh_{end}", (4 * h, h)),
                Part(f"lstm_head.bias_ih_{end}", (4 * h,)),
                Part(f"lstm_head.bias_hh_{end}", (4 * h,)),
            ]
    return parts


def cpt(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the embeddings of a context's n tokens, frozen, and a correction of each: ``n d``.

    Source: arXiv 2410.17222.
    """
    one_of(config, "task_type", ("CAUSAL_LM",))
    ids = [0] if config["cpt_token_ids"] is None else config["cpt_token_ids"]
    for key in ("cpt_mask", "cpt_tokens_type_mask"):
        types = [1] * len(ids) if config[key] is None else config[key]
        if len(types) != len(ids):
            raise ModelError(
                f"CPT: {key} has {len(types)} entries for {len(ids)} cpt_token_ids; give one each"
            )
    # PEFT sets these itself, whatever the configuration says.
    config = config.having(num_virtual_tokens=len(ids), num_transformer_submodules=1,
                           num_layers=None, token_dim=None, num_attention_heads=None)  # fmt: skip
    d = prompt_sizes(blueprint, config).width
    rows, width = _words(blueprint, config)
    outside = [token for token in ids if not 0 <= token < rows]
    if outside:
        raise ModelError(
            f"CPT: cpt_token_ids has {outside}; the model's tokens are 0 to {rows - 1}"
        )
    parts = (
        Part("embedding.weight", (len(ids), d if config["inference_mode"] else width), False),
        Part("delta_embedding.weight", (len(ids), d)),
    )
    still = sum(each % 4 == 0 for each in types) * d
    notes = [f"PEFT counts {still} parameters of tokens whose type gets no gradient as trainable"]
    return encoder_change(blueprint, config, parts, len(ids) * d, *notes[: still > 0])
