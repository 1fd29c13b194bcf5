"""Prefix and prompt tuning: trained places before the input, which every layer attends to.

PEFT puts a prefix into the cache of each forward pass, and a prompt before the embeddings of each
row. Gradient checkpointing takes caches away, and a prompt moves every position, so neither goes
with a cache of our own. Here keys and values are put before those of a layer where it computes its
attention. What a prompt's places compute depends on nothing behind them, so the model reads a
prompt once for all rows, and its keys and values are a prefix. Positions and values are PEFT's:
the logits are the same, and PEFT loads what is saved. In a sliding window the prefix stays in
sight, whereas in PEFT it slides out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM, PrefixTuningConfig, PromptTuningConfig
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunemath.errors import ModelError
from tunemath.space import PrefixSpace, PromptSpace, peft_settings

__all__ = ["VirtualTokens", "attach_virtual_tokens", "load_virtual_tokens"]

_HOLDER = "_virtual_tokens"
_NAME = "{}_behind_virtual_tokens"
KeysValues = tuple[Tensor, Tensor]


class VirtualTokens(PeftModelForCausalLM):
    """A frozen causal model behind the prefix or prompt of a PEFT configuration."""

    def __init__(self, base: Any, config: PeftConfig) -> None:
        body = _body(base)
        super().__init__(base, config)
        self._on = True
        self._recorded: dict[int, KeysValues] | None = None
        self._read: dict[int, KeysValues] = {}
        self._read_at = -1
        _install(self, base)
        with torch.no_grad():
            self._hold_shapes(self._record(base.get_input_embeddings()(_zeros(body))))
        body.register_forward_pre_hook(self._move, with_kwargs=True)

    @property
    def length(self) -> int:
        """P, the virtual tokens."""
        return self.active_peft_config.num_virtual_tokens  # pyright: ignore

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model behind its virtual tokens."""
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the model does; its cache holds the row's own tokens alone."""
        return self.base_model.generate(*args, **kwargs)  # pyright: ignore

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the model be the base inside."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    @torch.no_grad()
    def start_from_vocabulary(self) -> None:
        """Start a prefix as the keys and values of random tokens that stand before the input."""
        embeddings: Any = self.get_base_model().get_input_embeddings()  # pyright: ignore
        size = (1, self.length)
        ids = torch.randint(len(embeddings.weight), size).to(embeddings.weight.device)
        table = self._record(embeddings(ids))
        rows = [
            part[0].transpose(0, 1).flatten(1) for layer in sorted(table) for part in table[layer]
        ]
        self._encoder.embedding.weight.copy_(torch.cat(rows, dim=1))

    def before(self, module: Any, key: Tensor, value: Tensor) -> KeysValues | None:
        """Return what stands before a layer's keys and values, each (K, P, head), if anything."""
        layer = module.layer_idx
        if self._recorded is not None:
            self._recorded[layer] = (key, value)
            return None
        if not self._on:
            return None
        return self._prefix(layer) if self._is_prefix else self._read[layer]

    @property
    def _is_prefix(self) -> bool:
        return isinstance(self.active_peft_config, PrefixTuningConfig)

    @property
    def _encoder(self) -> Any:
        encoders: Any = self.prompt_encoder
        return encoders[self.active_adapter]

    def _prefix(self, layer: int) -> KeysValues:
        """Compute one layer's rows of the prefix, so that checkpointing may do it again."""
        config: Any = self.active_peft_config
        encoder, width, heads = self._encoder, config.token_dim, config.num_attention_heads
        part = slice(2 * layer * width, 2 * (layer + 1) * width)
        rows = encoder.embedding.weight
        if config.prefix_projection and not config.inference_mode:
            *first, last = encoder.transform
            for module in first:
                rows = module(rows)
            rows = nn.functional.linear(rows, last.weight[part], last.bias[part])
        else:
            rows = rows[:, part]
        both = rows.view(len(rows), 2, heads, width // heads).permute(1, 2, 0, 3)
        return both[0], both[1]

    def _move(self, body: Any, args: Any, kwargs: Any) -> Any:
        """Put the input P positions on, and read the prompt; runs before the model's body."""
        if not self._on:
            return None
        if not self._is_prefix:
            self._read_prompt()
        found = dict(zip(inspect.signature(body.forward).parameters, args, strict=False)) | kwargs
        positions = found.get("position_ids")
        if positions is None:
            states = found.get("inputs_embeds")
            states = found["input_ids"] if states is None else states
            cache = found.get("past_key_values")
            past = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(states.shape[1], device=states.device)[None] + past
        return (), found | {"position_ids": positions + self.length}

    def _read_prompt(self) -> None:
        """Let the model read the prompt; without gradients, only when the prompt has changed."""
        weight = self._encoder.embedding.weight
        learns = torch.is_grad_enabled() and weight.requires_grad
        if not learns and self._read_at == weight._version:
            return
        dtype = self.get_base_model().get_input_embeddings().weight.dtype  # pyright: ignore
        table = self._record(weight.to(dtype)[None])
        self._read = {layer: (key[0], value[0]) for layer, (key, value) in table.items()}
        self._read_at = -1 if learns else weight._version

    def _record(self, embeddings: Tensor) -> dict[int, KeysValues]:
        """Return every layer's keys and values of a row of embeddings (1, T, D), dropout off."""
        body: Any = _body(self.get_base_model())
        training = [module for module in body.modules() if module.training]
        for module in training:
            module.training = False
        self._recorded = {}
        try:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
            body.forward(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
            return self._recorded
        finally:
            self._recorded = None
            for module in training:
                module.training = True

    def _hold_shapes(self, table: dict[int, KeysValues]) -> None:
        """Refuse a model in which a layer's keys and values can't be reached, or don't fit."""
        config: Any = self.active_peft_config
        missing = [layer for layer in range(config.num_layers) if layer not in table]
        kind = self.get_base_model().config.model_type  # pyright: ignore
        if missing or len(table) != config.num_layers:
            raise ModelError(
                f"no virtual tokens can stand before layers {missing} of this {kind} model: they "
                "have no keys and values that pass through transformers' attention; use lora"
            )
        if not self._is_prefix:
            return
        expected = (config.num_attention_heads, config.token_dim // config.num_attention_heads)
        for layer, pair in table.items():
            for states in pair:
                if (states.shape[1], states.shape[3]) != expected:
                    raise ModelError(
                        f"layer {layer} of this {kind} model has keys or values of (heads, width) "
                        f"{(states.shape[1], states.shape[3])}, a prefix of PEFT's {expected}; "
                        "use prompt, or lora"
                    )


def attach_virtual_tokens(base: Any, space: PrefixSpace | PromptSpace, seed: int) -> VirtualTokens:
    """Freeze the base and put fresh virtual tokens before it, drawn from ``seed``."""
    torch.manual_seed(seed)
    kind, values = peft_settings(space)
    config = PrefixTuningConfig if kind == "PREFIX_TUNING" else PromptTuningConfig
    model = VirtualTokens(base, config(**values))
    if kind == "PREFIX_TUNING" and space.init == "vocabulary":
        model.start_from_vocabulary()
    return model


def load_virtual_tokens(
    base: Any, config: PeftConfig, tensors: Mapping[str, Tensor], folder: Path
) -> VirtualTokens:
    """Put the virtual tokens of a folder, ours or PEFT's, before a base, for inference.

    Of P-tuning and CPT PEFT saves the embeddings that their encoders made, so they are a prompt.
    """
    config.inference_mode = True
    model = VirtualTokens(base, config)
    saved, weight = tensors.get("prompt_embeddings"), model._encoder.embedding.weight
    if saved is None or saved.shape != weight.shape:
        found = "no virtual tokens" if saved is None else f"virtual tokens of {tuple(saved.shape)}"
        raise ModelError(
            f"{folder} has {found}, and this base needs {tuple(weight.shape)}; they were trained "
            "on another model"
        )
    with torch.no_grad():
        weight.copy_(saved)
    return model.requires_grad_(False).eval()


def _body(base: Any) -> Any:
    """Return the model without its output layer, or say why virtual tokens can't be put there."""
    body = base.base_model
    kind = base.config.model_type
    if base.config.is_encoder_decoder or body is base:
        raise ModelError(f"virtual tokens need a causal language model; {kind} is none; use lora")
    if "position_ids" not in inspect.signature(body.forward).parameters:
        raise ModelError(
            f"virtual tokens move the input on, and {type(body).__name__} takes no position_ids; "
            "use lora"
        )
    return body


def _zeros(body: Any) -> Tensor:
    return torch.zeros((1, 2), dtype=torch.long, device=body.device)


# --- transformers' attention


def _install(model: VirtualTokens, base: Any) -> None:
    """Let the layers of a base compute their attention through this module."""
    kind = base.config._attn_implementation
    if kind not in _FUNCTIONS:
        raise ModelError(
            f"virtual tokens need attention by sdpa or eager, and this model's is {kind!r}; load "
            'it with attn_implementation="sdpa"'
        )
    base.config._attn_implementation = _NAME.format(kind)
    for module in base.modules():
        if getattr(module, "layer_idx", None) is not None:
            module.__dict__[_HOLDER] = model  # no submodule: the base does not own its prefix


def _attend(
    attention: Callable[..., Any], fills_causal: bool, module: Any, query: Tensor, key: Tensor,
    value: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    holder: VirtualTokens | None = module.__dict__.get(_HOLDER)
    pair = holder.before(module, key, value) if holder is not None else None
    if pair is None:
        return attention(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("position_bias") is not None:
        raise ModelError("virtual tokens have no place in a position bias; use lora")
    rows, width = len(key), query.shape[2]
    if attention_mask is None and fills_causal and width > 1:
        key, value = key[:, :, :width], value[:, :, :width]  # a static cache's empty places
        causal = torch.ones((width, width), dtype=torch.bool, device=key.device).tril()
        attention_mask = causal[None, None]
    if attention_mask is not None:
        seen = (*attention_mask.shape[:-1], pair[0].shape[1])
        whole = attention_mask.dtype == torch.bool
        before = attention_mask.new_ones(seen) if whole else attention_mask.new_zeros(seen)
        attention_mask = torch.cat([before, attention_mask], dim=-1)
    key, value = (
        torch.cat([ahead.to(own.dtype)[None].expand(rows, -1, -1, -1), own], dim=2)
        for ahead, own in zip(pair, (key, value), strict=True)
    )
    return attention(module, query, key, value, attention_mask, **kwargs)


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor,
          attention_mask: Tensor | None, **kwargs: Any) -> Any:  # fmt: skip
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return _attend(attention, bool(causal), module, query, key, value, attention_mask, kwargs)


def _eager(module: Any, query: Tensor, key: Tensor, value: Tensor,
           attention_mask: Tensor | None, **kwargs: Any) -> Any:  # fmt: skip
    attention = sys.modules[type(module).__module__].eager_attention_forward
    return _attend(attention, False, module, query, key, value, attention_mask, kwargs)


_FUNCTIONS = {"sdpa": _sdpa, "eager": _eager}
for _kind, _function in _FUNCTIONS.items():
    AttentionInterface.register(_NAME.format(_kind), _function)
    AttentionMaskInterface.register(_NAME.format(_kind), ALL_MASK_ATTENTION_FUNCTIONS[_kind])
