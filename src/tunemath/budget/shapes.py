"""What the budget needs to know of a model: integers."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Shapes"]


class Shapes(Protocol):
    """A decoder's shapes; a `Blueprint` has them."""

    @property
    def hidden(self) -> int:
        """D, the width of the residual stream."""
        ...

    @property
    def layers(self) -> int:
        """L, the number of transformer layers."""
        ...

    @property
    def vocab(self) -> int:
        """V, the number of tokens that the head scores."""
        ...

    @property
    def heads(self) -> int:
        """H, the number of query heads."""
        ...

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        ...

    @property
    def intermediate(self) -> int:
        """I, the width inside the feed-forward block."""
        ...

    @property
    def parameters(self) -> int:
        """All parameters of the base."""
        ...

    @property
    def linear_parameters(self) -> int:
        """N, the weights of all linear layers but the head."""
        ...
