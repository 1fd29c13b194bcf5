def lora_update(A, B, alpha):
    """The update ΔW = s · B A of a LoRA module, with s = alpha / rank.

    A: (r, d_in). B: (d_out, r). Returns (d_out, d_in). Raises ValueError if the ranks differ.
    """


def merge(W, A, B, alpha):
    """Merge the update into a weight that is stored in float16.

    W: (d_out, d_in) float16. Returns the merged weight in float16, and the share of the update
    that survived rounding: ⟨W′ − W, ΔW⟩ / ‖ΔW‖². Raises ValueError if the update is zero.
    """
