"""A linear program, some of whose variables are whole numbers: one function before HiGHS, whichever package brings it.

`highspy` is HiGHS itself; SciPy has it inside as `scipy.optimize.milp`. Neither is needed by the rest of dnnmem.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.errors import UnsupportedError

_Row = tuple[dict[int, float], float, float]


@dataclass(slots=True)
class Program:
    """Minimize the sum of costs; variables and rows are added one by one."""

    costs: list[float] = field(default_factory=list)
    """Of each variable."""
    lower: list[float] = field(default_factory=list)
    """Of each variable."""
    upper: list[float] = field(default_factory=list)
    """Of each variable."""
    whole: list[bool] = field(default_factory=list)
    """True for whole numbers."""
    rows: list[_Row] = field(default_factory=list)
    """Coefficients by variable, the least and the most that their sum may be."""

    def variable(self, cost: float = 0.0, lower: float = 0.0, upper: float = 1.0, *, whole: bool = False) -> int:
        """A new variable; its index."""
        self.costs.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.costs) - 1

    def row(self, terms: dict[int, float], lower: float = -np.inf, upper: float = np.inf) -> None:
        """Hold a sum within bounds."""
        self.rows.append((terms, lower, upper))


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What became of a program."""

    values: npt.NDArray[np.float64] | None
    """Of the variables in the best solution; None if there is none, or none was found in time."""
    bound: float
    """No solution costs less."""
    optimal: bool
    """True if `values` cost `bound`, within 1e-6."""
    infeasible: bool = False
    """True if it is proved that there is no solution."""


def available() -> str:
    """The package that solves: `highspy`, `scipy` or, where neither is installed, nothing."""
    return next((name for name in ("highspy", "scipy") if importlib.util.find_spec(name) is not None), "")


def solve(
    program: Program, time_limit_seconds: float, *, relaxed: bool = False, start: Mapping[int, float] | None = None
) -> Solved:
    """The best solution of `program` that is found in time.

    Args: `relaxed` takes whole numbers for any; `start` has some variables of a solution to begin with.
    Raises `UnsupportedError` where no solver is installed.
    """
    whole = np.array(program.whole, dtype=bool) & (not relaxed)
    solver = available()
    if not solver:
        raise UnsupportedError(
            "planning by integer programming needs HiGHS, and neither highspy nor scipy is installed",
            hint="pip install 'dnnmem[plan]'",
        )
    return (_by_highspy if solver == "highspy" else _by_scipy)(program, whole, time_limit_seconds, start)


def _columns(program: Program) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The rows as one sparse matrix: starts of rows, indices, coefficients."""
    starts = np.cumsum([0, *(len(terms) for terms, _, _ in program.rows)])
    index = np.array([v for terms, _, _ in program.rows for v in terms], dtype=np.int32)
    value = np.array([c for terms, _, _ in program.rows for c in terms.values()], dtype=np.float64)
    return starts.astype(np.int32), index, value


def _by_highspy(
    program: Program, whole: npt.NDArray[np.bool_], time_limit_seconds: float, start: Mapping[int, float] | None
) -> Solved:
    import highspy

    model = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("mip_rel_gap", 1e-6)):
        model.setOptionValue(option, value)
    model.setOptionValue("time_limit", float(time_limit_seconds))
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.costs), len(program.rows)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = (
        np.array(x, dtype=np.float64) for x in (program.costs, program.lower, program.upper)
    )
    lp.row_lower_ = np.array([low for _, low, _ in program.rows], dtype=np.float64)
    lp.row_upper_ = np.array([high for _, _, high in program.rows], dtype=np.float64)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = _columns(program)
    if whole.any():
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(w)] for w in whole]
    model.passModel(lp)
    if start is not None:
        known = np.array([*start], dtype=np.int32)
        model.setSolution(len(known), known, np.array([*start.values()], dtype=np.float64))
    model.run()
    status, info = model.getModelStatus(), model.getInfo()
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    optimal = status == highspy.HighsModelStatus.kOptimal
    bound = info.mip_dual_bound if whole.any() else (info.objective_function_value if optimal else -np.inf)
    return Solved(
        values=np.array(model.getSolution().col_value) if found else None, bound=float(bound),
        optimal=optimal, infeasible=status == highspy.HighsModelStatus.kInfeasible,
    )  # fmt: skip


def _by_scipy(
    program: Program, whole: npt.NDArray[np.bool_], time_limit_seconds: float, start: Mapping[int, float] | None
) -> Solved:
    del start  # SciPy's door has no place for it
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    starts, index, value = _columns(program)
    matrix = csr_array((value, index, starts), shape=(len(program.rows), len(program.costs)))
    result = milp(
        program.costs, integrality=whole.astype(int), bounds=Bounds(program.lower, program.upper),
        constraints=LinearConstraint(matrix, [r[1] for r in program.rows], [r[2] for r in program.rows]),
        options={"time_limit": float(time_limit_seconds), "mip_rel_gap": 1e-6},
    )  # fmt: skip
    optimal, bound = result.status == 0, getattr(result, "mip_dual_bound", None)
    return Solved(
        values=result.x, bound=float(bound if bound is not None else result.fun if optimal else -np.inf),
        optimal=optimal, infeasible=result.status == 2,
    )  # fmt: skip
