"""One of several processes of PyTorch, holding samples of a network: by `torch_groups`."""

from __future__ import annotations

from typing import Any

import torch
from ranks import apart, told
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import tracekit as tk
import tracekit_ntk as tkn


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    layers = [
        torch.nn.Linear(3, 4),
        torch.nn.BatchNorm1d(4),
        torch.nn.Tanh(),
        torch.nn.Linear(4, 2),
    ]
    return torch.nn.Sequential(*layers).eval()


def numbers(f: Any, params: Any, x: Any, layout: Any = None) -> dict[str, Any]:
    """What is asked of the kernel: values and the products that they claim."""
    K = tkn.ntk(f, params, x, layout=layout)
    J = tkn.jacobian(lambda p: f(p, x), params, layout=layout)
    bare = tk.gram(J)  # nothing but products
    batches = [x[:2], x[2:]]
    of_batches = tkn.ntk(f, params, batches=batches, chunk_size=2, layout=layout)
    twin = tkn.parameter_gram(lambda p: f(p, x), params, layout=layout)
    asked = {
        "trace": tk.trace(K), "exact": tk.exact_trace(bare), "diagonal": tk.diagonal(K),
        "hutchinson": tk.hutchinson(bare, 5, rng=0), "hutchpp": tk.hutchpp(bare, 9, rng=0),
        "norm": tk.frobenius_norm(bare, 12, rng=0), "rank": tk.effective_rank(bare, 12, rng=0),
        "outputs": tk.partial_trace(K, K.dims, 0, 3, rng=0), "twin": tk.hutchpp(twin, 9, rng=0),
        "batches": tk.hutchpp(of_batches, 9, rng=0), "one sided": tk.one_sided(J, 6, rng=0),
    }  # fmt: skip
    values = {name: found.value for name, found in asked.items()}
    parts = tkn.ntk_trace(f, params, x, per_parameter=True, layout=layout)
    values |= {"total": tkn.ntk_trace(f, params, x, layout=layout), **parts}
    claimed = {name: found.num_matvecs for name, found in asked.items()}
    return {"values": values, "claimed": claimed}


def differences(found: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    assert found["claimed"] == alone["claimed"]
    return {name: apart(x, alone["values"][name]) for name, x in found["values"].items()}


def main(where: str, rank: int, size: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    layout = mesh, [Shard(0)]
    torch.manual_seed(0)
    X = torch.randn(9, 3)
    x = X[:6] if rank == 0 else X[6:]  # unequal shares
    f, params = tkn.functional(network())
    alone = numbers(f, params, X)
    report: dict[str, Any] = {"mesh": differences(numbers(f, params, x, layout), alone)}

    rows = slice(0, 12) if rank == 0 else slice(12, 18)
    summed = tk.RowLayout(rows, _summed, rank, size)
    report["sum callback"] = differences(numbers(f, params, x, summed), alone)
    both = mesh, [Replicate()]  # every process with all samples
    report["replicated"] = differences(numbers(f, params, X, both), alone)

    wrapped = DistributedDataParallel(network())
    g, own = tkn.functional(wrapped)
    assert list(own) == list(params)
    report["DDP"] = differences(numbers(g, own, x, layout), alone)
    inside = {f"module.{name}": p for name, p in params.items()}

    def by_call(p: Any, x: Any) -> Any:
        return functional_call(wrapped, p, (x,))

    K = tkn.ntk(by_call, inside, x, layout=layout)
    report["DDP called"] = {
        "hutchpp": apart(tk.hutchpp(tk.gram(K.factor), 9, rng=0).value, alone["values"]["hutchpp"])
    }

    sharded = network()
    fully_shard(sharded[0], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    whole = {name: state[name] for name in params}
    other = network()
    other.load_state_dict(state)
    report["FSDP by its remedy"] = differences(numbers(*tkn.functional(other), x, layout), alone)

    def by_sharded(p: Any, x: Any) -> Any:
        return functional_call(sharded, p, (x,))

    refused = [
        lambda: tkn.functional(sharded),
        lambda: tkn.ntk_trace(by_sharded, whole, x, layout=layout),
        lambda: tkn.jacobian(lambda p: by_sharded(p, x), whole, layout=layout),
        lambda: tkn.sample_ntk(by_sharded, whole, x),
    ]
    before = [told(call) for call in refused]
    sharded(x[:3])  # from now on it puts its parameters in the place of others
    report["sharded"] = before + [told(call) for call in refused]
    report["parts"] = told(lambda: tkn.ntk(by_sharded, dict(sharded.named_parameters()), x))

    K = tkn.kernel(f, params, x, X)  # the rows of this process, and no sum
    rows_of_matrix = tkn.kernel_matrix(tkn.kernel(f, params, X))[rows]
    K = K.permute(0, 2, 1, 3).reshape(2 * len(x), 18)
    report["kernel"] = {"rows": apart(K, rows_of_matrix)}

    calls: list[int] = []
    counting = tk.RowLayout(rows, lambda v: (calls.append(v.numel()), _summed(v))[1], rank, size)
    J = tkn.jacobian(lambda p: f(p, x), params, chunk_size=2, layout=counting)
    calls.clear()
    tk.hutchinson(tk.gram(J), 5, rng=0)
    report["large sums"] = [n for n in calls if n > 20] == [J.shape[1] * 5]

    elsewhere = {name: p + 1e-6 * rank for name, p in params.items()}
    report["told"] = {
        "parameters": told(lambda: tkn.ntk(f, elsewhere, x, layout=layout)),
        "placements": told(lambda: tkn.ntk(f, params, x, layout=(mesh, [Shard(1)]))),
        "a failure": told(
            lambda: tkn.jacobian(lambda p: f(p, x) / (1 - rank), params, layout=layout)
        ),
    }  # fmt: skip
    torch.distributed.destroy_process_group()
    return report


def _summed(x: Any) -> Any:
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x
