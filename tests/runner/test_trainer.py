"""Loss and gradient through the real Trainer against plain loops over single rows in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_models import PAD, logit_bound, make_family, make_llama, make_rows, with_adapter
from torch.nn import functional as F
from transformers import TrainingArguments

import tolerance
from tunemath.errors import RunError
from tunemath.mask import row_hash
from tunemath.objective.record import Objective
from tunemath.runner import heads, probes
from tunemath.runner.hf_labels import IGNORED, collate
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.trainer import Rows, TuneTrainer, Witness

SFT, DPO = Objective(kind="sft"), Objective(kind="dpo", beta=0.3)
ROWS = make_rows(8)


def make_pairs():
    """Pairs with one prompt and answers of unlike lengths."""
    pairs = []
    for n, (ids, supervised) in enumerate(ROWS):
        prompt = [t for t, s in zip(ids, supervised, strict=True) if not s]
        other = make_rows(8, seed=9)[n]
        answer = [t for t, s in zip(*other, strict=True) if s]
        pairs.append(
            ((ids, supervised), ([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)))
        )
    return pairs


def make_trainer(
    folder: Path,
    model,
    objective: Objective = SFT,
    *,
    examples=None,
    micro: int = 8,
    accumulation: int = 1,
    witness: Witness | None = None,
    kind: type[TuneTrainer] = TuneTrainer,
    learning_rate: float = 1.0,
) -> TuneTrainer:
    """One SGD step without clipping, so that the weights' change is the gradient."""
    if examples is None:
        examples = make_pairs() if objective.kind == "dpo" else [(row,) for row in ROWS]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
    return kind(
        objective=objective,
        pad=PAD,
        witness=witness,
        model=model,
        args=arguments,
        train_dataset=Rows(examples, range(len(examples))),
    )


def learnable(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def step_of(trainer: TuneTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Train one step; return the logged loss and the gradient that moved each tensor."""
    before = learnable(trainer.model)
    with quiet_libraries():
        trainer.train()
    after = learnable(trainer.model)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 1
    rate = trainer.args.learning_rate
    return losses[0], {name: (before[name] - after[name]) / rate for name in before}


def plain_gradient(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    tensors = [p for p in model.parameters() if p.requires_grad]
    return dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))


def plain_sft(model) -> torch.Tensor:
    """Σ cross-entropy over supervised tokens / their number, a row at a time, nothing padded."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, supervised in ROWS:
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        for place in range(1, len(ids)):
            if supervised[place]:
                total = total + F.cross_entropy(logits[place - 1], torch.tensor(ids[place]))
                count += 1
    return total / count


def plain_log_prob(model, row) -> torch.Tensor:
    ids, supervised = row
    table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return torch.stack([table[t - 1, ids[t]] for t in range(1, len(ids)) if supervised[t]]).sum()


def plain_dpo(model, beta: float = 0.3) -> torch.Tensor:
    """Rafailov et al. 2023, equation 7: −log σ(β log π_w/ref_w − β log π_l/ref_l), averaged."""
    losses = []
    for chosen, rejected in make_pairs():
        with torch.no_grad(), model.disable_adapter():
            reference = [plain_log_prob(model, side) for side in (chosen, rejected)]
        policy = [plain_log_prob(model, side) for side in (chosen, rejected)]
        ratios = [p - r for p, r in zip(policy, reference, strict=True)]
        losses.append(-torch.log(1 / (1 + torch.exp(-beta * (ratios[0] - ratios[1])))))
    return torch.stack(losses).mean()


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(expected.values(), key=lambda tensor: float(tensor.abs().max()))
    scale = logit_bound(largest)  # a gradient is a chain of the same products
    assert scale > 0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=scale, msg=name)


CUTS = pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (2, 4), (1, 8)])


@CUTS
def test_sft_step_is_the_plain_mean_over_supervised_tokens(tmp_path, micro, accumulation):
    model = with_adapter(make_llama())
    expected = plain_sft(model)
    gradient = plain_gradient(model, expected)
    loss, found = step_of(make_trainer(tmp_path, model, micro=micro, accumulation=accumulation))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(found, gradient)


@CUTS
def test_dpo_step_is_the_plain_mean_over_pairs(tmp_path, micro, accumulation):
    model = with_adapter(make_llama())
    expected = plain_dpo(model)
    gradient = plain_gradient(model, expected)
    loss, found = step_of(
        make_trainer(tmp_path, model, DPO, micro=micro, accumulation=accumulation)
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(found, gradient)


SOME_FAMILIES = pytest.mark.parametrize("family", ["llama, tied", "gemma 2", "granite", "gpt 2"])


@pytest.mark.parametrize("objective", [SFT, DPO], ids=["sft", "dpo"])
@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]], ids=["layers", "head"])
@SOME_FAMILIES
def test_a_step_is_the_one_through_the_logits(tmp_path, monkeypatch, family, targets, objective):
    steps = []
    for through_logits in (False, True):
        if through_logits:
            monkeypatch.setattr(heads, "_read_head", lambda inner: None)
        model = with_adapter(make_family(family, torch.float32), target_modules=targets)
        trainer = make_trainer(tmp_path, model, objective, micro=2, accumulation=4)
        loss, gradient = step_of(trainer)
        margin = next(e for e in trainer.state.log_history if "loss" in e).get("margin")
        steps.append((loss, margin, gradient))
    (loss, margin, gradient), (plain_loss, plain_margin, plain) = steps
    assert loss == pytest.approx(plain_loss, rel=logit_bound(torch.ones(1)))
    # A margin is the difference of four log-probabilities, each of some 30 nats.
    rounding = 4 * tolerance.dot(8, torch.float32) * 30
    if plain_margin is not None:
        plain_margin = pytest.approx(plain_margin, rel=1e-4, abs=rounding)
    assert margin == plain_margin
    assert_same(gradient, plain)


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]], ids=["layers", "head"])
@SOME_FAMILIES
def test_dpo_starts_at_ln_2(tmp_path, family, targets):
    base = make_family(family, torch.float32)
    model = with_adapter(base, moved=False, target_modules=targets)
    trainer = make_trainer(tmp_path, model, DPO)
    assert probes.first_loss(trainer, make_pairs()) == pytest.approx(math.log(2), abs=1e-7)
    with torch.no_grad():
        start = trainer.compute_loss(trainer.model, trainer.collated(make_pairs()))
    trained = trainer.compute_loss(trainer.model, trainer.collated(make_pairs()))
    assert float(start) == float(trained.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_logs_the_mean_margin_and_accuracy_of_the_step(tmp_path):
    model = with_adapter(make_llama())
    margins = []
    with torch.no_grad():
        for chosen, rejected in make_pairs():
            ratios = []
            for side in (chosen, rejected):
                policy = plain_log_prob(model, side)
                with model.disable_adapter():
                    ratios.append(float(policy - plain_log_prob(model, side)))
            margins.append(ratios[0] - ratios[1])
    trainer = make_trainer(tmp_path, model, DPO, micro=2, accumulation=4)
    step_of(trainer)
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    assert entry["margin"] == pytest.approx(sum(margins) / 8, rel=1e-4)
    assert entry["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 8)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = with_adapter(make_llama())
    trainer = make_trainer(tmp_path, model)
    with torch.no_grad():
        model.get_base_model().lm_head.weight.fill_(math.nan)
    with pytest.raises(RunError, match=r"the loss became nan at step 1.*learning_rate"):
        trainer.train()


# --- the micro-batch probe, and faults planted for it


class MeanOfMeans(TuneTrainer):
    """The well-known fault: each micro-batch is averaged by itself, then those means."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = len(inputs["labels"])
        return super().compute_loss(model, inputs) * rows / 8


class IgnoresTheWeight(TuneTrainer):
    """Each micro-batch divides by its own tokens, and the pieces are summed."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs)


@pytest.mark.parametrize("objective", [SFT, DPO])
def test_the_probe_finds_no_difference_between_cuts(tmp_path, objective):
    trainer = make_trainer(tmp_path, with_adapter(make_llama(torch.float32)), objective)
    found = probes.micro_batch(trainer, trainer.train_dataset.examples)
    assert found["cuts"] == [8, 1]
    assert found["loss_difference"] < 1e-6
    assert found["gradient_difference"] < 1e-5 < found["tolerance"]


@pytest.mark.parametrize("fault", [MeanOfMeans, IgnoresTheWeight])
def test_the_probe_finds_a_mean_of_means(tmp_path, fault):
    trainer = make_trainer(tmp_path, with_adapter(make_llama(torch.float32)), kind=fault)
    found = probes.micro_batch(trainer, trainer.train_dataset.examples)
    assert found["loss_difference"] > 5 * found["tolerance"]
    assert found["gradient_difference"] > 50 * found["tolerance"]


def test_the_probes_leave_no_trace(tmp_path):
    witness = Witness([row_hash(*row) for row in ROWS])
    trainer = make_trainer(tmp_path, with_adapter(make_llama(torch.float32)), witness=witness)
    state, weights = torch.get_rng_state(), learnable(trainer.model)
    probes.micro_batch(trainer, trainer.train_dataset.examples)
    probes.first_loss(trainer, trainer.train_dataset.examples)
    assert torch.equal(torch.get_rng_state(), state)
    assert witness.state() == {"seen": {}, "uncertified": 0, "supervised_tokens": 0}
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    for name, tensor in learnable(trainer.model).items():
        assert torch.equal(tensor, weights[name])


# --- the witness


def make_witness() -> Witness:
    return Witness([row_hash(*row) for row in ROWS])


def test_the_witness_knows_every_row_of_a_training_run(tmp_path):
    witness = make_witness()
    step_of(
        make_trainer(tmp_path, with_adapter(make_llama()), micro=2, accumulation=4, witness=witness)
    )
    assert witness.uncertified == 0
    assert sorted(witness.seen.values()) == [1] * 8
    assert witness.supervised_tokens == sum(sum(supervised) for _, supervised in ROWS)


def shift_mask(batch):
    batch["labels"] = torch.cat([batch["labels"][:, 1:], batch["labels"][:, :1]], dim=1)


def supervise_padding(batch):
    padding = batch["attention_mask"] == 0
    batch["labels"][padding] = batch["input_ids"][padding]


def change_an_id(batch):
    batch["input_ids"][:, 0] += 1


def train_on_prompts(batch):
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], IGNORED)


def drop_a_label(batch):
    for row in batch["labels"]:
        row[(row != IGNORED).nonzero()[-1]] = IGNORED


def teach_another_token(batch):
    labels = batch["labels"]
    labels[labels != IGNORED] += 1


def leave_a_hole(batch):
    batch["attention_mask"][:, 1] = 0


@pytest.mark.parametrize(
    "fault",
    [
        shift_mask,
        supervise_padding,
        change_an_id,
        train_on_prompts,
        drop_a_label,
        teach_another_token,
        leave_a_hole,
    ],
)
def test_the_witness_does_not_certify(fault):
    rows = [row for row in ROWS if len(row[0]) != max(len(ids) for ids, _ in ROWS)]
    longest = max(ROWS, key=lambda row: len(row[0]))
    witness, batch = make_witness(), collate([*rows, longest], PAD)
    fault(batch)
    witness.look(batch)
    padded = len(rows)  # the longest row has no padding, so supervising padding leaves it whole
    assert witness.uncertified >= padded
    assert witness.seen.total() + witness.uncertified == len(rows) + 1


def test_the_witness_takes_up_its_counts():
    first, second = make_witness(), make_witness()
    first.look(collate(ROWS[:3], PAD))
    second.restore(first.state())
    second.look(collate(ROWS[3:], PAD))
    assert second.seen.total() == 8
    assert second.supervised_tokens == sum(sum(supervised) for _, supervised in ROWS)


# --- labels


def test_collate_keeps_a_terminator_that_is_also_the_pad_id():
    batch = collate([([5, 6, 2], [False, True, True]), ([5, 6, 7, 8, 2], [False] * 4 + [True])], 2)
    assert batch["input_ids"].tolist() == [[5, 6, 2, 2, 2], [5, 6, 7, 8, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["labels"].tolist() == [
        [IGNORED, 6, 2, IGNORED, IGNORED],
        [IGNORED] * 4 + [2],
    ]
