import numpy as np


def kl(tuned, base):
    tuned, base = np.asarray(tuned, float), np.asarray(base, float)
    said = tuned > 0
    with np.errstate(divide="ignore"):
        return np.sum(tuned[said] * (np.log(tuned[said]) - np.log(base[said])))


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def movement(tuned_logits, base_logits, mask):
    answer = np.asarray(mask) == 1
    if not answer.any():
        raise ValueError("no position is of the answer")
    tuned = log_softmax(np.asarray(tuned_logits, float)[answer])
    base = log_softmax(np.asarray(base_logits, float)[answer])
    return np.sum(np.exp(tuned) * (tuned - base), axis=-1).mean()
