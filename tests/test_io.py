"""Files become square, finite matrices of floating dtype, or one sentence."""

from __future__ import annotations

import bz2
import gzip
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.io import mmwrite, savemat

import tracekit as tk
from tracekit.io import read_matrix, read_operator

REAL = np.asarray([[1.5, 0.0, -2.0], [0.0, 0.0, 3.0], [4.0, 5.0, 6.0]])
COMPLEX = REAL + 1j * np.asarray([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, -3.0]])
INTEGER = np.asarray([[1, 0, -2], [0, 0, 3], [4, 5, 6]])
BANNER = "%%MatrixMarket matrix "


def dense(matrix):
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def save(path: Path, matrix, layout) -> Path:
    """Write a dense array in the file kind that the path's suffix names."""
    if path.suffix == ".npy":
        np.save(path, matrix)
    elif path.suffix == ".npz":
        sparse.save_npz(path, layout(matrix))
    elif path.suffix == ".mtx":
        mmwrite(path, layout(matrix))
    elif path.suffix == ".mat":
        held = layout(matrix)
        savemat(path, {"A": sparse.csc_array(held) if sparse.issparse(held) else held, "name": "x"})
    else:
        plain = save(path.with_suffix(""), matrix, layout)
        packed = {".gz": gzip, ".bz2": bz2}[path.suffix].compress(plain.read_bytes())
        path.write_bytes(packed)
    return path


@pytest.mark.parametrize("matrix", [REAL, COMPLEX, INTEGER], ids=["real", "complex", "integer"])
@pytest.mark.parametrize("layout", [sparse.csr_array, sparse.coo_matrix, np.asarray])
@pytest.mark.parametrize("suffix", [".mtx", ".mtx.gz", ".mtx.bz2", ".npz", ".npy", ".mat", ".MTX"])
def test_reads_every_kind_of_file(tmp_path, suffix, layout, matrix):
    if suffix == ".npz" and layout is np.asarray:
        layout = sparse.dia_array
    path = save(tmp_path / f"matrix{suffix.lower()}", matrix, layout)
    path = path.rename(tmp_path / f"matrix{suffix}")
    read = read_matrix(path)
    assert read.dtype == (np.complex128 if matrix is COMPLEX else np.float64)
    np.testing.assert_array_equal(dense(read), matrix)

    operator = read_operator(str(path))
    assert isinstance(operator, tk.LinearOperator)
    X = np.asarray(np.eye(3), dtype=read.dtype)
    np.testing.assert_allclose(operator @ X, matrix)
    np.testing.assert_allclose(operator.H @ X, matrix.conj().T)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("coordinate pattern symmetric\n3 3 2\n2 1\n3 3\n", [[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        ("coordinate integer skew-symmetric\n2 2 1\n2 1 4\n", [[0, -4], [4, 0]]),
        (
            "coordinate complex hermitian\n2 2 2\n1 1 1 0\n2 1 2 3\n",
            [[1, 2 - 3j], [2 + 3j, 0]],
        ),
        ("coordinate real general\n2 2 3\n1 1 1\n1 1 2\n2 2 5\n", [[3, 0], [0, 5]]),
        ("array real general\n2 2\n1\n2\n3\n4\n", [[1, 3], [2, 4]]),
        ("array real symmetric\n2 2\n1\n2\n3\n", [[1, 2], [2, 3]]),
        ("array real skew-symmetric\n2 2\n7\n", [[0, -7], [7, 0]]),
        ("array complex hermitian\n2 2\n1 0\n2 3\n5 0\n", [[1, 2 - 3j], [2 + 3j, 5]]),
        ("coordinate integer hermitian\n2 2 2\n1 1 2\n2 1 5\n", [[2, 5], [5, 0]]),
        ("array integer skew-symmetric\n2 2\n4\n", [[0, -4], [4, 0]]),
        ("COORDINATE Real GENERAL\n\n% a comment\n\n2 2 1\n1 2 2.5D+00\n", [[0, 2.5], [0, 0]]),
        ("coordinate pattern general\n2 2 1\n2 2", [[0, 0], [0, 1]]),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_matrix_market_symmetries(tmp_path, text, expected, compressed):
    content = (BANNER + text).encode()
    path = tmp_path / ("matrix.mtx" + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    np.testing.assert_array_equal(dense(read_matrix(path)), expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        (">f8", "float64"),
        ("longdouble", "float64"),
        ("complex64", "complex64"),
        ("clongdouble", "complex128"),
        ("bool", "float64"),
        ("int8", "float64"),
        ("uint64", "float64"),
    ],
)
def test_dtypes(tmp_path, given, expected):
    np.save(tmp_path / "matrix.npy", np.eye(3).astype(given))
    read = read_matrix(tmp_path / "matrix.npy")
    assert read.dtype == expected
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, np.eye(3))


def npy(array) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def csr(indices, indptr, shape=(3, 3)) -> bytes:
    data = np.ones(len(indices))
    return npz(format=b"csr", shape=shape, data=data, indices=indices, indptr=indptr)


def mat(**variables) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    savemat(stream, variables)
    return stream.getvalue()


def zipped(member: bytes) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", member)
    return stream.getvalue()


def declares(content: bytes, old, new) -> bytes:
    """A file whose header, padded to the same length, tells another shape."""
    old, new = f"'shape': ({old},)" if isinstance(old, int) else f"'shape': {old}", new
    new = f"'shape': ({new},)" if isinstance(new, int) else f"'shape': {new}"
    gap = " " * abs(len(new) - len(old))
    changed = content.replace(f"{old}, }}{gap}".encode(), f"{new}, }}".encode())
    assert changed != content
    return changed


MATLAB_73 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
GZIPPED = gzip.compress(f"{BANNER}array real general\n2 2\n1\n2\n3\n4\n".encode())
BROKEN = {
    # name: (file name, content, what the sentence must say)
    "empty mtx": ("a.mtx", b"", "empty"),
    "empty gz": ("a.mtx.gz", b"", "empty"),
    "empty npy": ("a.npy", b"", "empty"),
    "empty npz": ("a.npz", b"", "empty"),
    "no suffix": ("a", b"1 2\n", "no suffix"),
    "other suffix": ("a.csv", b"1 2\n", r"\.csv.*\.mtx"),
    "archive of something else": ("a.gz", GZIPPED, r"\.gz"),
    "no banner": ("a.mtx", b"1 2\n3 4\n", "banner"),
    "bytes": ("a.mtx", bytes(range(256)), "banner"),
    "banner alone": ("a.mtx", f"{BANNER}array real general\n".encode(), "header"),
    "too few entries": (
        "a.mtx",
        f"{BANNER}coordinate real general\n3 3 2\n1 1 1\n".encode(),
        "more entries .3 3 2. than its text can hold",
    ),
    "too few entries on long lines": (
        "a.mtx",
        f"{BANNER}coordinate real general\n3 3 2\n1 1 1.000000000000000\n".encode(),
        "Truncated",
    ),
    "too few entries in gz": (
        "a.mtx.gz",
        gzip.compress(f"{BANNER}coordinate real general\n3 3 {10**12}\n1 1 1\n".encode()),
        "more entries",
    ),
    "too few entries in bz2": (
        "a.mtx.bz2",
        bz2.compress(f"{BANNER}array complex hermitian\n{10**6} {10**6}\n1 1\n".encode()),
        "more entries",
    ),
    "sizes that are no numbers": (
        "a.mtx",
        f"{BANNER}coordinate real general\n3 x 1\n1 1 1\n".encode(),
        "sizes, '3 x 1'",
    ),
    "one size": ("a.mtx", f"{BANNER}array real general\n3\n1\n".encode(), "sizes, '3'"),
    "comments without end": ("a.mtx.gz", gzip.compress(b"%%MatrixMarket\n%" + bytes(9)), "ends"),
    "not bzipped": ("a.mtx.bz2", b"hello", "Invalid data stream"),
    "index outside": (
        "a.mtx",
        f"{BANNER}coordinate real general\n3 3 1\n7 1 1\n".encode(),
        "out of bounds",
    ),
    "a word": (
        "a.mtx",
        f"{BANNER}coordinate real general\n3 3 1\n1 1 abc\n".encode(),
        "Invalid floating",
    ),
    "integer too large": (
        "a.mtx",
        f"{BANNER}coordinate integer general\n3 3 1\n1 1 {10**30}\n".encode(),
        "out of range",
    ),
    "larger than memory": (
        "a.mtx",
        f"{BANNER}array real general\n10000000 10000000\n1\n".encode(),
        "more entries",
    ),
    "rows beyond memory": (
        "a.mtx",
        f"{BANNER}coordinate real general\n{10**14} {10**14} 1\n1 1 1\n".encode(),
        "more than memory",
    ),
    "not square": (
        "a.mtx",
        f"{BANNER}coordinate real general\n2 3 1\n1 1 1\n".encode(),
        r"\(2, 3\).*square",
    ),
    "no rows": ("a.mtx", f"{BANNER}coordinate real general\n0 0 0\n".encode(), "no entries"),
    "not finite": (
        "a.mtx",
        f"{BANNER}coordinate real general\n2 2 1\n1 1 nan\n".encode(),
        "NaN or infinite",
    ),
    "not gzipped": ("a.mtx.gz", b"hello", "gzip"),
    "gzip cut short": ("a.mtx.gz", GZIPPED[:-12], "end"),
    "gzip with wrong bits": ("a.mtx.gz", GZIPPED[:12] + b"\xff\xff" + GZIPPED[14:], "cannot"),
    "vector": ("a.npy", npy(np.ones(3)), r"\(3,\).*square"),
    "scalar": ("a.npy", npy(np.float64(3.0)), r"\(\).*square"),
    "three axes": ("a.npy", npy(np.ones((2, 2, 2))), r"\(2, 2, 2\).*square"),
    "rectangle": ("a.npy", npy(np.ones((2, 3))), r"\(2, 3\).*square"),
    "no entries": ("a.npy", npy(np.ones((0, 0))), "no entries"),
    "infinite": ("a.npy", npy(np.full((2, 2), np.inf)), "NaN or infinite"),
    "objects": ("a.npy", npy(np.asarray([[1, None], [2, 3]])), "Python objects"),
    "pickle": ("a.npy", pickle.dumps([1, 2, 3]), "Python objects"),
    "words": ("a.npy", npy(np.asarray([["a", "b"], ["c", "d"]])), "not numbers"),
    "dates": ("a.npy", npy(np.zeros((2, 2), dtype="datetime64[s]")), "not numbers"),
    "records": ("a.npy", npy(np.zeros((2, 2), dtype=[("a", float)])), "not numbers"),
    "npy cut short": ("a.npy", npy(np.ones((9, 9)))[:-8], "cannot be read"),
    "npy header cut short": ("a.npy", npy(np.ones((9, 9)))[:20], "cannot be read"),
    "npz named npy": ("a.npy", npz(a=np.ones((2, 2))), "archive"),
    "npy named npz": ("a.npz", npy(np.ones((2, 2))), "save_npz"),
    "npz of numpy.savez": ("a.npz", npz(a=np.ones((2, 2))), "save_npz"),
    "npz of objects": ("a.npz", npz(format=np.asarray([None])), "Python objects"),
    "npz without a matrix": ("a.npz", npz(format=b"csr", shape=(2, 2)), "save_npz"),
    "npz that declares more than it holds": (
        "a.npz",
        zipped(declares(npy(np.ones(9)), 9, 77)),
        "more",
    ),
    "npy that declares more than it holds": (
        "a.npy",
        declares(npy(np.ones((9, 9))), "(9, 9)", "(7777777, 7777777)"),
        "file size",
    ),
    "words in an edge list": ("a.edges", b"anna bert\n", "no edge"),
    "a dense matrix as text": ("a.txt", b"1.0 0.0\n0.0 1.0\n", "no edge"),
    "comments alone": ("a.edges", b"# nothing\n", "no edge"),
    "edges that lose their weight": ("a.edges", b"1 2 0.5\n2 3\n", "columns"),
    "edges with attributes": ("a.edgelist", b"1 2 {'weight': 3}\n", "no edge"),
    "an edge with two weights": ("a.edges", b"1 2 0.5\n2 1 0.25\n", "two weights"),
    "a weight that is not finite": ("a.edges", b"1 2 nan\n", "NaN or infinite"),
    "mat of version 7.3": ("a.mat", MATLAB_73, "7.3"),
    "mat with two matrices": ("a.mat", mat(a=np.eye(2), b=np.eye(3)), "2 square.*a, b"),
    "mat without a matrix": ("a.mat", mat(a=np.ones((2, 3)), b="words"), "0 square.*a, b"),
    "mat cut short": ("a.mat", mat(a=np.eye(9))[:-20], "MATLAB"),
    "npz cut short": ("a.npz", csr([0, 1, 2], [0, 1, 2, 3])[:-40], "save_npz"),
    "npz with columns outside": ("a.npz", csr([0, 1, 10**9], [0, 1, 2, 3]), "broken sparse"),
    "npz with negative columns": ("a.npz", csr([0, 1, -5], [0, 1, 2, 3]), "broken sparse"),
    "npz with rows that go back": ("a.npz", csr([0, 1, 2], [0, 3, 1, 3]), "broken sparse"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_file_gets_one_sentence(tmp_path, name):
    file, content, says = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_matrix(path)
    message = str(caught.value)
    assert str(path) in message
    assert "; pass " in message
    assert "\n" not in message


@pytest.mark.parametrize("banner", ["%MatrixMarket", "%%MATRIXMARKET", "%%matrixmarket"])
def test_banners_of_other_programs(tmp_path, banner):
    text = f"{banner} MATRIX coordinate pattern Symmetric\n2 2 1\n2 1\n"
    (tmp_path / "a.mtx").write_text(text)
    np.testing.assert_array_equal(dense(read_matrix(tmp_path / "a.mtx")), [[0, 1], [1, 0]])


TRIANGLE = np.ones((3, 3)) - np.eye(3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2\n2 3\n3 1\n", TRIANGLE),
        ("# header\n% more\n\n10,7\n7,30\n30,10\n", TRIANGLE),
        ("0 1\n1 0\n1 2\n0 2\n2 0\n0 2\n", TRIANGLE),  # in both directions, and twice
        ("0 1 2.5\n1 1 -1\n", [[0, 2.5], [2.5, -1]]),
        ("0 1 2.5\n1\t0\t2.5", [[0, 2.5], [2.5, 0]]),
        ("5 5\n", [[1]]),
    ],
)
@pytest.mark.parametrize("suffix", [".edges", ".edgelist.gz", ".txt.bz2"])
def test_edge_lists(tmp_path, suffix, text, expected):
    packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(suffix).suffix, bytes)
    (tmp_path / f"a{suffix}").write_bytes(packed(text.encode()))
    np.testing.assert_array_equal(dense(read_matrix(tmp_path / f"a{suffix}")), expected)


@pytest.mark.parametrize("layout", [sparse.csc_matrix, np.asarray])
def test_the_matrix_of_a_matlab_file(tmp_path, layout):
    """The one square matrix, or the one of a file of SuiteSparse, beside all that is not one."""
    savemat(tmp_path / "a.mat", {"b": np.ones((3, 1)), "M": layout(REAL), "name": "words"})
    np.testing.assert_array_equal(dense(read_matrix(tmp_path / "a.mat")), REAL)
    record = {"name": "HB/some", "A": layout(REAL), "aux": {"b": np.ones((3, 3))}}
    savemat(tmp_path / "b.mat", {"Problem": record, "other": np.eye(2)}, do_compression=True)
    np.testing.assert_array_equal(dense(read_matrix(tmp_path / "b.mat")), REAL)


def peak(run) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_inflates_is_read_as_a_stream(tmp_path):
    """20 MB of comments in 20 kB: blocks of them are seen, never the text."""
    comment = b"%" + b"0" * 1022 + b"\n"
    with gzip.open(tmp_path / "a.mtx.gz", "wb", compresslevel=9) as stream:
        stream.write(f"{BANNER}coordinate real general\n".encode())
        for _ in range(12):
            stream.write(comment * 1024)
        stream.write(b"%" + bytes(2**23) + b"\n3 3 1\n1 1 1.0\n")  # one long line
    read_matrix(tmp_path / "a.mtx.gz")  # loads what it needs
    assert peak(lambda: read_matrix(tmp_path / "a.mtx.gz")) < 2**23


def test_nothing_is_allocated_for_entries_that_are_not_there(tmp_path):
    """Claims of a gigabyte, in files of a few bytes."""
    claims = {
        "a.mtx": f"{BANNER}coordinate real general\n9 9 {2**27}\n1 1 1\n",
        "b.mtx": f"{BANNER}array real symmetric\n{2**14} {2**14}\n1\n",
    }
    for name, text in claims.items():
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        (tmp_path / f"{name}.bz2").write_bytes(bz2.compress(text.encode()))
    (tmp_path / "c.npz").write_bytes(zipped(declares(npy(np.ones(9)), 9, 2**27)))

    def refuse(path):
        with pytest.raises(ValueError, match="declares more"):
            read_matrix(path)

    for path in tmp_path.iterdir():
        assert peak(lambda: refuse(path)) < 2**23  # noqa: B023


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "int16", ">f8"])
def test_arrays_stay_on_disk(tmp_path, dtype):
    n = 1200
    A = np.random.default_rng(0).integers(-9, 9, (n, n)).astype(dtype)
    np.save(tmp_path / "a.npy", A)
    assert peak(lambda: read_operator(tmp_path / "a.npy")) < 0.5 * A.nbytes
    operator = read_operator(tmp_path / "a.npy")
    X = np.ones((n, 2), dtype=operator.dtype)
    assert peak(lambda: (operator @ X, operator.H @ X)) < 0.6 * A.nbytes
    np.testing.assert_allclose(operator @ X, A.astype(operator.dtype) @ X, rtol=1e-4, atol=1e-2)
    if A.dtype == operator.dtype:
        assert isinstance(read_matrix(tmp_path / "a.npy"), np.memmap)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ValueError, match="does not exist; pass"):
        read_matrix(tmp_path / "none.mtx")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"folder.*; pass"):
        read_matrix(tmp_path / "folder.npy")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "a.npy", np.asarray([[Bomb()]], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "c.npz", format=np.asarray([Bomb()], dtype=object))
    for name in ("a.npy", "b.npy", "c.npz"):
        with pytest.raises(ValueError, match="Python objects"):
            read_matrix(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
