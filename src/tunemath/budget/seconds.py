"""How long a run will take here, from the work it implies and this machine's measured rate."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work", "seconds_of"]

# Shares of the measured matrix-product rate that each kind of work reaches on a CPU, fitted to
# `python benchmarks/stages.py`, which prints predicted seconds beside measured ones.
_FORWARD = 0.80
_TRAINING = 0.47
_DECODING = 0.30
_LOAD_SECONDS = 1.5
_HASH_BYTES_PER_SECOND = 1.0e9
_KL_VALUES_PER_SECOND = 1.5e8


@dataclass(frozen=True)
class Work:
    """What a stage does: floating-point operations by kind, models loaded, values compared."""

    forward: float = 0.0
    """FLOPs of forward passes over prompts and answers."""
    training: float = 0.0
    """FLOPs of forward and backward passes."""
    decoding: float = 0.0
    """FLOPs of generating token by token."""
    loads: int = 0
    """Times a model is read from disk."""
    hashed_bytes: float = 0.0
    """Bytes hashed."""
    kl_values: float = 0.0
    """Pairs of logits that enter a KL."""


def seconds_of(work: Work, gflops: float) -> float:
    """Return the predicted seconds of ``work`` on a machine with ``gflops`` GFLOP/s.

    Example:
        >>> round(seconds_of(Work(training=4.7e12), gflops=100.0), 1)
        100.0
    """
    rate = gflops * 1e9
    return (
        work.forward / (_FORWARD * rate)
        + work.training / (_TRAINING * rate)
        + work.decoding / (_DECODING * rate)
        + work.loads * _LOAD_SECONDS
        + work.hashed_bytes / _HASH_BYTES_PER_SECOND
        + work.kl_values / _KL_VALUES_PER_SECOND
    )
