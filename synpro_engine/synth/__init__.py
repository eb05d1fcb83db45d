"""The operations (rephrase, reformat, ...): cut, prompt, parse, and bulk generation with provenance."""

from synpro_engine.synth.builtin import REFORMAT, REPHRASE
from synpro_engine.synth.chat import ChatFormat, ChatMessage, render_chat, stop_ids
from synpro_engine.synth.corpus import DOCUMENTS, REJECTS, TOKENS, YIELD, files_of, lines_of, read_yield
from synpro_engine.synth.filters import BestConfig, FilterConfig, FilterReport, Filters, Made, OperationFiltering
from synpro_engine.synth.generate import generate_corpus, join_generation, work_directory
from synpro_engine.synth.megadocs import (
    MegadocConfig,
    OfDocument,
    Piece,
    Stitched,
    StitchedPart,
    arranged,
    by_document,
)
from synpro_engine.synth.operation import Operation
from synpro_engine.synth.operations import (
    BUILT_IN,
    OPERATIONS,
    PAPER,
    load_operations,
    operation_named,
    split_reference,
)
from synpro_engine.synth.parsed import Cut, Entry, Parsed, Reject
from synpro_engine.synth.prompting import Candidate, PromptConfig, Prompter
from synpro_engine.synth.records import Generator, Producer, RewardFunction
from synpro_engine.synth.served import ServedGenerator, ServerConfig
from synpro_engine.synth.slices import Slice, SliceConfig, choose_slices, slices_of
from synpro_engine.synth.status import GenerationStatus, corpus_status, work_status
from synpro_engine.synth.work import (
    GenerateConfig,
    WorkItem,
    work_items,
)
from synpro_engine.synth.yields import OperationYield, YieldReport

__all__ = [
    "DOCUMENTS",
    "BUILT_IN",
    "OPERATIONS",
    "PAPER",
    "REFORMAT",
    "REJECTS",
    "REPHRASE",
    "TOKENS",
    "YIELD",
    "BestConfig",
    "Candidate",
    "ChatFormat",
    "ChatMessage",
    "Cut",
    "Entry",
    "FilterConfig",
    "FilterReport",
    "Filters",
    "GenerateConfig",
    "GenerationStatus",
    "Generator",
    "Made",
    "MegadocConfig",
    "OfDocument",
    "Operation",
    "OperationFiltering",
    "OperationYield",
    "Parsed",
    "Piece",
    "Producer",
    "PromptConfig",
    "Prompter",
    "Reject",
    "RewardFunction",
    "ServedGenerator",
    "ServerConfig",
    "Slice",
    "SliceConfig",
    "Stitched",
    "StitchedPart",
    "WorkItem",
    "YieldReport",
    "arranged",
    "by_document",
    "choose_slices",
    "corpus_status",
    "files_of",
    "generate_corpus",
    "join_generation",
    "lines_of",
    "load_operations",
    "operation_named",
    "read_yield",
    "render_chat",
    "slices_of",
    "split_reference",
    "stop_ids",
    "work_directory",
    "work_items",
    "work_status",
]
