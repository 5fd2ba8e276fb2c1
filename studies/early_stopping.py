"""A short training loop with early stopping that keeps the best weights in memory.

`intarsia.training.fit` stops early too, and writes a checkpoint at each evaluation so that a run can be resumed. With fifty rows
and full fine-tuning that would be gigabytes for every few seconds of training.
"""

from typing import Any


def train_with_early_stopping(
    bank: Any, task: Any, train: Any, dev: Any, *, rate: float, seed: int, most: int, every: int, patience: int
) -> tuple[float, int]:
    """Trains the task in place. Returns the best dev loss and its step; the task then holds these weights.

    most: steps at most, over which the rate falls to 0. every: steps between looks at the dev rows. patience: looks without a
    gain before it ends.
    """
    import torch

    from intarsia.training import TrainSettings, evaluate
    from intarsia.training.optim import build_optimizer
    from intarsia.training.schedule import learning_rate

    torch.manual_seed(seed)
    optimizer = build_optimizer(task, TrainSettings(weight_decay=0.0))
    device, name = bank.backbone.device, task.name
    best, best_step, kept = float("inf"), 0, {}
    step, epoch = 0, 0
    while step < most:
        for key in train.plan(epoch):
            task.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, most, peak=rate, warmup=0.1, schedule="linear")
            batch, labels = train.load(key)
            loss = bank.loss({k: tensor.to(device) for k, tensor in batch.items()}, labels.to(device), task=name)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % every == 0 or step == most:
                found = evaluate(bank, task, dev).metrics["loss"]
                if found < best:
                    best, best_step = found, step
                    kept = {key: tensor.detach().clone() for key, tensor in task.tensors().items()}
                if step - best_step >= patience * every or step == most:
                    if kept:
                        task.load_tensors(kept)
                    task.eval()
                    return best, best_step
        epoch += 1
    raise AssertionError("the loop ends within")
