"""Loading a checkpoint: device, dtype, model class, tokenizer; one clear line for whatever is wrong with it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from intarsia.backbone.facts import trunk
from intarsia.errors import BackboneError, ConfigError, UnsupportedError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANTISED = {"int8": "torchao", "nf4": "bitsandbytes"}
"""Names of dtypes for weights alone, and the package that each needs."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Casts the parameters, as loading in that dtype would. Buffers stay: rotary frequencies in bf16 shift positions."""
    keep = getattr(model, "_keep_in_fp32_modules", None) or () if dtype is torch.float16 else ()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not set(name.split(".")) & set(keep):
            parameter.data = parameter.data.to(dtype)


def choose_device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {name!r}; give auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but torch sees no CUDA device here; give --device cpu.")
    if device.type not in (
        "cpu",
        "cuda",
    ):  # torch knows names of many that it was not built for, and one without numbers
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, ImportError):
            raise ConfigError(
                f"torch cannot compute on device {str(name)!r} here; give auto, cpu, cuda or cuda:N."
            ) from None
    return device


def quantise(model: PreTrainedModel, dtype: str) -> None:
    """Weights of the linear layers in int8, by output channel (torchao), or in nf4, by 64 numbers (bitsandbytes; Dettmers et al.
    2023, https://arxiv.org/abs/2305.14314). Activations stay as they are; so do GPT-2's Conv1D layers and, in nf4, the language
    model's head.
    """
    try:
        if dtype == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(model, Int8WeightOnlyConfig())
        else:
            import bitsandbytes

            _four_bits(model, bitsandbytes.nn)
    except ImportError:
        package = QUANTISED[dtype]
        raise ConfigError(f"dtype {dtype} needs the package {package}; run: pip install {package}") from None


def _four_bits(model: PreTrainedModel, bnb: Any) -> None:
    """Puts Linear4bit in the place of nn.Linear."""
    head = model.get_output_embeddings()
    # T5 casts its states to the dtype of such a layer's weight, whatever that is.
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, module in [*model.named_modules()]:
        if type(module) is not torch.nn.Linear or module is head or set(path.split(".")) & keep:
            continue
        weight, bias = module.weight, module.bias
        small = bnb.Linear4bit(
            module.in_features, module.out_features, bias is not None, compute_dtype=weight.dtype, quant_type="nf4"
        )
        small.weight = bnb.Params4bit(weight.detach().cpu(), requires_grad=False, quant_type="nf4")
        small.bias = bias
        # Moving it is what quantises.
        model.set_submodule(path, small.to(weight.device))


def keep_trainable(model: PreTrainedModel) -> None:
    """bitsandbytes lays out 4-bit weights anew on a CPU when it first sees inputs without gradients, and in that layout there is
    no way back through them: a task could no longer be trained."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """What the trunk computes in; with quantised weights, what they are multiplied out to."""
    if name == "auto" or name in QUANTISED:
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ConfigError(
            f"unknown dtype {name!r}; give auto, {', '.join([*DTYPES, 'int8'])} or nf4{nearest(name, [*DTYPES, *QUANTISED])}"
        )
    return DTYPES[name]


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 beat fp32 there: tensor cores, AMX or AVX-512 BF16; emulated bf16 is slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(cpu.get("amx_bf16") or cpu.get("avx512_bf16") or cpu.get("arm_bf16") or cpu.get("bf16"))


def from_pretrained(folder: str, name: str, *, language_model: bool = False) -> PreTrainedModel:
    """The model of the checkpoint's own sort; BackboneError in one line. language_model: an encoder with its masked-LM head."""
    import transformers as tf
    from safetensors import SafetensorError

    try:
        config = tf.AutoConfig.from_pretrained(folder)
        architecture = (getattr(config, "architectures", None) or [""])[0]
        auto: Any = tf.AutoModel
        if type(config) in tf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and getattr(config, "is_encoder_decoder", False):
            auto = tf.AutoModelForSeq2SeqLM
        elif type(config) in tf.MODEL_FOR_CAUSAL_LM_MAPPING and architecture.endswith(("CausalLM", "LMHeadModel")):
            auto = tf.AutoModelForCausalLM
        elif language_model:
            auto = tf.AutoModelForMaskedLM
        with torch.random.fork_rng(devices=[]):  # what the checkpoint lacks is drawn at random
            model, report = auto.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())
        if len(line) > 200:  # whole sentences, where there is one
            line = line[:200].rpartition(". ")[0] or f"{line[:200]}..."
        line = line.removesuffix(".")
        if os.sep in name and not Path(name).exists():
            may_be_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)
            line = "there is no such folder" + (f"; as a name on the hub: {line}" if may_be_hub else "")
        raise BackboneError(
            f"cannot load backbone {name!r}: {line}. Give a folder with config.json and weights, a hub name that is in the "
            "local cache or reachable, or embedded:minilm / embedded:smollm2."
        ) from None
    missing = sorted(report["missing_keys"])
    if missing and all("pooler." in name for name in missing):
        # The checkpoint has none, and transformers made a random one: a task on it would change from process to process.
        trunk(model).pooler = None
    elif missing:
        raise BackboneError(
            f"backbone {name!r} lacks {len(missing)} tensor(s) of {type(model).__name__}, the first is {missing[0]!r}; they would "
            "be random. Give a complete checkpoint."
        )
    return model


def check_model(model: object, tokenizer: object) -> None:
    """Refuses what `Backbone.wrap` cannot take. peft's virtual tokens come in by its own wrapper, which a task's pass goes past."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "base_model"):
        raise ConfigError(
            f"Backbone.wrap takes a transformers model, got {type(model).__name__}; Backbone.load(name) loads one by its name"
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UnsupportedError(
            "the model has a prompt or prefix of peft's, which would be left out; wrap model.get_base_model(), and train it with "
            "PromptTuning or PrefixTuning here"
        )
    if isinstance(tokenizer, str | os.PathLike):
        raise ConfigError(
            f"tokenizer must be a tokenizer object, got {tokenizer!r}; AutoTokenizer.from_pretrained(name) loads one"
        )


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase | None:
    """None where the checkpoint ships no tokenizer (ViT); whoever needs one then says so."""
    import transformers as tf

    try:
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
