"""The whole loop: recipes, stages, and what becomes of their results. The only package that knows all stages."""

from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.recipe_files import load_recipe
from synpro_engine.cycle.scoring.explain import explain_document
from synpro_engine.cycle.scoring.judging import check_judges_of
from synpro_engine.cycle.scoring.model_pair import ModelPair
from synpro_engine.cycle.scoring.score import score_documents
from synpro_engine.cycle.sections import InRunConfig
from synpro_engine.cycle.steps.in_run import InRunScores

__all__ = [
    "Cycle",
    "InRunConfig",
    "InRunScores",
    "ModelPair",
    "Recipe",
    "check_judges_of",
    "explain_document",
    "load_recipe",
    "score_documents",
]
