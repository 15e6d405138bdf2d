"""Square matrices read from files: Matrix Market, edge lists, .npz, .npy, MATLAB's .mat."""

from __future__ import annotations

import bz2
import gzip
import io
import zipfile
from collections.abc import Callable
from itertools import chain
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ._operators import LinearOperator, as_operator

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["read_matrix", "read_operator"]

_BLOCK = 2**20  # bytes of text, or entries, that are looked at together


def read_operator(path: str | PathLike[str]) -> LinearOperator:
    """Read a square matrix from a file as an operator.

    Parameters
    ----------
    path : str or path-like
        The file, as for `read_matrix`.

    Returns
    -------
    LinearOperator
        The matrix, held in memory as SciPy holds it, or on disk (``.npy``): entries of another
        dtype are converted in every product, block by block.

    Raises
    ------
    ValueError
        As `read_matrix`.
    """
    return as_operator(_read(Path(path)))


def read_matrix(path: str | PathLike[str]) -> Any:
    """Read a square matrix from a file.

    Parameters
    ----------
    path : str or path-like
        A Matrix Market file (``.mtx``), a list of edges (``.edges``, ``.edgelist``, ``.txt``),
        each also compressed (``.gz``, ``.bz2``), a sparse matrix saved by `scipy.sparse.save_npz`
        (``.npz``), an array saved by `numpy.save` (``.npy``), or the one square matrix in a file
        of MATLAB (``.mat``, up to version 7.2; ``Problem.A`` in those of SuiteSparse).

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_array
        The ``(n, n)`` matrix, dense or sparse as the file is. Integers and truth values become
        float64, half precision becomes float32, extended precision becomes double. An array in
        single or double precision stays on disk, as `numpy.memmap`, which cannot be written.

    Raises
    ------
    ValueError
        The file is missing, empty, broken, of another kind, or holds anything but a square
        matrix of finite numbers. Nothing is unpickled.

    Notes
    -----
    Nothing is allocated for a size that a file declares before it is seen to hold as much.

    A list of edges has two nodes and, if it is weighted, a weight in each line, between spaces or
    commas; lines that begin with ``#`` or ``%`` are comments. It gives the adjacency matrix of the
    undirected graph of all nodes that occur, in the order of their numbers: an edge counts once,
    in whichever direction and however often it is listed. Of a directed graph, pass a Matrix
    Market file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from tracekit.io import read_matrix
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "matrix.npy")
    ...     np.save(path, np.asarray([[1, 2], [3, 4]]))
    ...     read_matrix(path)
    array([[1., 2.],
           [3., 4.]])
    """
    matrix = _read(Path(path))
    dtype = _floating(matrix.dtype)
    if isinstance(matrix, np.ndarray) and matrix.dtype != dtype:
        return matrix.astype(dtype, subok=False)
    return matrix.astype(dtype, copy=False)


def _read(path: Path) -> Any:
    """Return what `read_matrix` does, arrays in the dtype that the file has."""
    suffix = next((s for s in _READERS if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(
            f"{path} ends in {path.suffix or 'no suffix'}, which names no known kind of file; "
            f"pass one that ends in {', '.join(_READERS)}"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist; pass the path of a file that does")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, which holds no single matrix; pass a file in it")
    reader, kind, remedy = _READERS[suffix]
    try:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        matrix = reader(path)
    except MemoryError:
        raise ValueError(
            f"{path} declares a matrix larger than memory; pass a smaller one, or a sparse file"
        ) from None
    except Exception as error:  # the readers raise a dozen kinds, from zlib.error to KeyError
        reason = str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
        if "pickle" in reason:
            reason = "it holds Python objects, whose reading could run code"
        raise ValueError(f"{path} cannot be read as {kind}: {reason}; pass {remedy}") from error
    return _checked(matrix, path)


def _read_matrix_market(path: Path) -> Any:
    from scipy.io import mmread

    with _opened(path) as stream:
        banner, sizes = _header(stream)
        if not _holds(stream, _least_bytes(banner, sizes)):
            raise ValueError(f"it declares more entries ({sizes}) than its text can hold")
    with _opened(path) as stream:
        _header(stream)
        return mmread(_Joined(f"{banner}\n{sizes}\n".encode(), stream))


def _header(stream: IO[bytes]) -> tuple[str, str]:
    """Return the banner, spelled as SciPy reads it, and the line of sizes; skip comments."""
    first, *words = _line(stream).decode("ascii", "replace").lower().split() or [""]
    if first not in ("%%matrixmarket", "%matrixmarket"):
        raise ValueError("its first line is no banner, as %%MatrixMarket matrix is")
    line = _line(stream)
    while line.startswith(b"%") or line.isspace():
        line = _line(stream)
    if not line:
        raise ValueError("its header ends before the sizes")
    return " ".join(["%%MatrixMarket", *words]), line.decode("ascii", "replace").strip()


def _line(stream: IO[bytes]) -> bytes:
    """Return the next line, or its beginning if it is endless."""
    line = part = stream.readline(_BLOCK)
    while part and not part.endswith(b"\n"):
        part = stream.readline(_BLOCK)
    return line


def _least_bytes(banner: str, sizes: str) -> int:
    """Return how much text the entries take that a header declares: a digit and a space each."""
    words = sizes.split()
    if not 2 <= len(words) <= 3 or not all(word.isdigit() for word in words):
        raise ValueError(f"its line of sizes, {sizes[:40]!r}, is not two or three numbers")
    m, n, *entries = map(int, words)
    values = 2 if "complex" in banner else 0 if "pattern" in banner else 1
    if " coordinate" in banner:
        return 2 * sum(entries) * (2 + values) - 1
    stored = m * n if "general" in banner else n * (n + (-1 if "skew" in banner else 1)) // 2
    return 2 * stored * values - 1


def _holds(stream: IO[bytes], size: int) -> bool:
    """Whether a stream goes on for so many bytes."""
    while size > 0:
        block = stream.read(min(size, _BLOCK))
        if not block:
            return False
        size -= len(block)
    return True


class _Joined:
    """A text before a stream. SciPy's reader seeks and closes what can be; this cannot."""

    def __init__(self, text: bytes, stream: IO[bytes]) -> None:
        self.text, self.stream = text, stream

    def read(self, size: int) -> bytes:
        text, self.text = self.text, b""
        return text or self.stream.read(size)


def _opened(path: Path) -> IO[bytes]:
    """Open a text, which may be compressed, as a stream of bytes."""
    kinds: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    opened: IO[bytes] = kinds.get(path.suffix.lower(), open)(path, "rb")
    return opened


def _read_edges(path: Path) -> Any:
    """Return the symmetric adjacency matrix of the graph that a list of edges describes."""
    from scipy.sparse import coo_array

    with _opened(path) as stream, io.TextIOWrapper(stream, "ascii", "replace") as text:
        lines = (line.replace(",", " ") for line in text if line.strip()[:1] not in _COMMENT)
        first = next(lines, "")
        words = first.split()
        if len(words) not in (2, 3) or not all(word.isdigit() for word in words[:2]):
            raise ValueError(f"{first.strip()[:40]!r} is no edge of two nodes and a weight")
        kinds = [("i", np.int64), ("j", np.int64), ("weight", np.float64)][: len(words)]
        edges = np.loadtxt(chain([first], lines), dtype=kinds, ndmin=1)
    nodes, places = np.unique(np.stack([edges["i"], edges["j"]]), return_inverse=True)
    i, j = np.sort(places.reshape(2, -1), axis=0)
    weights = edges["weight"] if len(words) == 3 else np.ones(len(i))
    _, first_of, which = np.unique(i * len(nodes) + j, return_index=True, return_inverse=True)
    differ = np.abs(weights - weights[first_of][which]) > 0
    if np.any(differ):
        k = int(np.argmax(differ))
        raise ValueError(
            f"the edge between {nodes[i[k]]} and {nodes[j[k]]} is listed with two weights, so that "
            "the graph is directed or has parallel edges"
        )
    i, j, weights = i[first_of], j[first_of], weights[first_of]
    other = i != j
    rows, columns = np.concatenate([i, j[other]]), np.concatenate([j, i[other]])
    entries = np.concatenate([weights, weights[other]])
    return coo_array((entries, (rows, columns)), shape=(len(nodes), len(nodes)))


def _read_sparse(path: Path) -> Any:
    from scipy.sparse import load_npz

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive, or one cut short")
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # deflate shrinks to no less than 1/1032
            if member.file_size > 1032 * (member.compress_size + 64):
                raise ValueError(f"{member.filename} declares more bytes than it can hold")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = {1: np.lib.format.read_array_header_1_0}.get(
                    version[0], np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(stream)
                if prod(shape) * dtype.itemsize > member.file_size and not dtype.hasobject:
                    raise ValueError(f"{member.filename} declares more entries than it can hold")
    return load_npz(path)


def _read_array(path: Path) -> Any:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("it is an archive of arrays")
    return array


def _read_matlab(path: Path) -> Any:
    """Return the square matrix in a file of MATLAB, or the one in SuiteSparse's record of it."""
    from scipy.io import loadmat, whosmat

    variables = whosmat(path)
    square = [name for name, shape, kind in variables if kind in _NUMERIC and _is_square(shape)]
    if "Problem" in [name for name, _, kind in variables if kind == "struct"]:
        return loadmat(path, variable_names=["Problem"])["Problem"]["A"][0, 0]
    if len(square) != 1:
        names = ", ".join(name for name, *_ in variables) or "nothing"
        raise ValueError(f"it has {len(square)} square matrices (it holds {names})")
    return loadmat(path, variable_names=square)[square[0]]


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1]


_COMMENT = ("#", "%", "")
_NUMERIC = (
    "double", "single", "sparse", "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)  # fmt: skip
_TEXTS = {
    ".mtx": (_read_matrix_market, "Matrix Market", "what scipy.io.mmwrite writes"),
    **dict.fromkeys(
        (".edges", ".edgelist", ".txt"),
        (_read_edges, "a list of edges", "lines of two nodes and, if any, a weight"),
    ),
}
_READERS = {
    **{suffix + packed: how for suffix, how in _TEXTS.items() for packed in ("", ".gz", ".bz2")},
    ".npz": (_read_sparse, "a sparse matrix", "what scipy.sparse.save_npz writes"),
    ".npy": (_read_array, "an array", "what numpy.save writes"),
    ".mat": (
        _read_matlab,
        "a matrix of MATLAB",
        "one matrix, as scipy.io.savemat or save -v7 writes it",
    ),
}


def _checked(matrix: Any, path: Path) -> Any:
    """Return a square matrix of finite numbers, or say what is wrong with it."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{path} holds an array of shape {matrix.shape}, and only a square matrix has a trace; "
            "pass a file that holds an n x n matrix"
        )
    if matrix.shape[0] == 0:
        raise ValueError(
            f"{path} holds a matrix of shape (0, 0), which has no entries; "
            "pass one with at least one row"
        )
    if matrix.dtype.kind not in "biufc":
        raise ValueError(
            f"{path} holds entries of dtype {matrix.dtype}, which are not numbers; "
            "pass real, complex or integer ones"
        )
    if not isinstance(matrix, np.ndarray):
        matrix = _compressed(matrix, path)
    entries = matrix if isinstance(matrix, np.ndarray) else matrix.data[:, None]
    entries = entries.T if entries.flags.fnc else entries  # as they lie on disk
    step = max(1, _BLOCK // entries.shape[1])
    if not all(np.isfinite(entries[k : k + step]).all() for k in range(0, len(entries), step)):
        raise ValueError(
            f"{path} holds entries that are NaN or infinite, so its trace is not a number; "
            "pass one whose entries are finite"
        )
    return matrix


def _compressed(matrix: Any, path: Path) -> Any:
    """Return a sparse matrix by rows, with indices known to lie inside of it."""
    from scipy.sparse import csr_array

    try:
        if hasattr(matrix, "check_format"):  # an index outside would be read from outside memory
            matrix.check_format(full_check=True)
        return csr_array(matrix)
    except ValueError as error:
        raise ValueError(
            f"{path} holds a broken sparse matrix ({error}); pass what scipy.sparse.save_npz writes"
        ) from error
    except MemoryError:
        raise ValueError(
            f"{path} declares {matrix.shape[0]} rows, more than memory holds; pass a smaller matrix"
        ) from None


def _floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the native floating dtype, single or double, that holds a numeric dtype."""
    if dtype.kind == "c":
        return np.dtype(np.complex64 if dtype.itemsize <= 8 else np.complex128)
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)
