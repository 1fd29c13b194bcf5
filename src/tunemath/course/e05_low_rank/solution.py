import numpy as np


def low_rank(matrix, rank):
    u, s, vt = np.linalg.svd(np.asarray(matrix, float), full_matrices=False)
    if not 1 <= rank <= len(s):
        raise ValueError(f"rank {rank}; a matrix {np.shape(matrix)} has 1 to {len(s)}")
    near = (u[:, :rank] * s[:rank]) @ vt[:rank]
    total = np.linalg.norm(s)
    return near, np.linalg.norm(s[rank:]) / total if total > 0 else 0.0


def rank_for_error(matrix, error):
    s = np.linalg.svd(np.asarray(matrix, float), compute_uv=False)
    left_out = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)  # at rank 0, 1, 2, …
    return int(np.argmax(left_out <= error**2 * left_out[0]))
