def low_rank(matrix, rank):
    """The nearest matrix of a rank, and its relative error in the Frobenius norm.

    matrix: (m, n). Returns the approximation (m, n) and ‖M − M_r‖ / ‖M‖, which is 0 for a matrix
    of zeros. Raises ValueError unless 1 <= rank <= min(m, n).
    """


def rank_for_error(matrix, error):
    """The smallest rank whose relative error is at most `error`; 0 if nothing has to be kept."""
