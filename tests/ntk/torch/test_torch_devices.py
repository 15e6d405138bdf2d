"""Golden networks of PyTorch in factored form, on a device that is not the default one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import library

torch = pytest.importorskip("torch")

from test_torch_capture import NETS, check  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

# The emulation has no sparse tensors, and no end of an operation from a hook of a saved tensor.
NOT_EMULATED = {"activation_checkpointing", "sparse_embedding_gradients"}
NAMES = {
    "torch:emulated": [name for name in NETS if name not in NOT_EMULATED],
    "torch:cuda": list(NETS),
}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("device", "name"), [(device, name) for device, names in NAMES.items() for name in names]
)
@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_factors_are_jacobians(device: str, name: str) -> None:
    lib = library(device)

    def there(tree: Any) -> Any:
        return tree_map(lambda t: t.to(lib.device) if isinstance(t, torch.Tensor) else t, tree)

    with torch.device(lib.device):  # what modules make
        f, params, x, told = NETS[name]()
    found = check(f, there(params), there(x), **told)
    assert all(lib.at_home(use.G) for uses in found.uses(0, 1).values() for use in uses
               if hasattr(use, "G"))  # fmt: skip
