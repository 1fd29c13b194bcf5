"""What other trainers call the contract's fields, for the answer to a key that it doesn't have.

Names of PEFT, TRL, transformers, axolotl and LLaMA-Factory. No such name is ever taken for ours:
a wrong key is refused, and the message says where the thing is written here, or that it isn't.
"""

from __future__ import annotations

__all__ = ["FIELDS", "NOT_HERE", "elsewhere"]

FIELDS = {
    "model.id": "base_model model_name model_name_or_path pretrained_model_name_or_path",
    "model.revision": "model_revision",
    "space.method": "adapter finetuning_type peft_type use_dora",
    "space.rank": "r lora_r lora_rank",
    "space.alpha": "lora_alpha",
    "space.targets": "target_modules lora_target lora_target_modules lora_target_linear modules",
    "space.dropout": "lora_dropout",
    "space.rslora": "use_rslora",
    "space.length": "num_virtual_tokens",
    "objective.kind": "loss_type objective_type rl stage",
    "objective.beta": "dpo_beta pref_beta",
    "mask.train": "dataset datasets dataset_name dataset_path train_dataset train_file",
    "mask.max_length": "cutoff_len max_seq_len max_seq_length seq_length sequence_len",
    "mask.answers": "assistant_only_loss completion_only_loss mask_history train_on_inputs",
    "budget.epochs": "num_epochs num_train_epochs",
    "budget.learning_rate": "lr",
    "budget.micro_batch_size": "per_device_batch_size per_device_train_batch_size",
    "budget.batch_size": "global_batch_size gradient_accumulation_steps train_batch_size",
    "budget.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "budget.warmup_ratio": "warmup warmup_steps",
    "budget.max_grad_norm": "gradient_clipping max_gradient_norm",
    "budget.save_every": "save_steps",
    "evaluation.task": "eval_dataset eval_file test_dataset test_file val_set_size",
    "evaluation.few_shot": "num_fewshot",
    "evaluation.batch_size": "eval_batch_size per_device_eval_batch_size",
    "evaluation.max_new_tokens": "max_tokens",
    "seed": "data_seed random_seed",
}
"""A field, and what it is called elsewhere."""

NOT_HERE = {
    "bnb_4bit_compute_dtype bnb_4bit_quant_type load_in_4bit load_in_8bit quantization "
    "quantization_bit quantization_config": "a run's base is not quantised; leave it out",
    "report_to wandb_project use_wandb": "a run reports into its own folder; leave it out",
    "packing sample_packing": "rows are never packed; leave it out",
    "eval_steps eval_strategy evaluation_strategy early_stopping early_stopping_patience "
    "load_best_model_at_end": "a run is evaluated before and after training; leave it out",
    "optim optimizer": "every run uses AdamW; leave it out",
    "max_steps": "the length of a run is budget.epochs, in whole passes",
    "deepspeed fsdp fsdp_config num_gpus": "a run uses one device; leave it out",
    "logging_steps": "every step is logged; leave it out",
    "output_dir": "the run's folder is runs/NAME: give name, or --runs",
}
"""What a run does not have, by its names elsewhere, and what holds instead."""

_FIELD_OF = {name: field for field, names in FIELDS.items() for name in names.split()}
_REASON_OF = {name: why for names, why in NOT_HERE.items() for name in names.split()}


def elsewhere(key: str) -> str | None:
    """Return the hint for a key that is another trainer's; None for any other key.

    >>> elsewhere("lora_alpha"), elsewhere("packing")
    ('did you mean space.alpha?', 'rows are never packed; leave it out')
    """
    if key in _FIELD_OF:
        return f"did you mean {_FIELD_OF[key]}?"
    return _REASON_OF.get(key)
