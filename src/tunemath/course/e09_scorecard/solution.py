def score(quality, retention, weight):
    if not 0 <= weight <= 1:
        raise ValueError(f"weight {weight}; expected a number from 0 to 1")
    return weight * quality + (1 - weight) * retention


def turning_weight(first, second):
    gain = first[0] - second[0]
    loss = second[1] - first[1]
    if gain * loss <= 0:  # one is at least as good in both
        return None
    return loss / (gain + loss)
