"""The whole loop: recipes, stages, and what becomes of their results. The only package that knows all stages."""

from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.explain import explain_document
from synpro_engine.cycle.in_run import InRunConfig, InRunScores
from synpro_engine.cycle.pair import Pair
from synpro_engine.cycle.recipe import Recipe, load_recipe
from synpro_engine.cycle.score import score_documents

__all__ = [
    "Cycle",
    "InRunConfig",
    "InRunScores",
    "Pair",
    "Recipe",
    "explain_document",
    "load_recipe",
    "score_documents",
]
