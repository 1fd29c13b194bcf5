"""How many parameters a method trains on one matrix, in one layer: closed forms."""

from __future__ import annotations

from tunemath.arrays import positive

__all__ = ["adapter_parameter_count", "lora_parameter_count", "prefix_parameter_count"]


def lora_parameter_count(d_in: int, d_out: int, rank: int) -> int:
    """Return the parameters of LoRA on one linear layer.

    Let A be (r, d_in) and B (d_out, r): ``r (d_in + d_out)``. A layer's bias stays frozen.

    >>> lora_parameter_count(4096, 4096, rank=8)
    65536

    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    d_in, d_out, rank = positive(d_in=d_in, d_out=d_out, rank=rank)
    return rank * (d_in + d_out)


def adapter_parameter_count(d_model: int, bottleneck: int, bias: bool = False) -> int:
    """Return the parameters of one bottleneck adapter, ``h + W_up σ(W_down h)``.

    Let d be d_model and m the bottleneck: ``2 d m``, and ``+ m + d`` with biases. A transformer
    layer may hold two of them.

    >>> adapter_parameter_count(1024, 32), adapter_parameter_count(1024, 32, bias=True)
    (65536, 66592)

    Source: Houlsby et al. 2019, arXiv 1902.00751.
    """
    d, m = positive(d_model=d_model, bottleneck=bottleneck)
    return 2 * d * m + (m + d if bias else 0)


def prefix_parameter_count(layers: int, prefix_length: int, kv_heads: int, head_dim: int) -> int:
    """Return the parameters of a trained key-value prefix, ``K′ = [K_p; K]``, ``V′ = [V_p; V]``.

    Let L be layers, P prefix_length, K kv_heads and d head_dim: ``2 L P K d``, a key and a value
    for each layer, place and KV head. Under grouped-query attention K is fewer than the heads.

    >>> prefix_parameter_count(24, 16, 16, 64)
    786432

    Valid when the prefix is trained directly, without a reparametrising network.

    Source: Li and Liang 2021, arXiv 2101.00190.
    """
    numbers = positive(
        layers=layers, prefix_length=prefix_length, kv_heads=kv_heads, head_dim=head_dim
    )
    layers, prefix_length, kv_heads, head_dim = numbers
    return 2 * layers * prefix_length * kv_heads * head_dim
