"""From a checkpoint's tensor names to a live model's: renames and experts laid together.

What transformers does when it loads a checkpoint (conversion_mapping.py of 5.23), for the families
that people fine-tune. A name that no rule knows stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from tunemath.errors import ModelError
from tunemath.space.blueprint.quantised import Weight

__all__ = ["live_names", "live_weights", "without_buffers"]

# Constants and running statistics that older checkpoints carry among the weights, and layers for
# multi-token prediction, which transformers leaves out.
_NOT_PARAMETERS = frozenset(
    ("inv_freq", "original_inv_freq", "masked_bias", "position_ids", "running_mean", "running_var",
     "num_batches_tracked", "e_score_correction_bias", "relative_position_index", "k_scale",
     "v_scale", "final_logits_bias", "slope_rate", "query_decay", "key_decay", "diagonal_decay",
     "tid2eid")
)  # fmt: skip
_PREDICTION = ("mtp.", "model.mtp.")

_GATE, _UP, _DOWN = "gate", "up", "down"
_EXPERT_PARTS = {
    "gate_proj.weight": _GATE,
    "up_proj.weight": _UP,
    "down_proj.weight": _DOWN,
    "w1.weight": _GATE,
    "w3.weight": _UP,
    "w2.weight": _DOWN,
}

Rename = tuple[str, str]

# Renames that belong to one family each and are tried everywhere, since no other has such names.
_EVERYWHERE: tuple[Rename, ...] = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^model\.language_model\.model\.", "model.language_model."),
    (r"^embed_out\.", "lm_head."),
    (r"\.block_sparse_moe\.input_linear\.weight$", ".block_sparse_moe.experts.gate_up_proj"),
    (r"\.block_sparse_moe\.output_linear\.weight$", ".block_sparse_moe.experts.down_proj"),
    (r"\.block_sparse_moe\.router\.layer\.weight$", ".block_sparse_moe.router.weight"),
)
_VIT: tuple[Rename, ...] = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.query", "attention.q_proj"),
    (r"attention\.attention\.key", "attention.k_proj"),
    (r"attention\.attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
_DINO: tuple[Rename, ...] = (
    (r"attention\.attention\.query", "attention.q_proj"),
    (r"attention\.attention\.key", "attention.k_proj"),
    (r"attention\.attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.weights_out", "mlp.down_proj"),
)
_LLAVA: tuple[Rename, ...] = (
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|audio_tower|multi_modal_projector|image_newline|vision_model)", r"model.\1"),
    (r"^model\.(vision_tower)\.vision_model\.", r"model.\1."),
)
_QWEN2_VL: tuple[Rename, ...] = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
)
_MIXTRAL: tuple[Rename, ...] = ((r"\.block_sparse_moe\.", ".mlp."),)
_PHIMOE: tuple[Rename, ...] = (*_MIXTRAL, (r"\.mlp\.gate\.weight$", ".mlp.router.weight"))
_NEMOTRON_H: tuple[Rename, ...] = ((r"^backbone\.", "model."),)

_BY_MODEL_TYPE = {
    **dict.fromkeys(
        ("vit", "deit", "ijepa", "vit_mae", "vit_msn", "vivit", "audio-spectrogram-transformer"),
        _VIT,
    ),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINO),
    "phimoe": _PHIMOE,
    "nemotron_h": _NEMOTRON_H,
}


def live_weights(weights: Mapping[str, Weight], model_type: str = "") -> dict[str, Weight]:
    """Return the parameters under the names that the live model gives them.

    A mixture's experts, stored one by one, become single tensors: gate_up_proj (E, 2I, D) and
    down_proj (E, D, I).
    """
    rename = _renaming(weights, model_type)
    found: dict[str, Weight] = {}
    for stored, weight in _fused(weights).items():
        name = rename(stored)
        if name in found:
            raise ModelError(
                f"two tensors of the checkpoint become {name} in the model; "
                "it is put together from several, download one again"
            )
        found[name] = weight
    return found


def live_names(stored: Iterable[str], model_type: str = "") -> dict[str, str]:
    """Return the live model's name of each stored tensor; a mixture's experts keep their own."""
    names = list(stored)
    rename = _renaming(names, model_type)
    return {name: rename(name) for name in names}


def _renaming(names: Collection[str], model_type: str) -> Callable[[str], str]:
    """Return the function from a stored name to the live one."""
    renames = [
        (re.compile(pattern), target)
        for pattern, target in (*_EVERYWHERE, *_family(names, model_type))
    ]

    def rename(name: str) -> str:
        for pattern, target in renames:
            name = pattern.sub(target, name, count=1)
        return name

    return rename


def _family(names: Collection[str], model_type: str) -> tuple[Rename, ...]:
    """Return the renames of a family, which its model type or its own names tell."""
    if model_type in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[model_type]
    if any(".block_sparse_moe.experts." in name for name in names):
        phimoe = not model_type and any(n.endswith("input_layernorm.bias") for n in names)
        return _PHIMOE if phimoe else _MIXTRAL
    roots = {name.partition(".")[0] for name in names}
    if "language_model" in roots and roots & {"vision_tower", "audio_tower", "vision_model"}:
        return _LLAVA
    if "visual" in roots and "model" in roots:
        return _QWEN2_VL
    if any(name.endswith("encoder.layer.0.layer_scale1.lambda1") for name in names):
        return _DINO
    if roots & {"vit", "deit", "audio_spectrogram_transformer"} or "embeddings.cls_token" in names:
        return _VIT
    return ()


def without_buffers(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Leave out what is no parameter, and the layers for multi-token prediction.

    Causal masks are stored as biases of four dimensions by GPT-2 and its kin. DeepSeek-V3's layers
    after the last are told by the projection that joins two states.
    """
    prediction = (
        *_PREDICTION,
        *(n.removesuffix("eh_proj.weight") for n in weights if n.endswith(".eh_proj.weight")),
    )
    found = {}
    for name, weight in weights.items():
        key = name.rpartition(".")[2]
        mask = key == "bias" and len(weight.shape) == 4
        if not (mask or key in _NOT_PARAMETERS or name.startswith(prediction)):
            found[name] = weight
    return found


def _fused(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Lay the experts of each layer together: experts.7.w1.weight and its like."""
    found: dict[str, Weight] = {}
    layers: dict[str, dict[str, dict[str, Weight]]] = {}
    for name, weight in weights.items():
        layer, mark, rest = name.partition(".experts.")
        if mark:
            number, _, tail = rest.partition(".")
            part = _EXPERT_PARTS.get(tail)
            if part and number.isdecimal():
                layers.setdefault(layer, {}).setdefault(part, {})[number] = weight
                continue
        found[name] = weight
    for layer, parts in layers.items():
        found.update(_together(f"{layer}.experts", parts))
    return found


def _together(name: str, parts: Mapping[str, Mapping[str, Weight]]) -> dict[str, Weight]:
    """Return a layer's experts as single tensors; all experts must be there, and be alike."""
    experts = {part: len(each) for part, each in parts.items()}
    first = {part: next(iter(each.values())) for part, each in parts.items()}
    whole = all(each.keys() == set(map(str, range(len(each)))) for each in parts.values())
    alike = all(w.shape == first[p].shape for p, each in parts.items() for w in each.values())
    matrices = all(len(weight.shape) == 2 for weight in first.values())
    if not (whole and alike and matrices and len({*experts.values()}) == 1):
        counts = ", ".join(f"{count} × {part}" for part, count in experts.items())
        raise ModelError(
            f"the experts of {name} are not alike or not all there ({counts}); "
            "the checkpoint is not whole, download it again"
        )
    count = max(experts.values())
    sums = {part: sum(w.nbytes for w in each.values()) for part, each in parts.items()}
    found = {}
    if _GATE in first and _UP in first:
        gate = first[_GATE]
        rows = gate.shape[0] + first[_UP].shape[0]
        found[f"{name}.gate_up_proj"] = Weight(
            (count, rows, gate.shape[1]), gate.dtype, sums[_GATE] + sums[_UP], gate.form
        )
        first = {part: weight for part, weight in first.items() if part == _DOWN}
    for part, weight in first.items():
        found[f"{name}.{part}_proj"] = Weight(
            (count, *weight.shape), weight.dtype, sums[part], weight.form
        )
    return found
