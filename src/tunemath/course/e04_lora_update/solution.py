import numpy as np


def lora_update(A, B, alpha):
    A, B = np.asarray(A, np.float64), np.asarray(B, np.float64)
    rank = A.shape[0]
    if B.shape[1] != rank:
        raise ValueError(f"A has rank {rank}, B rank {B.shape[1]}")
    return alpha / rank * (B @ A)


def merge(W, A, B, alpha):
    delta = lora_update(A, B, alpha)
    size = np.sum(delta * delta)
    if size == 0:
        raise ValueError("the update is zero everywhere")
    before = np.asarray(W, np.float64)
    merged = (before + delta).astype(np.float16)
    return merged, np.sum((merged.astype(np.float64) - before) * delta) / size
