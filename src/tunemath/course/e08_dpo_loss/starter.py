def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """DPO's loss of one pair, from log-probabilities of whole answers (nats).

    Raises ValueError unless beta > 0.
    """


def sequence_log_prob(logits, ids, mask):
    """Log-probability of an answer under a causal model: the sum over its tokens, in nats.

    logits: (T, V); those at place t predict the token at t + 1. ids: (T,) tokens of prompt and
    answer. mask: (T,) 1 where the token is of the answer. Raises ValueError if none is; the first
    token of all has no prediction and never counts.
    """
