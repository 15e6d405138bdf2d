"""Runs as files, and several runs as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import Rng, dtype_name, namespace, to_host
from .._estimates import files
from .._operators import LinearOperator, gram, square
from .._sketches import (
    Arnoldi,
    Fold,
    Krylov,
    Moments,
    Observed,
    Quadrature,
    Rule,
    Space,
    Spaces,
    is_independent,
    joined,
    most_columns,
)
from ..probes import Source, distributions
from ..quadrature import Chebyshev, Lanczos

STACKS = ("diagonal", "below", "alive")
NEEDED = ("draws", "spent", "shape", "dtype", "factored", "quadrature")


def save(run: Any, path: Path) -> None:
    """Write a run to a file."""
    arrays: dict[str, Any] = {}
    spaces, observed = run._spaces, run._observed
    if spaces is None:
        arrays["eigenvalues"] = run._eigenvalues
    else:
        arrays = of_spaces(spaces)
    if observed is not None:
        arrays |= {f"observed {i}": G for i, G in enumerate(observed._stacks)}
        more = {"observed deep": observed._deep, "on eigenvectors": observed.on_eigenvectors}
        arrays |= {name: x for name, x in more.items() if x is not None}
    A = run._A
    facts = {
        "draws": run._source.state(),
        "identity": run._source.identity,
        "probes": getattr(run._probes, "__name__", ""),
        "independent": is_independent(run._probes),
        "spent": run.num_matvecs,
        "origin": run._origin,
        "shape": A.shape,
        "dtype": dtype_name(A.dtype),
        "factored": A.factor is not None,
        "observed": observed is not None,
        "quadrature": [type(run._quadrature).__name__, *run._quadrature],
    }
    files.save(path, arrays, facts)


def load(path: Path, A: Any, rng: Rng, kind: type[Any]) -> Any:
    """Read a run from a file."""
    found = files.load(path, "file", NEEDED)
    if found is None:
        raise ValueError(f"file {str(path)!r} does not exist; pass that of a run that was saved")
    arrays, facts = found
    operator = _stand_in(facts) if A is None else square(A, "function")
    said = {"shape": tuple(facts["shape"]), "dtype": facts["dtype"], "factored": facts["factored"]}
    has = {
        "shape": operator.shape,
        "dtype": dtype_name(operator.dtype),
        "factored": operator.factor is not None,
    }
    for name, value in said.items():
        if has[name] != value:
            raise ValueError(
                f"file {str(path)!r} is the run of an operator with {name} {value}, not "
                f"{has[name]}; pass that operator"
            )
    probes = getattr(distributions, facts["probes"] or "none", None)
    held = {k: operator.xp.asarray(x, device=operator.device) for k, x in arrays.items()}
    source, goes_on = _source(facts, rng, operator)
    way = _quadrature(*facts["quadrature"])
    run = kind(operator, source, probes or distributions.rademacher, way)
    run.num_matvecs = facts["spent"]
    run._origin = facts.get("origin", run._origin)
    run._eigenvalues = held.get("eigenvalues")
    if facts["observed"]:
        run._observed = Observed(operator)
        run._observed._stacks = [held[k] for k in sorted(held, key=_number) if _number(k) >= 0]
        run._observed._deep = held.get("observed deep")
        run._observed.on_eigenvectors = held.get("on eigenvectors")
    if run._eigenvalues is None:
        goes_on = goes_on and A is not None and probes is not None and not facts["observed"]
        crosses = facts["independent"] and way == Lanczos(reorthogonalise=True)
        run._spaces = spaces_of(held, operator, way, crosses=crosses, extensible=goes_on)
        run._spaces.num_matvecs, run._spaces.observed = run.num_matvecs, run._observed
    return run


def merge(every: list[Any]) -> Any:
    """Several runs of one operator as one."""
    first = every[0]
    spaces = [run._spaces for run in every if run._spaces is not None]
    if len(spaces) < len(every):
        raise ValueError("a run that knows all eigenvalues is exact; use it alone")
    _refuse_others(every, spaces)
    merged = type(first)(first._A, first._source, first._probes, first._quadrature)
    merged.num_matvecs = sum(run.num_matvecs for run in every)
    for name, said in (("draws", lambda run: run._origin["draws"]), ("probes", _described)):
        merged._origin[name] = [x for run in every for x in said(run)]
    folds, start = [], 0
    for run, part in zip(every, spaces, strict=True):
        folds += [fold._replace(members=tuple(start + j for j in fold.members))
                  for fold in part.folds()]  # fmt: skip
        start += run.num_probes
    deep = [part.deep for part in spaces if part.deep is not None]
    same = len({K.depth for K in deep}) == 1 and len(deep) == len(spaces)
    every_space = joined([part.read() for part in spaces])
    last_word = joined([K.without_basis() for K in deep]) if same else None
    merged._spaces = Spaces.read_only(every_space, folds, last_word)
    if first._observed is not None:
        merged._observed = Observed(first._observed.operator)
        merged._observed._stacks = [G for run in every for G in run._observed._stacks]
        if same:
            xp = first._A.xp
            merged._observed._deep = xp.concat([run._observed._deep for run in every])
        merged._spaces.observed = merged._observed
    return merged


def _described(run: Any) -> list[str]:
    known: list[str] = run._origin.get("probes") or run._described()
    return known


def _refuse_others(runs: list[Any], spaces: list[Spaces]) -> None:
    """Refuse runs that do not add up."""

    def told(run: Any) -> tuple[Any, ...]:
        A = run._A
        facts = A.shape, dtype_name(A.dtype), A.factor is not None, run._observed is not None
        return *facts, run._quadrature

    if len({told(run) for run in runs}) > 1:
        raise ValueError(
            "runs of operators of different dimension, dtype, kind, observable or quadrature do "
            "not add up; merge runs of one operator"
        )
    if len({part.depth for part in spaces}) > 1:
        raise ValueError(
            f"runs of depths {sorted({part.depth for part in spaces})} do not add up; extend them "
            "to one depth first"
        )
    keys = [run._source.state().get("key") for run in runs]
    if all(keys) and len({tuple(key) for key in keys}) == len(runs):  # seeds, and no two the same
        return
    seen: set[tuple[complex, ...]] = set()
    for part in spaces:
        told_by = _coefficients(part.read())
        if seen & told_by:
            raise ValueError("two of the runs share probes; merge runs of different seeds")
        seen |= told_by


def _coefficients(K: Any) -> set[tuple[complex, ...]]:
    """What tells probes apart: all that Lanczos found of each whose space has not ended.

    One number would not do: forms of signs with a graph are integers, and equal by chance. Spaces
    that end are the same for many probes.
    """
    if isinstance(K, Moments):
        return {tuple(row) for row in np.stack([to_host(x) for x in K.moments], axis=-1).tolist()}
    rows = np.stack([to_host(D)[:, 0, 0] for D in K.diagonal], axis=-1)
    lasting = to_host(K.alive[-1])[:, 0] != 0
    return {tuple(complex(x) for x in row) for row in rows[lasting]}


def of_spaces(spaces: Spaces) -> dict[str, Any]:
    """The arrays that spaces are made of, by name."""
    arrays: dict[str, Any] = {}
    parts = {"pilots": spaces.kept[:1], "others": spaces.kept[1:], "further": spaces._further}
    for name, stacks in (*parts.items(), ("deep", [spaces.deep] if spaces.deep else [])):
        if stacks:
            arrays |= _of_space(name, joined(stacks))
    for i, fold in enumerate(spaces._met):
        arrays |= {f"fold {i} {key}": np.asarray(x) if key == "members" else x
                   for key, x in fold._asdict().items()}  # fmt: skip
    return arrays


def _of_space(name: str, K: Space) -> dict[str, Any]:
    xp = namespace(K.rest)
    if isinstance(K, Arnoldi):  # whose columns grow
        arrays = {f"{name} column {i}": x for i, x in enumerate(K.columns)}
        arrays |= {f"{name} {key}": xp.stack(list(getattr(K, key))) for key in STACKS[1:]}
        arrays |= {f"{name} rest": K.rest, f"{name} size": K.size}
        return arrays | ({f"{name} basis": xp.concat(list(K.panels), axis=-1)} if K.panels else {})
    if isinstance(K, Moments):
        arrays = {f"{name} moments": xp.stack(list(K.moments)), f"{name} rest": K.rest}
        return arrays if K.before is None else arrays | {f"{name} before": K.before}
    assert isinstance(K, Krylov)
    arrays = {f"{name} {key}": xp.stack(list(getattr(K, key))) for key in STACKS}
    arrays |= {f"{name} rest": K.rest, f"{name} size": K.size}
    if K.panels:
        arrays[f"{name} basis"] = xp.concat(list(K.panels), axis=-1)
    if K.right is not None:
        arrays[f"{name} right"] = K.right
    return arrays


def _space(name: str, held: dict[str, Any], A: LinearOperator, way: Rule) -> Space | None:
    if f"{name} rest" not in held:
        return None
    rest = held[f"{name} rest"]
    basis = held.get(f"{name} basis")
    panels = () if basis is None else (basis,)
    if not isinstance(way, Lanczos | Chebyshev):
        below, alive = (tuple(held[f"{name} {key}"]) for key in STACKS[1:])
        columns = tuple(held[f"{name} column {i}"] for i in range(len(below)))
        return Arnoldi(A, rest, held[f"{name} size"], panels, columns, below, alive)
    if isinstance(way, Chebyshev):
        assert way.interval is not None
        moments, (low, high) = held[f"{name} moments"], way.interval
        like = namespace(rest).zeros_like(moments[0, :])
        center, half = like + (high + low) / 2, like + (high - low) / 2
        return Moments(A, rest, held.get(f"{name} before"), tuple(moments), center, half)
    stacks: dict[str, Any] = {key: tuple(held[f"{name} {key}"]) for key in STACKS}
    return Krylov(
        A,
        rest,
        held[f"{name} size"],
        panels=panels,
        right=held.get(f"{name} right"),
        reorthogonalise=bool(way.reorthogonalise),
        **stacks,
    )


def spaces_of(
    held: dict[str, Any],
    A: LinearOperator,
    way: Rule,
    *,
    crosses: bool,
    extensible: bool = True,
    most: int | None = None,
) -> Spaces:
    """The spaces that are made of these arrays; `most` columns of bases are to be kept."""
    pilots, others, further, deep = (
        _space(name, held, A, way) for name in ("pilots", "others", "further", "deep")
    )
    count = len({name.split()[1] for name in held if name.startswith("fold ")})
    met = [Fold(**{key: held[f"fold {i} {key}"] for key in Fold._fields}) for i in range(count)]
    met = [fold._replace(members=tuple(int(j) for j in fold.members)) for fold in met]
    if pilots is None:
        assert further is not None
        return Spaces.read_only(further, met, deep)
    most = (most_columns(A) if crosses else 0) if most is None else most
    spaces = Spaces(pilots, most, crosses=crosses)
    spaces.deep = deep
    spaces.add([K for K in (others,) if K], [K for K in (further,) if K], met)
    if extensible:
        return spaces
    return Spaces.read_only(spaces.read(), spaces.folds(), deep)


def _quadrature(name: str, option: Any) -> Quadrature:
    if name == "Lanczos":
        return Lanczos(option)
    return Chebyshev(tuple(option))


def _source(facts: dict[str, Any], rng: Rng, A: LinearOperator) -> tuple[Source, bool]:
    """The generator where it stopped, and whether it is one that can go on so."""
    if rng is None and "host" in facts["draws"]:  # the state of a NumPy generator
        rng = np.random.default_rng()
    source = Source(rng, A)
    try:
        source.restore(facts["draws"])
    except (LookupError, TypeError, ValueError):
        return source, False
    return source, facts["independent"]


def _stand_in(facts: dict[str, Any]) -> LinearOperator:
    """An operator of the same shape and dtype, which has no products."""
    n, dtype = facts["shape"][0], np.dtype(facts["dtype"])

    def none(X: Any) -> Any:
        raise ValueError("the run was loaded without its operator; load it with A")

    L = LinearOperator((n, n), none, none, dtype=dtype)
    return gram(L) if facts["factored"] else L


def _number(name: str) -> int:
    """Of the observable's compression that an array is; -1 of any other array."""
    word, _, i = name.partition(" ")
    return int(i) if word == "observed" and i.isdigit() else -1
