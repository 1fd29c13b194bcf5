def answer_only_loss(losses, mask):
    """Mean loss of the answer tokens.

    losses: (T,) the loss of each token, in nats. mask: (T,) 1 where the token is of the answer.
    Raises ValueError if no token is.
    """


def batch_loss(micro_batches):
    """Mean loss of all answer tokens of a batch that was cut into micro-batches.

    micro_batches: a list of (losses, mask), each as above, of any length.
    """
