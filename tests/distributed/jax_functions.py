"""Every function of a matrix whose rows lie on four devices of JAX: started by `test_jax`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parents[1]))
from capabilities import CASES
from test_capabilities import SEED, positive


def main() -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, A, report = NamedSharding(mesh, P("data", None)), positive(), {}

    def cut(X: np.ndarray) -> Any:
        return jax.device_put(jnp.asarray(X), rows) if X.ndim == 2 else jnp.asarray(X)

    for case in CASES:
        operands = case.operands(A)
        alone = np.asarray(case.read(case.run(*operands, case.budget, rng=SEED), A))
        found = case.run(*map(cut, operands), case.budget, rng=SEED)
        found = np.asarray(case.read(found, jnp.asarray(A)))
        report[case.name] = float(np.max(np.abs(found - alone)) / np.max(np.abs(alone)))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
