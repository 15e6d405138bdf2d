"""Random numbers as functions of seed, law, column and row: Philox on NumPy, and as a program.

Salmon, Moraes, Dror, Shaw (2011), SC'11, doi:10.1145/2063384.2063405: Philox 4 x 64, 10 rounds.
Step s of column j is the cipher's output for the counter (s + 1, 0, j, 0): four words, or eight
halves of 32 bits, the low half of a word first. A step holds the signs of 256 rows, a bit each, or
the uniform or normal numbers of 8 rows, a half each, so that any rows of any columns are drawn by
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from .._arrays import Array, DType, Namespace

LAWS = {"distinct": 0, "signs": 1, "normal": 2, "uniform": 3}  # one key for each
ROWS = {"signs": 256, "normal": 8, "uniform": 8}  # of a step
_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS, _AT_ONCE = 10, 2**13  # words whose normals are computed while they are in the cache

Key: TypeAlias = tuple[int, int]  # of 64 bits each
Counter: TypeAlias = tuple[Array, ...]  # four words as eight halves, the low half first


class Block(NamedTuple):
    """Which numbers: rows and columns of a law, by global number."""

    law: str
    rows: range
    columns: range

    @property
    def steps(self) -> range:
        """All that hold a row of these."""
        size = ROWS[self.law]
        return range(self.rows.start // size, -(-self.rows.stop // size))

    def cut(self, numbers: Array, xp: Namespace) -> Array:
        """The rows of the block, out of the numbers of its steps, column by column."""
        size = ROWS[self.law]
        X = xp.reshape(numbers, (len(self.columns), size * len(self.steps)))
        before = self.steps.start * size
        return X[:, self.rows.start - before : self.rows.stop - before].T


def key_of(seed: np.random.SeedSequence) -> Key:
    """128 bits of a seed."""
    first, second = seed.generate_state(2, np.uint64).tolist()
    return first, second


class _Given(ISeedSequence):
    """A key in the place of a seed: with `key=`, NumPy asks the system for entropy each time."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> Any:
        return np.array(self.key, dtype=np.uint64)


def bits(key: Key, law: str, column: int = 0) -> np.random.Philox:
    """The generator of a column, before its first step."""
    seed: Any = _Given(_of_law(key, law))  # NumPy's stubs know of no seeds but its own
    return np.random.Philox(seed, counter=np.array([0, 0, column, 0], dtype=np.uint64))


def _of_law(key: Key, law: str) -> Key:
    return key[0], key[1] ^ LAWS[law]


def draw(key: Key, block: Block) -> Array:
    """A block on NumPy: signs as int8, circular numbers as complex128, others as float64."""
    if block.law == "circular":
        X = draw(key, _of_parts(block))
        return X[::2, :] + 1j * X[1::2, :]
    words = _words(key, block)
    if block.law == "signs":
        ones = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        signs = np.subtract(1, np.left_shift(ones, 1), dtype=np.int8, casting="unsafe")
        return block.cut(signs, np)
    flat, numbers = words.reshape(-1), np.empty(2 * words.size)
    for i in range(0, flat.size, _AT_ONCE):
        u = (flat[i : i + _AT_ONCE].view("<u4") + 0.5) * 2.0**-32
        numbers[2 * i : 2 * (i + _AT_ONCE)] = _normals(u) if block.law == "normal" else u
    return block.cut(numbers, np)


def some_rows(key: Key, block: Block, rows: range) -> Array:
    """Some rows of a block on NumPy, numbered from its first."""
    return draw(key, block._replace(rows=block.rows[rows.start : rows.stop]))


def _of_parts(block: Block) -> Block:
    """Real and imaginary parts of circular numbers: rows 2 i and 2 i + 1 of normal ones."""
    rows = range(2 * block.rows.start, 2 * block.rows.stop)
    return block._replace(law="normal", rows=rows)


def _words(key: Key, block: Block) -> Array:
    """Words of all steps, one row a column, little-endian."""
    count, start = 4 * len(block.steps), block.steps.start
    words = np.empty((len(block.columns), count), dtype="<u8")
    if words.size:
        generator = bits(key, block.law)
        at = {"key": _of_law(key, block.law), "counter": [0] * 4}
        state: Any = generator.state | {"state": at, "buffer": [0] * 4}
        for row, column in zip(words, block.columns, strict=True):
            at["counter"] = start, 0, column, 0
            generator.state = state  # at half the time of `advance`
            row[:] = generator.random_raw(count)
    return words


def _normals(u: Array) -> Array:
    """Pairs of normal numbers of pairs of uniform ones, by Box and Muller.

    The tangent of half the angle gives cosine and sine, at a fourth of their time.
    """
    radius, tangent = np.sqrt(-2 * np.log(u[::2])), np.tan(math.pi * u[1::2])
    square = tangent * tangent
    scaled, x = radius / (1 + square), np.empty_like(u)
    np.multiply(scaled, 1 - square, out=x[::2])
    np.multiply(scaled, 2 * tangent, out=x[1::2])
    return x


def program(
    key: Key, block: Block, dtype: DType, xp: Namespace, loops: Any = None, parts: int = 1
) -> Array:
    """The same block as a program of integer arithmetic in 32 bits, for what is compiled.

    Signs are equal to those of `draw`, other numbers up to rounding in `dtype`. With `loops`, which
    is JAX, rounds are one, and rows may be in equal parts for devices, each of steps of its own.
    """
    if block.law == "circular":
        X = program(key, _of_parts(block), dtype, xp, loops, parts)
        return X[::2, :] + 1j * X[1::2, :]
    size, k = ROWS[block.law], len(block.columns)
    parts = parts if len(block.rows) % parts == 0 else 1
    height = len(block.rows) // parts
    first, before = np.divmod(block.rows.start + height * np.arange(parts), size)
    most = -(-(int(before.max()) + height) // size)
    zero = xp.zeros((parts, k, most), dtype=xp.uint32)
    first = xp.asarray(first.astype(np.uint32) + np.uint32(1))[:, None, None]
    step = zero + first + xp.arange(most, dtype=xp.uint32)
    columns = xp.arange(block.columns.start, block.columns.stop, dtype=xp.uint32)
    counter = (step, *(zero,) * 3, zero + columns[:, None], *(zero,) * 3)
    keys = _schedule(_of_law(key, block.law))

    def turn(counter: Counter, key: Array) -> tuple[Counter, None]:
        return _round(counter, key, xp), None

    def cut(numbers: Array, start: Array | int) -> Array:
        return loops.lax.dynamic_slice_in_dim(numbers, start, height, axis=-1)

    if loops is None:
        halves = reduce(lambda c, k: turn(c, k)[0], keys, counter)
    else:
        halves = loops.lax.scan(turn, counter, keys)[0]
    X = xp.reshape(_LAWS[block.law](halves, dtype, xp), (parts, k, size * most))
    if np.all(before == before[0]):
        X = X[..., before[0] : before[0] + height]
    else:
        X = loops.vmap(cut)(X, before)
    return xp.reshape(xp.matrix_transpose(X), (parts * height, k))


def _schedule(key: Key) -> Array:
    """Keys of the rounds, in halves, the low half first."""
    words = [[(k + i * w) % 2**64 for k, w in zip(key, _WEYL, strict=True)] for i in range(_ROUNDS)]
    return np.array(words, dtype="<u8").view("<u4").astype(np.uint32)


def _round(c: Counter, key: Array, xp: Namespace) -> Counter:
    first, second = _product(c[:2], _FACTORS[0], xp), _product(c[4:6], _FACTORS[1], xp)
    word0 = second[2] ^ c[2] ^ key[0], second[3] ^ c[3] ^ key[1]
    word2 = first[2] ^ c[6] ^ key[2], first[3] ^ c[7] ^ key[3]
    return *word0, *second[:2], *word2, *first[:2]


def _product(word: Counter, factor: int, xp: Namespace) -> Counter:
    """Four halves of 64 by 64 bits, the lowest first."""
    (a, b), (low, high) = word, (factor % 2**32, factor >> 32)
    (p0, p1), (q0, q1) = _half_product(a, low), _half_product(a, high)
    (r0, r1), (s0, s1) = _half_product(b, low), _half_product(b, high)
    middle, carry = _sum(xp, p1, q0, r0)
    third, over = _sum(xp, q1, r1, s0, carry)
    return p0, middle, third, s1 + over


def _half_product(a: Array, factor: int) -> Counter:
    """Low and high half of 32 by 32 bits, by products of 16 bits."""
    low, high = np.uint32(factor % 2**16), np.uint32(factor >> 16)
    a0, a1 = a & np.uint32(2**16 - 1), a >> np.uint32(16)
    first = a1 * low + (a0 * low >> np.uint32(16))
    second = (first & np.uint32(2**16 - 1)) + a0 * high
    return a * np.uint32(factor), a1 * high + (first >> np.uint32(16)) + (second >> np.uint32(16))


def _sum(xp: Namespace, total: Array, *terms: Array) -> Counter:
    """The sum of halves, and what it carries."""
    carry = xp.zeros_like(total)
    for term in terms:
        total = total + term
        carry = carry + xp.astype(total < term, xp.uint32)
    return total, carry


def _program_signs(halves: Counter, dtype: DType, xp: Namespace) -> Array:
    ones = xp.stack(halves, axis=-1)[..., None] >> xp.arange(32, dtype=xp.uint32) & np.uint32(1)
    return 1 - 2 * xp.astype(ones, xp.int8)


def _program_uniform(halves: Counter, dtype: DType, xp: Namespace) -> Array:
    return xp.stack([_fraction(h, dtype, xp) for h in halves], axis=-1)


def _program_normal(halves: Counter, dtype: DType, xp: Namespace) -> Array:
    numbers = []
    for h, angle in zip(halves[::2], halves[1::2], strict=True):
        # 1 - u has the bits of u inverted: the smaller of both keeps all its digits in float32
        large = h >= np.uint32(2**31)
        v = _fraction(xp.where(large, ~h, h), dtype, xp)
        radius = xp.sqrt(-2 * xp.where(large, xp.log1p(-v), xp.log(v)))
        theta = 2 * math.pi * _fraction(angle, dtype, xp)
        numbers += [radius * xp.cos(theta), radius * xp.sin(theta)]
    return xp.stack(numbers, axis=-1)


def _fraction(half: Array, dtype: DType, xp: Namespace) -> Array:
    """A number in (0, 1) of 32 bits."""
    return (xp.astype(half, dtype) + 0.5) * 2.0**-32


_LAWS: dict[str, Callable[[Counter, DType, Namespace], Array]] = {
    "signs": _program_signs,
    "normal": _program_normal,
    "uniform": _program_uniform,
}
