import numpy as np


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    if beta <= 0:
        raise ValueError(f"beta is {beta}; expected a positive number")
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return np.logaddexp(0.0, -beta * margin)


def sequence_log_prob(logits, ids, mask):
    logits, targets = np.asarray(logits, float)[:-1], np.asarray(ids)[1:]
    answer = np.asarray(mask)[1:] == 1
    if not answer.any():
        raise ValueError("no token is of the answer")
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return log_probs[np.arange(len(targets)), targets][answer].sum()
