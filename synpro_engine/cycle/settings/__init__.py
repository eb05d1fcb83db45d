"""What each stage may read of a recipe. A stage is handed nothing else, so this is also what its result depends on.

`recorded()` of a stage's settings stands in its manifest: all of them but `EXECUTION`. What lies outside of the run (a
corpus, a tokenizer, a generator) is recorded by its content, not by its path.
"""

from synpro_engine.cycle.settings.dealing import SettingsOf
from synpro_engine.cycle.settings.of_stages import (
    ArmSettings,
    AskedOfGenerator,
    DecideSettings,
    EvaluateSettings,
    GenerateSettings,
    ImportSettings,
    PretrainSettings,
    ProbeSettings,
    ShardsSettings,
    StageSettings,
    SynthesisSettings,
    TasksSettings,
    TokenizeSettings,
    TuneSettings,
    UniqueSettings,
)

__all__ = [
    "ArmSettings",
    "AskedOfGenerator",
    "DecideSettings",
    "EvaluateSettings",
    "GenerateSettings",
    "ImportSettings",
    "PretrainSettings",
    "ProbeSettings",
    "SettingsOf",
    "ShardsSettings",
    "StageSettings",
    "SynthesisSettings",
    "TasksSettings",
    "TokenizeSettings",
    "TuneSettings",
    "UniqueSettings",
]
