"""Square matrices read from files: Matrix Market, SciPy's sparse .npz, NumPy's .npy."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._adapt import as_operator
from ._operator import LinearOperator

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["read_matrix", "read_operator"]


def read_operator(path: str | PathLike[str]) -> LinearOperator:
    """Read a square matrix from a file as an operator.

    Parameters
    ----------
    path : str or path-like
        The file, as for `read_matrix`.

    Returns
    -------
    LinearOperator
        The matrix, held in memory as NumPy or SciPy hold it.

    Raises
    ------
    ValueError
        As `read_matrix`.
    """
    return as_operator(read_matrix(path))


def read_matrix(path: str | PathLike[str]) -> Any:
    """Read a square matrix from a file.

    Parameters
    ----------
    path : str or path-like
        A Matrix Market file (``.mtx``, ``.mtx.gz``), a sparse matrix saved by
        `scipy.sparse.save_npz` (``.npz``), or an array saved by `numpy.save` (``.npy``).

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_array
        The ``(n, n)`` matrix, dense or sparse as the file is. Integers and truth values become
        float64, half precision becomes float32, extended precision becomes double.

    Raises
    ------
    ValueError
        The file is missing, empty, broken, of another kind, or holds anything but a square
        matrix of finite numbers. Nothing is unpickled.

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
    path = Path(path)
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

    if path.name.lower().endswith(".gz"):
        # In memory: SciPy's reader aborts the process if its stream is closed before it is freed.
        return mmread(io.BytesIO(gzip.decompress(path.read_bytes())))
    return mmread(str(path))


def _read_sparse(path: Path) -> Any:
    from scipy.sparse import load_npz

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive, or one cut short")
    return load_npz(path)


def _read_array(path: Path) -> Any:
    with path.open("rb") as stream:
        array = np.load(stream, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
        return array


_READERS = {
    ".mtx": (_read_matrix_market, "Matrix Market", "what scipy.io.mmwrite writes"),
    ".mtx.gz": (
        _read_matrix_market,
        "gzipped Matrix Market",
        "what scipy.io.mmwrite writes, compressed by gzip",
    ),
    ".npz": (_read_sparse, "a sparse matrix", "what scipy.sparse.save_npz writes"),
    ".npy": (_read_array, "an array", "what numpy.save writes"),
}


def _checked(matrix: Any, path: Path) -> Any:
    """Return a square, finite matrix of floating dtype, or say what is wrong with it."""
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
    dtype = _floating(matrix.dtype)
    if isinstance(matrix, np.ndarray):
        matrix = entries = matrix.astype(dtype, copy=False)
    else:
        matrix = _compressed(matrix, path).astype(dtype, copy=False)
        entries = matrix.data
    if not np.isfinite(entries).all():
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
