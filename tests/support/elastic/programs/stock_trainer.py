# ruff: noqa: T201  (its output is what the tests wait for)
"""A stock script with a Hugging Face Trainer: `stock_trainer.py FOLDER`, where the Trainer keeps its checkpoints."""

import os
import pathlib
import sys

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

folder = pathlib.Path(sys.argv[1])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None):
        out = self.layer(x).squeeze(-1)
        return {"loss": torch.nn.functional.mse_loss(out, labels), "logits": out}


class Say(TrainerCallback):
    num_steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.num_steps += 1
        if self.num_steps == 60:  # one checkpoint has been saved by then
            place = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
            print(f"worker pid {os.getpid()} trains: {place} from step {state.global_step - 59}", flush=True)


# The Trainer saves into the folder itself: one that was stopped in the middle lacks the file that it writes last.
whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
newest = max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)
arguments = TrainingArguments(
    str(folder),
    use_cpu=True,
    ddp_backend="gloo",
    max_steps=100_000,
    save_steps=50,
    save_total_limit=2,
    per_device_train_batch_size=4,
    report_to=[],
    disable_tqdm=True,
)
samples = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(256)]
trainer = Trainer(Net(), arguments, train_dataset=samples, callbacks=[Say()])
trainer.train(resume_from_checkpoint=str(newest) if newest else None)
