"""The generators of array libraries, and the choice among them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from .._arrays import Array, DType, Namespace, Placement, Rng, Space, is_traced, real_dtype
from . import counters

Seed: TypeAlias = int | np.integer[Any] | np.random.SeedSequence | None


def generator_of(rng: Rng, space: Space) -> Any:
    """The generator of the library that `rng` is of, and counters for a seed."""
    xp, layout = space.xp, getattr(space, "layout", None)
    if isinstance(rng, bool | float | str):
        raise TypeError(_unusable(rng, xp))
    if (rng is None or isinstance(rng, np.random.Generator)) and is_traced(xp.zeros(())):
        drawn = "rng=None" if rng is None else "a NumPy generator"
        raise TypeError(
            f"{drawn} draws once, while jax.jit traces, and every later call would repeat its "
            "numbers; pass a JAX key, such as jax.random.key(0), to the jitted function"
        )
    if rng is None and (count := _processes()) > 1:
        raise ValueError(
            f"rng=None draws other probes in each of {count} processes, which are to agree; pass "
            "one int to all, or a generator such as numpy.random.default_rng() where each process "
            "has a trace of its own"
        )
    if rng is None or isinstance(
        rng, int | np.integer | np.random.SeedSequence | np.random.Generator
    ):
        if isinstance(rng, int | np.integer) and rng < 0:
            raise ValueError(
                f"`rng` must be an int of 0 or more, or a generator, got {rng}; pass one such as 0"
            )
        if isinstance(rng, np.random.Generator):
            return _Host(rng)
        if array_api_compat.is_jax_namespace(xp):
            double = real_dtype(space.dtype, xp) == xp.float64
            return _SeededJax(rng, double, layout)
        return _Seeded(rng, layout)
    if array_api_compat.is_jax_array(rng):
        if array_api_compat.is_jax_namespace(xp):
            return _Jax(rng, layout)
    elif array_api_compat.is_torch_namespace(xp) and type(rng).__name__ == "Generator":
        return _Torch(rng, real_dtype(space.dtype, xp))
    elif array_api_compat.is_cupy_namespace(xp) and hasattr(rng, "standard_normal"):
        return _CuPy(rng, real_dtype(space.dtype, xp))
    raise TypeError(_unusable(rng, xp))


def _processes() -> int:
    """How many processes run together, by MPI, torch.distributed or jax.distributed."""
    counts = [1]
    mpi, torch, jax = (sys.modules.get(name) for name in ("mpi4py.MPI", "torch", "jax"))
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        counts.append(mpi.COMM_WORLD.size)
    if (
        torch is not None
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    ):
        counts.append(torch.distributed.get_world_size())
    if jax is not None and jax.distributed.is_initialized():
        counts.append(jax.process_count())
    return max(counts)


def _unusable(rng: Rng, xp: Namespace) -> str:
    kind, library = type(rng).__name__, xp.__name__.removeprefix("array_api_compat.")
    return (
        f"no random arrays of {library} can be drawn from rng={kind}; pass an int, a NumPy "
        "generator, or a generator of the operator's own library (torch.Generator, JAX key, CuPy)"
    )


class _Seeded:
    """Counters of a seed: numbers depend on row, column, law and seed, and on nothing else."""

    seeded = True

    def __init__(self, seed: Seed, layout: Placement | None) -> None:
        self.layout = layout
        self.facts: dict[str, Any] = {"rng": "None" if seed is None else type(seed).__name__}
        if isinstance(seed, int | np.integer):
            self.facts = {"rng": "int", "seed": int(seed)}
            seed = np.random.SeedSequence(int(seed))
        seed = seed or np.random.SeedSequence()
        self.key, self.drawn = counters.key_of(seed), 0

    def draw(self, law: str, n: int, m: int, held: range) -> Array:
        self.drawn += m
        columns = range(self.drawn - m, self.drawn)
        return self._numbers(counters.Block(law, held, columns))

    def circular(self, n: int, m: int, held: range) -> Array:
        """Complex normal numbers, whose real and imaginary parts have variance one each."""
        return self.draw("circular", n, m, held)

    def distinct(self, n: int, m: int) -> Array:
        self.drawn += 1
        bits = counters.bits(self.key, "distinct", self.drawn - 1)
        return np.random.Generator(bits).choice(n, m, replace=False)

    def identity(self) -> dict[str, Any]:
        return self.facts

    def state(self) -> dict[str, Any]:
        return {"key": list(self.key), "columns": self.drawn}

    def restore(self, state: dict[str, Any]) -> None:
        (first, second), self.drawn = state["key"], state["columns"]
        self.key = first, second

    def _numbers(self, block: counters.Block) -> Array:
        part = partial(counters.some_rows, self.key, block)
        shape = len(block.rows), len(block.columns)
        return part(range(shape[0])) if self.layout is None else self.layout.assemble(shape, part)


class _SeededJax(_Seeded):
    """The same numbers, drawn by the program itself where one is traced, else by rows."""

    def __init__(self, seed: Seed, double: bool, layout: Placement | None) -> None:
        super().__init__(seed, layout)
        self.dtype = "float64" if double else "float32"

    def _numbers(self, block: counters.Block) -> Array:
        import jax

        if not is_traced(jax.numpy.zeros(())):
            return super()._numbers(block)
        parts = 1 if self.layout is None else self.layout.parts
        return counters.program(self.key, block, self.dtype, jax.numpy, jax, parts)


def _complex(re: Array, im: Array) -> Array:
    return re + 1j * im


class _Generator:
    """A generator of the caller's: all rows are drawn, and those that are held are kept."""

    def draw(self, law: str, n: int, m: int, held: range) -> Array:
        return getattr(self, law)(n, m)[held.start : held.stop, :]

    def circular(self, n: int, m: int, held: range) -> Array:
        both = self.draw("normal", 2 * n, m, range(2 * n))
        parts = (both[start + held.start : start + held.stop, :] for start in (0, n))
        return _complex(*parts)


class _Host(_Generator):
    """NumPy's generators: rows of a C-ordered draw are the columns, so splits do not matter."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def normal(self, n: int, m: int) -> Array:
        return self.rng.standard_normal((m, n)).T

    def uniform(self, n: int, m: int) -> Array:
        return self.rng.random((m, n)).T

    def signs(self, n: int, m: int) -> Array:
        """One random bit an entry; whole 64-bit words a column."""
        words = self.rng.integers(0, 2**64, size=(m, -(-n // 64)), dtype=np.uint64)
        bits = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), axis=1, count=n)
        return np.subtract(1, np.left_shift(bits, 1), dtype=np.int8, casting="unsafe").T

    def distinct(self, n: int, m: int) -> Array:
        return self.rng.choice(n, m, replace=False)

    def identity(self) -> dict[str, Any]:
        return {"rng": f"numpy Generator ({type(self.rng.bit_generator).__name__})"}

    def state(self) -> dict[str, Any]:
        return {"host": self.rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["host"]


class _Jax(_Generator):
    """A JAX key, old or new: column j is drawn from the key folded with j."""

    def __init__(self, key: Array, layout: Placement | None) -> None:
        self.key, self.layout, self.drawn = key, layout, 0

    def normal(self, n: int, m: int) -> Array:
        return self._draw(_jax_normal, n, m)

    def uniform(self, n: int, m: int) -> Array:
        return self._draw(_jax_uniform, n, m)

    def signs(self, n: int, m: int) -> Array:
        return self._draw(_jax_signs, n, m)

    def circular(self, n: int, m: int, held: range) -> Array:
        """Real and imaginary part are columns 2 j and 2 j + 1, whose rows lie on one device."""
        both = self.draw("normal", n, 2 * m, held)
        return _complex(both[:, ::2], both[:, 1::2])

    def distinct(self, n: int, m: int) -> Array:
        import jax

        self.drawn += 1
        key = jax.random.fold_in(self.key, self.drawn - 1)
        return jax.random.choice(key, n, (m,), replace=False)

    def identity(self) -> dict[str, Any]:
        import jax

        return {"rng": "JAX key", "key": jax.random.key_data(self.key).tolist()}

    def state(self) -> dict[str, Any]:
        return {"jax": self.drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self.drawn = state["jax"]

    def _draw(self, law: Callable[..., Array], n: int, m: int) -> Array:
        import jax

        numbers = jax.numpy.arange(self.drawn, self.drawn + m, dtype="uint32")
        self.drawn += m
        if self.layout is None:
            return law(n, self.key, numbers)
        return self.layout.create(law, n, self.key, numbers)


def _jax_normal(n: int, key: Array, numbers: Array) -> Array:
    import jax

    return _jax_columns(jax.random.normal, n, key, numbers)


def _jax_uniform(n: int, key: Array, numbers: Array) -> Array:
    import jax

    return _jax_columns(jax.random.uniform, n, key, numbers)


def _jax_signs(n: int, key: Array, numbers: Array) -> Array:
    """One random bit an entry."""
    import jax

    def draw(key: Array, shape: tuple[int]) -> Array:
        return jax.random.bits(key, shape, "uint32")

    words = _jax_columns(draw, -(-n // 32), key, numbers)
    shifts = np.arange(32, dtype=np.uint32)[None, :, None]
    bit = ((words[:, None, :] >> shifts) & 1).reshape(-1, words.shape[1])[:n, :]
    return 1 - 2 * bit.astype("int8")


def _jax_columns(draw: Callable[..., Array], n: int, key: Array, numbers: Array) -> Array:
    import jax

    return jax.vmap(lambda j: draw(jax.random.fold_in(key, j), (n,)), out_axes=1)(numbers)


class _Granular(_Generator):
    """A generator whose stream depends on the size of a draw: draws granules of columns."""

    def __init__(self, rng: Any, dtype: DType) -> None:
        self.rng, self.dtype = rng, dtype
        self.left: dict[tuple[str, int], Array] = {}

    def _columns(
        self, kind: str, draw: Callable[[int], Array], concat: Any, n: int, m: int
    ) -> Array:
        granule = max(1, min(32, 2**22 // n))
        parts = [self.left.pop((kind, n))] if (kind, n) in self.left else []
        while sum(p.shape[0] for p in parts) < m:
            parts.append(draw(granule))
        drawn = parts[0] if len(parts) == 1 else concat(parts)
        if drawn.shape[0] > m:
            self.left[kind, n] = drawn[m:]
        return drawn[:m].T


class _Torch(_Granular):
    """A torch.Generator, on its own device."""

    def normal(self, n: int, m: int) -> Array:
        return self._draw("randn", n, m)

    def uniform(self, n: int, m: int) -> Array:
        return self._draw("rand", n, m)

    def signs(self, n: int, m: int) -> Array:
        import torch

        def draw(k: int) -> Array:
            bits = torch.randint(
                0, 2, (k, n), generator=self.rng, dtype=torch.int8, device=self.rng.device
            )
            return 1 - 2 * bits

        return self._columns("signs", draw, torch.cat, n, m)

    def distinct(self, n: int, m: int) -> Array:
        import torch

        return torch.randperm(n, generator=self.rng, device=self.rng.device)[:m]

    def identity(self) -> dict[str, Any]:
        return {"rng": f"torch.Generator on {self.rng.device}"}

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.state(), "device": self.rng.device, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import torch

        self.rng, self.dtype = torch.Generator(state["device"]), state["dtype"]
        self.restore(state["state"])

    def state(self) -> dict[str, Any]:
        left = [[kind, n, x.tolist()] for (kind, n), x in self.left.items()]
        return {"torch": self.rng.get_state().tolist(), "left": left}

    def restore(self, state: dict[str, Any]) -> None:
        import torch

        self.rng.set_state(torch.tensor(state["torch"], dtype=torch.uint8))
        dtypes = {"signs": torch.int8}
        self.left = {
            (kind, n): torch.tensor(x, dtype=dtypes.get(kind, self.dtype), device=self.rng.device)
            for kind, n, x in state["left"]
        }

    def _draw(self, kind: str, n: int, m: int) -> Array:
        import torch

        def draw(k: int) -> Array:
            return getattr(torch, kind)(
                (k, n), generator=self.rng, dtype=self.dtype, device=self.rng.device
            )

        return self._columns(kind, draw, torch.cat, n, m)


class _CuPy(_Granular):
    """A CuPy Generator, on its own device."""

    def normal(self, n: int, m: int) -> Array:
        return self._draw("standard_normal", n, m)

    def uniform(self, n: int, m: int) -> Array:
        return self._draw("random", n, m)

    def signs(self, n: int, m: int) -> Array:
        import cupy

        def draw(k: int) -> Array:
            return 1 - 2 * self.rng.integers(0, 2, size=(k, n)).astype("int8")

        return self._columns("signs", draw, cupy.concatenate, n, m)

    def distinct(self, n: int, m: int) -> Array:
        import cupy

        return cupy.argsort(self.rng.random(n))[:m]

    def identity(self) -> dict[str, Any]:
        return {"rng": "CuPy Generator"}

    def __reduce__(self) -> tuple[Any, ...]:
        return Lost, ()

    def state(self) -> dict[str, Any]:
        return {}  # has none that can be read; the generator itself goes on

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _draw(self, kind: str, n: int, m: int) -> Array:
        import cupy

        def draw(k: int) -> Array:
            return getattr(self.rng, kind)((k, n), dtype=self.dtype)

        return self._columns(kind, draw, cupy.concatenate, n, m)


class Lost:
    """What is left of a generator that cannot be pickled."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TypeError(
            "the state of a CuPy generator cannot be pickled, so that nothing more can be drawn "
            "for what was copied or sent to another process; pass an int to rng"
        )
