def score(quality, retention, weight):
    """Weighted score: `weight` on task quality, the rest on retention.

    Raises ValueError unless the weight is from 0 to 1.
    """


def turning_weight(first, second):
    """The weight strictly between 0 and 1 at which two fine-tunes have the same score.

    first, second: (quality, retention). Returns None where no weight changes the winner.
    """
