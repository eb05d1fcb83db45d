"""A run's records, read back, and the numbers of each candidate and subset that they hold. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.rank_correlation import Floats
from benchmarks.influence_truth.settings import TruthSettings
from benchmarks.influence_truth.texts import KINDS, pool_of_groups
from synpro_engine.config import UserError


@dataclass(frozen=True, kw_only=True)
class Results:
    """A run's records by kind."""

    settings: TruthSettings
    environment: Mapping[str, Any]
    theta: Mapping[str, float]
    scores: Sequence[Mapping[str, Any]]
    candidates: Sequence[Mapping[str, Any]]
    subsets: Sequence[Mapping[str, Any]]
    sweep: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read JSON lines; UserError names a line that cannot be used, or the rows that are missing."""
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("run", "scores", "candidate", "subset", "sweep")}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                rows[record["row"]].append(record)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a record of this benchmark") from None
        missing = [name for name, found in rows.items() if not found]
        if missing:
            raise UserError(f"{path}: no {', '.join(missing)} rows: the run is not complete")
        run = rows["run"][0]
        return cls(
            settings=TruthSettings.model_validate_json(json.dumps(run["settings"])),
            environment=run["environment"],
            theta=run["theta"],
            scores=rows["scores"],
            candidates=sorted(rows["candidate"], key=lambda row: row["index"]),
            subsets=sorted(rows["subset"], key=lambda row: row["index"]),
            sweep=rows["sweep"],
        )

    def truth(self, key: str) -> Floats:
        """A drop of every candidate: `alone`, `alone_held_out` or `among_mates`."""
        return np.array([row[key] for row in self.candidates])

    def kinds(self) -> NDArray[np.str_]:
        """The kind of every candidate."""
        return np.array([row["kind"] for row in self.candidates])

    def drops(self, key: str = "drop") -> Floats:
        """The drop of every subset: `drop` or `drop_held_out`."""
        return np.array([row[key] for row in self.subsets])

    def within_kinds(self, of_subsets: Floats) -> Floats:
        """What is left of a number for each subset after a linear fit on how many groups of each kind are in it."""
        kinds, pool = self.kinds(), pool_of_groups(self.settings)
        of_group = [str(kinds[group[0]]) for group in pool]
        counts = np.array([[[of_group[g] for g in row["groups"]].count(k) for k in KINDS] for row in self.subsets])
        left = of_subsets - counts @ np.linalg.lstsq(counts.astype(float), of_subsets, rcond=None)[0]
        # Rounding has ranks too: what a fit explains altogether must leave nothing to correlate.
        return np.where(np.abs(left) < 1e-9 * np.abs(of_subsets).max(), 0.0, left)

    def predicted(self, values: Sequence[float]) -> Floats:
        """The sum of scores over the candidates of each subset."""
        pool, by_candidate = pool_of_groups(self.settings), np.asarray(values)
        of_group = np.array([by_candidate[list(group)].sum() for group in pool])
        return np.array([of_group[row["groups"]].sum() for row in self.subsets])
