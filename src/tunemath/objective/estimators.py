"""KL divergence estimated from sampled tokens, where the whole distributions are out of reach.

Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html). Let p be the policy,
q the reference, and x a token **sampled from p**. An estimator has two uses, and they differ:

| estimator | value: E_p[k] | gradient as a loss: E_p[∇k] |
|---|---|---|
| `kl_k1` | KL(p ‖ q) | 0: pushes nowhere, adds noise |
| `kl_k2` | KL(p ‖ q) up to the third order in log q/p | ∇KL(p ‖ q) |
| `kl_k3` | KL(p ‖ q) | ∇KL(q ‖ p): the other direction |

The gradient is that with respect to p's parameters, with the samples fixed, as automatic
differentiation takes it (Tang and Munos 2025, arXiv 2506.09477). So: as a loss, `kl_k2`; inside
the reward (no gradient flows), `kl_k1`; as a figure to look at, `kl_k3`, or the exact
`kl_from_logits` where logits are at hand.

All this holds while the samples come from the policy itself; samples of an earlier policy need
importance weights.
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import numeric, plain, same_shape
from tunemath.objective.divergence import exp_excess

__all__ = ["kl_k1", "kl_k2", "kl_k3"]


def kl_k1(log_probs: Any, reference_log_probs: Any) -> Any:
    """Return k₁ of each sampled token, the plain log-ratio.

    Let p be the policy, q the reference, and x ~ p: ``log p(x) − log q(x)``.

    ``log_probs`` and ``reference_log_probs`` (…) nats, of one shape. Returns (…) nats, of either
    sign. Its mean estimates KL(p ‖ q) without bias. The mean of its gradient is zero, whatever q:
    as a loss it does nothing; subtracted from the reward it is the usual penalty.

    Valid when the tokens were sampled from p.

    >>> kl_k1([-1.0, -2.0], [-1.5, -1.75]).tolist()
    [0.5, -0.25]

    Source: Schulman 2020.
    """
    return plain(-_log_ratio(log_probs, reference_log_probs)[1])


def kl_k2(log_probs: Any, reference_log_probs: Any) -> Any:
    """Return k₂ of each sampled token, half the squared log-ratio.

    Let p be the policy, q the reference, and x ~ p: ``½ (log p(x) − log q(x))²``.

    ``log_probs`` and ``reference_log_probs`` (…) nats, of one shape. Returns (…), at least 0. Its
    mean is KL(p ‖ q) but for a bias of the third order, −E_p[u³/6 + u⁴/24 + …] with
    u = log q/p. The mean of its gradient is ∇KL(p ‖ q), without bias: this is the one to
    minimise.

    Valid when the tokens were sampled from p.

    >>> kl_k2([-1.0, -2.0], [-1.5, -1.75]).tolist()
    [0.125, 0.03125]

    Source: Schulman 2020; the gradient: Tang and Munos 2025, arXiv 2506.09477.
    """
    _, u = _log_ratio(log_probs, reference_log_probs)
    return plain(0.5 * u * u)


def kl_k3(log_probs: Any, reference_log_probs: Any) -> Any:
    """Return k₃ of each sampled token, the log-ratio with a control variate.

    Let p be the policy, q the reference, x ~ p and r = q(x)/p(x): ``(r − 1) − log r``.

    ``log_probs`` and ``reference_log_probs`` (…) nats, of one shape. Returns (…), at least 0,
    with its digits where p and q are close. Its mean estimates KL(p ‖ q) without bias, as
    E_p[r − 1] = 0. The mean of its gradient is not ∇KL(p ‖ q) but ∇KL(q ‖ p) = −E_q[∇log p]:
    minimised as a loss, as GRPO does (Shao et al. 2024, arXiv 2402.03300, equation 4), it pulls
    the policy over all that the reference does.

    Valid when the tokens were sampled from p, and q is 0 only where p is. The value grows as r
    does, and is infinite where r overflows (above e^88 in float32, e^709 in float64).

    >>> [round(float(k), 6) for k in kl_k3([-1.0, -2.0], [-1.5, -1.75])]
    [0.106531, 0.034025]

    Source: Schulman 2020; the gradient: Tang and Munos 2025, arXiv 2506.09477.
    """
    xp, u = _log_ratio(log_probs, reference_log_probs)
    return plain(exp_excess(xp, u))


def _log_ratio(log_probs: Any, reference_log_probs: Any) -> tuple[Any, Any]:
    """Return log q − log p."""
    xp, log_p, log_q = numeric(log_probs, reference_log_probs)
    same_shape(log_probs=log_p, reference_log_probs=log_q)
    return xp, log_q - log_p
