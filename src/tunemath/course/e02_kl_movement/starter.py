def kl(tuned, base):
    """KL(tuned ‖ base) in nats, of two distributions over the same tokens.

    tuned, base: (V,) probabilities that add up to 1. A token that the tuned model never says adds
    nothing; one that it says and the base never would makes the KL infinite.
    """


def movement(tuned_logits, base_logits, mask):
    """Mean KL(tuned ‖ base) over the answer's positions, in nats per token.

    tuned_logits, base_logits: (T, V). mask: (T,) 1 where the position is of the answer.
    Raises ValueError if none is.
    """
