"""Transformers' own `hyperparameter_search`, with bstune choosing and stopping its trials.

Run `python examples/hf_hyperparameter_search.py [trials]` beside `hf_text.py`, whose model and data it takes.
"""

import sys

import bstune
from hf_text import Texts, make_model  # type: ignore[import-not-found]  # It lies beside this file.
from transformers import Trainer, TrainingArguments

trainer = Trainer(
    args=TrainingArguments(
        "hf_hyperparameter_search",
        num_train_epochs=8,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    model_init=make_model,
    train_dataset=Texts(1024, seed=1),
    eval_dataset=Texts(512, seed=2),
)
best = trainer.hyperparameter_search(
    hp_space=lambda trial: {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32, 64, 128]),
    },
    n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 15,
    direction="minimize",
    sampler=bstune.Sampler(batch="per_device_train_batch_size", lr="learning_rate", optimizer="adam", seed=0),
    pruner=bstune.Pruner(batch="per_device_train_batch_size"),
)
print(f"validation loss {best.objective:.3f} with {best.hyperparameters}")
for name, value in best.hyperparameters.items():
    setattr(trainer.args, name, value)
trainer.train()
print(f"trained with them: validation loss {trainer.evaluate()['eval_loss']:.3f}")
