"""The peers of bench_speed_h100 in plain loops: peft, and the adapters library."""

from typing import Any

from benchmarks.speed_h100_parts import DECODERS, model, source, timed


def batches(shape: str, path: str) -> list[dict[str, Any]]:
    """Padded batches; by-length: rows of like length together, within chunks of 50 batches, as Trainer's group_by_length."""
    import torch

    made = source(shape, 0, "like" if path == "by-length" else "shuffled")
    causal, found = shape in DECODERS, []
    for key in made.plan(0):
        batch, labels = made.load(key)
        tensors = {name: tensor.pin_memory() for name, tensor in batch.items()}
        tensors["labels"] = labels if causal else torch.as_tensor(labels)
        found.append((tensors, made.tokens(key)))
    return found


def loop_of(network: Any, shape: str, path: str, seconds: float) -> dict[str, Any]:
    """A plain training loop: bf16 autocast, fused AdamW, clipping, as Trainer does it."""
    import torch

    network = network.cuda().train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    made, turn = batches(shape, path), 0

    def step() -> int:
        nonlocal turn
        batch, tokens = made[turn % len(made)]
        turn += 1
        moved = {name: tensor.cuda(non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = network(**moved).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tokens

    return timed(step, seconds) | {"trained": sum(p.numel() for p in trained)}


def peft(shape: str, method: str, path: str, seconds: float) -> dict[str, Any]:
    """Of the same sizes as ours."""
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    kind: Any = {"task_type": "CAUSAL_LM" if shape in DECODERS else "SEQ_CLS"}
    names = {
        "bert-base": ["query", "value"],
        "tiny": ["query", "value"],
        "gpt2-medium": ["c_attn"],
        "smollm2": ["q_proj", "v_proj"],
        "llama-1b": ["q_proj", "v_proj"],
    }
    config = {
        "lora": lambda: LoraConfig(r=8, lora_alpha=16, target_modules=names[shape], **kind),
        "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=20, **kind),
        "prompt": lambda: PromptTuningConfig(num_virtual_tokens=20, **kind),
        "ptuning": lambda: PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=128, **kind),
    }[method]()
    return loop_of(get_peft_model(model(shape, head=True), config), shape, path, seconds)


def adapters(shape: str, method: str, path: str, seconds: float) -> dict[str, Any]:
    """The library of that name; its models are transformers' own, changed in place."""
    import adapters as library  # type: ignore[import-not-found]

    network = model(shape, head=True)
    library.init(network)
    config = {
        "adapter": lambda: library.DoubleSeqBnConfig(reduction_factor=16),
        "prefix": lambda: library.PrefixTuningConfig(prefix_length=20, flat=True),
        "lora": lambda: library.LoRAConfig(r=8, alpha=16),
    }[method]()
    network.add_adapter("task", config=config)
    network.train_adapter("task")
    return loop_of(network, shape, path, seconds)
