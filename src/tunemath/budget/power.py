"""The smallest improvement that an evaluation of this size can be expected to see."""

from __future__ import annotations

import math
from statistics import NormalDist

from tunemath.arrays import positive

__all__ = ["smallest_detectable_difference"]


def smallest_detectable_difference(
    items: int, alpha: float = 0.05, power: float = 0.8, discordance: float = 0.5
) -> float:
    """Return the smallest true difference in accuracy that a paired comparison will find.

    Both models answer the same n items. Let ψ be the share of items that exactly one of them
    gets right, and d the difference of their accuracies. McNemar's difference of wins and losses
    over n has mean d and variance (ψ − d²)/n, and ψ/n if d is zero; so with normal quantiles
    a = z(1 − α/2) and b = z(power), d is found with the given power if

    ``d √n = a √ψ + b √(ψ − d²)``, that is ``d = √ψ (a √n + b √(n − a² + b²)) / (n + b²)``.

    d can't exceed ψ; where the formula says it would, ψ is raised to d (all discordant items are
    wins): with ψ = d, ``√(n d) = a + b √(1 − d)``.

    ``items`` n; ``alpha`` of the two-sided test; ``discordance`` ψ. The default of 1/2 is
    conservative: it is the most for two equally accurate models that err independently, and models
    that find the same items hard disagree less. Returns an accuracy difference between 0 and 1.

    Valid when n ψ is 20 or more; below that the exact test finds less than the normal one.

    >>> round(smallest_detectable_difference(150), 3), round(smallest_detectable_difference(300), 3)
    (0.16, 0.114)

    Source: Connor 1987, Biometrics 43:207, solved for d; Miettinen 1968, Biometrics 24:339.
    """
    (n,) = positive(items=items)
    _check_share(alpha=alpha, power=power, discordance=discordance)
    a, b = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    root = n - a * a + b * b
    if root > 0:
        d = math.sqrt(discordance) * (a * math.sqrt(n) + b * math.sqrt(root)) / (n + b * b)
        if d <= discordance:
            return d
    if math.sqrt(n) < a:
        raise ValueError(
            f"{n} items can't show any difference at alpha {alpha:g}; "
            f"give {math.ceil(a * a)} or more"
        )
    low, high = 0.0, 1.0  # √(nd) − a − b√(1 − d) changes sign once: below 0 at d = 0, not at 1
    for _ in range(60):
        d = (low + high) / 2
        low, high = (d, high) if math.sqrt(n * d) < a + b * math.sqrt(1 - d) else (low, d)
    return high


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        limit = share <= 1 if name == "discordance" else share < 1
        if not (share > 0 and limit):
            raise ValueError(f"{name} is {share!r}; expected a number between 0 and 1")
