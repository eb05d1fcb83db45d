"""Text on its way to batches: documents, splits, tokenizers, token shards, mixtures, loaders with exact resume."""

from synpro_engine.data.batch import Batch
from synpro_engine.data.chunking import cap_documents, chunk_documents, cut_spans
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.curriculum import Curriculum, CurriculumConfig
from synpro_engine.data.documents import (
    BadDocument,
    Document,
    ReadConfig,
    count_documents,
    read_documents,
    read_placed_documents,
)
from synpro_engine.data.eval_batches import EvalBatches, eval_windows, reference_windows
from synpro_engine.data.hashing import stable_hash, stable_permutation
from synpro_engine.data.hf_tokenizer import HFTokenizer
from synpro_engine.data.loader import TokenLoader, TokenOrigin
from synpro_engine.data.mixture import Blend, SourceConfig, mixture_weights
from synpro_engine.data.prompted import PromptedConfig, Task, read_tasks
from synpro_engine.data.scores import Score, document_scores, recorded_scores
from synpro_engine.data.seen import SeenKeys
from synpro_engine.data.sentencepiece_tokenizer import SentencePieceTokenizer
from synpro_engine.data.sentencepiece_training import train_sentencepiece
from synpro_engine.data.shards import (
    ShardStats,
    open_shards,
    read_shard_stats,
    write_shards,
    write_task_shards,
)
from synpro_engine.data.sources import Source, find_source
from synpro_engine.data.split import Split, SplitConfig, split_of, text_key
from synpro_engine.data.token_files import TokenDocument, TokenFiles, check_ids, find_files
from synpro_engine.data.tokenizer import (
    PublishedTokenizer,
    Tokenizer,
    check_rows,
    document_ids,
    load_tokenizer,
    start_id,
)
from synpro_engine.data.walking import walk_files
from synpro_engine.data.windows import WindowSource, repetition_mask
from synpro_engine.data.writer import DocumentWriter, write_documents
from synpro_kernels import IGNORE

__all__ = [
    "BadDocument",
    "Batch",
    "Blend",
    "Curriculum",
    "CurriculumConfig",
    "Document",
    "DocumentWriter",
    "EvalBatches",
    "HFTokenizer",
    "IGNORE",
    "PromptedConfig",
    "PublishedTokenizer",
    "ReadConfig",
    "Score",
    "SeenKeys",
    "SentencePieceTokenizer",
    "ShardStats",
    "Source",
    "SourceConfig",
    "Split",
    "SplitConfig",
    "Task",
    "TokenCorpus",
    "TokenDocument",
    "TokenFiles",
    "TokenLoader",
    "TokenOrigin",
    "Tokenizer",
    "WindowSource",
    "cap_documents",
    "check_ids",
    "check_rows",
    "chunk_documents",
    "count_documents",
    "cut_spans",
    "document_ids",
    "document_scores",
    "eval_windows",
    "find_files",
    "find_source",
    "load_tokenizer",
    "mixture_weights",
    "open_shards",
    "read_documents",
    "read_placed_documents",
    "read_shard_stats",
    "read_tasks",
    "recorded_scores",
    "repetition_mask",
    "split_of",
    "stable_hash",
    "stable_permutation",
    "start_id",
    "text_key",
    "train_sentencepiece",
    "reference_windows",
    "walk_files",
    "write_documents",
    "write_shards",
    "write_task_shards",
]
