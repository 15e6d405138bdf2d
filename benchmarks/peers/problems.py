"""Writes what every library is given: matrices, weights, and what is true of them."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..problems import SPECTRA, dense, digits, gaussian_kernel, spectrum, symmetric, triangles

N, SMALL = 1000, 200
HERMITIAN = "i^-2, complex"
TRIANGLES = "triangles"
TIMED = (2000, SMALL)  # dimensions
NETWORKS = ((64, 16, 16), (256, 16, 16), (256, 64, 4))  # width, outputs, samples


class Case(NamedTuple):
    """A small matrix on which a wrong formula or threshold shows, and a budget."""

    name: str
    matrix: np.ndarray
    psd: bool
    budget: int = 60


def write(folder: Path) -> None:
    """Write all matrices, and problems.json, which says what they are."""
    told: dict[str, Any] = {"accuracy": {}, "cases": {}, "timed": {}, "networks": {}}
    for name in (*SPECTRA, HERMITIAN, TRIANGLES, "kernel"):
        matrix, psd = large(name)
        facts: dict[str, Any] = {"trace": float(np.trace(matrix).real), "psd": psd}
        facts |= {"norm": float(np.linalg.norm(matrix))}
        if name in ("kernel", "1+U(0,1)"):
            facts["logdet"] = float(np.linalg.slogdet(matrix)[1])
        told["accuracy"][name] = facts | {"file": _save(folder, "large", name, matrix)}
    for case in cases():
        told["cases"][case.name] = {
            "file": _save(folder, "case", case.name, case.matrix),
            "trace": [float(np.trace(case.matrix).real), float(np.trace(case.matrix).imag)],
            "sigma": math.sqrt(2 / case.budget) * _norm(case.matrix),
            "psd": case.psd,
            "budget": case.budget,
        }
    for n in TIMED:
        told["timed"][str(n)] = _save(folder, "timed", str(n), dense("i^-2", n)[0])
    for sizes in NETWORKS:
        weights, X = network(*sizes)
        name = ",".join(map(str, sizes))
        path = folder / f"network {name}.npz"
        np.savez(path, X, *weights)
        told["networks"][name] = path.name
    (folder / "problems.json").write_text(json.dumps(told), encoding="utf-8")


def large(name: str) -> tuple[np.ndarray, bool]:
    """Return a matrix for the tables of errors, and whether it is positive semidefinite."""
    if name == TRIANGLES:
        product, n, _ = triangles()
        return product(np.eye(n)), False
    if name == HERMITIAN:
        rng, n = np.random.default_rng(3), N // 2
        Q, _ = np.linalg.qr(rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n)))
        return symmetric((Q * spectrum("i^-2", n)) @ Q.conj().T), True
    if name == "kernel":
        return gaussian_kernel(digits()[:N]), True
    return dense(name, N)[0], True


def cases() -> list[Case]:
    """Return the small matrices; sigma of a case is what Girard-Hutchinson's error would be."""
    rng = np.random.default_rng(4)
    n = SMALL
    G, C = rng.standard_normal((2, n, n))
    psd = dense("i^-0.5", n)[0]  # has a tail that a wrong rank loses
    complex_psd = (G + 1j * C) @ (G + 1j * C).conj().T / n
    low = rng.standard_normal((n, 5))
    two = np.array([[2.0, 1.0], [1.0, 3.0]])
    return [
        Case("complex Hermitian", symmetric(complex_psd), psd=True),
        Case("complex, general", (G + 1j * C) / n + (1 + 2j) * np.diag(1 / np.arange(1, n + 1)),
             psd=False),
        Case("real, not symmetric", G / n + np.diag(1 / np.arange(1.0, n + 1)), psd=False),
        Case("times 1e-30", psd * 1e-30, psd=True),
        Case("times 1e-200", psd * 1e-200, psd=True),
        Case("rank 5", low @ low.T, psd=True),
        Case("zero", np.zeros((n, n)), psd=True),
        Case("2 x 2", two, psd=True, budget=2),
        Case("identity", np.eye(n), psd=True),
        Case("float32", psd.astype(np.float32), psd=True),
        Case("budget of 61", psd, psd=True, budget=61),
    ]  # fmt: skip


def network(width: int, outputs: int, samples: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return weights and inputs of the ReLU networks of Novak et al. (2022): ten hidden layers."""
    rng = np.random.default_rng(5)
    shapes = pairwise([3, *[width] * 10, outputs])
    weights = [(rng.standard_normal(s) * (2 / s[0]) ** 0.5).astype(np.float32) for s in shapes]
    return weights, rng.standard_normal((samples, 3)).astype(np.float32)


def _norm(matrix: np.ndarray) -> float:
    """Of Frobenius, without underflow."""
    scale = float(np.max(np.abs(matrix)))
    return scale * float(np.linalg.norm(matrix / scale)) if scale else 0.0


def _save(folder: Path, kind: str, name: str, matrix: np.ndarray) -> str:
    path = folder / f"{kind} {name.replace('/', ' over ')}.npy"
    np.save(path, matrix)
    return path.name
