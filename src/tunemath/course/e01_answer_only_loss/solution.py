import numpy as np


def answer_only_loss(losses, mask):
    answer = np.asarray(losses, float)[np.asarray(mask) == 1]
    if answer.size == 0:
        raise ValueError("no token is supervised: the mask is 0 everywhere")
    return answer.mean()


def batch_loss(micro_batches):
    return answer_only_loss(
        np.concatenate([losses for losses, _ in micro_batches]),
        np.concatenate([mask for _, mask in micro_batches]),
    )
