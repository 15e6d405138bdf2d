"""Models of Hugging Face's transformers, with random weights, by the wrapper of the docs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import tracekit as tk
import tracekit_ntk as tkn

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 12}


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=12, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=12, num_labels=3, max_position_embeddings=8, **SIZES
    )
    return transformers.BertForSequenceClassification(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=12, num_key_value_heads=1, max_position_embeddings=8, **SIZES
    )
    return transformers.LlamaForCausalLM(config)


def vit() -> Any:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


ROUNDING = {llama: 1e-5}  # its norms are in float32, whatever its parameters are
MODELS = (gpt2, bert, llama, vit)


def network(make: Callable[[], Any]) -> tuple[Any, dict[str, Any], Any]:
    """The wrapper of the documentation, and inputs of three samples."""
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(3, 3, 8, 8).double() if make is vit else torch.randint(0, 12, (3, 4))

    f, params = tkn.functional(model.eval())

    def logits(params: Any, x: Any) -> Any:
        return f(params, x).logits

    return logits, params, x


def explicit(f: Any, params: Any, x: Any) -> Any:
    """The Jacobian, by one plain gradient of each output."""
    leaves = [p.clone().requires_grad_() for p in params.values()]
    y = f(dict(zip(params, leaves, strict=True)), x).flatten()
    rows = [
        torch.autograd.grad(one, leaves, retain_graph=True, materialize_grads=True) for one in y
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("make", MODELS)
def test_kernels_of_models(make: Callable[[], Any]) -> None:
    f, params, x = network(make)
    J = explicit(f, params, x)
    K = J @ J.T
    rounding = ROUNDING.get(make, 1e-12) * float(K.abs().max())
    close = partial(torch.testing.assert_close, rtol=0, atol=rounding)
    close(tkn.ntk_trace(f, params, x), K.trace())
    close(tkn.kernel_matrix(tkn.kernel(f, params, x)), K)
    A = tkn.ntk(lambda params: f(params, x), params)
    assert tk.testing.adjoint_test(A.factor) < 1e-6
    close(A @ torch.eye(len(K)).double(), K)


def test_parameters_of_adapters_alone() -> None:
    f, params, x = network(gpt2)
    some = {name: p for name, p in params.items() if "c_attn" in name}
    model = gpt2().double()
    chosen = tkn.functional(model, trainable="*c_attn*")[1]
    assert list(chosen) == list(some)
    rest = {name: p for name, p in params.items() if name not in some}
    J = explicit(lambda p, x: f({**rest, **p}, x), some, x)
    found = tkn.ntk_trace(lambda p, x: f({**rest, **p}, x), some, x)
    torch.testing.assert_close(found, (J**2).sum())


def test_a_callback_of_the_trainer_follows_the_kernel() -> None:
    model, x = bert().eval(), torch.randint(0, 12, (6, 4))
    tracker = tk.Tracker(8, rng=0)
    follow = tkn.track_module(
        model, tracker, x, every=2, trainable="classifier.*", output=lambda y: y.logits
    )

    class Follow(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            follow(state.global_step)

    handler = transformers.trainer_callback.CallbackHandler([Follow()], model, None, None, None)
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    for state.global_step in range(5):
        handler.on_step_end(None, state, control)
    assert [point.step for point in tracker.points] == [0, 2, 4]
