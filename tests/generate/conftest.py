"""Small random models of each kind, sharp enough that no two tokens are nearly tied, and a tokenizer for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from nalanda.nn.model import Model
from nalanda.nn.rotary import RotarySpec
from nalanda.nn.spec import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    NormSpec,
    PositionSpec,
    Spec,
    TokensHeadSpec,
)

VOCABULARY = 23


class Letters:
    """Ids 0-3 are pad, bos, eos and a tag, the others letters; the model has one id more than the tokenizer."""

    vocabulary, pad, bos, eos, special_ids = VOCABULARY - 1, 0, 1, 2, frozenset({0, 1, 2, 3})
    ends = (2,)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + i - 4) for i in ids if i > 3)


def block(cross: bool, **changes: object) -> BlockSpec:
    options = {
        "heads": 2,
        "kv_heads": None,
        "rotary": None,
        "window": None,
        "place": "pre",
        "norm": "layer",
        **changes,
    }
    own = {key: options[key] for key in ("heads", "kv_heads", "rotary", "window")}
    return BlockSpec(
        attention=AttentionSpec(**own),  # type: ignore[arg-type]
        cross=AttentionSpec(heads=2) if cross else None,
        feedforward=FeedForwardSpec(inner=32),
        norm=NormSpec(kind=options["norm"]),  # type: ignore[arg-type]
        norm_place=options["place"],  # type: ignore[arg-type]
    )


def stacks() -> dict[str, dict[str, object]]:
    """What differs between the models, by name."""
    learned = PositionSpec(kind="learned", max_length=24)
    relative, sinusoidal = PositionSpec(kind="relative"), PositionSpec(kind="sinusoidal", max_length=64)
    turned = {"rotary": RotarySpec(), "norm": "rms"}
    return {
        "seq2seq rotary": {
            "encoder": (block(False, **turned),) * 2,
            "decoder": (block(True, **turned),) * 2,
        },
        "seq2seq sinusoidal post": {
            "encoder": (block(False, place="post"),),
            "decoder": (block(True, place="post"),) * 2,
            "encoder_position": sinusoidal,
            "decoder_position": sinusoidal,
        },
        "seq2seq relative": {
            "encoder": (block(False),),
            "decoder": (block(True),),
            "encoder_position": relative,
            "decoder_position": relative,
        },
        "decoder learned": {"decoder": (block(False),) * 2, "decoder_position": learned},
        "decoder rotary grouped window": {"decoder": (block(False, kv_heads=1, window=5, **turned),) * 2},
        "decoder relative": {"decoder": (block(False),) * 2, "decoder_position": relative},
    }


def build(name: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    spec = Spec(vocabulary=VOCABULARY, hidden=16, init_std=0.35, **stacks()[name])  # type: ignore[arg-type]
    model = Model(spec, {"tokens": TokensHeadSpec(bias=True)}).eval()
    with torch.no_grad():
        model.heads["tokens"].output.bias[Letters.eos] += 0.0 if "post" in name else 1.5  # type: ignore[union-attr, index]
    return model


@pytest.fixture(params=list(stacks()))
def model(request: pytest.FixtureRequest) -> Model:
    return build(request.param)


@pytest.fixture
def make_model() -> Callable[..., Model]:
    return build


@pytest.fixture
def tokenizer() -> Letters:
    return Letters()


@pytest.fixture
def prompts() -> list[list[int]]:
    """Of lengths 1 to 9, in no order, one of them twice."""
    generator = torch.Generator().manual_seed(3)
    lengths = [4, 9, 1, 6, 6, 2, 7]
    rows = [torch.randint(4, VOCABULARY - 1, (n,), generator=generator).tolist() for n in lengths]
    return [*rows, rows[1]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of these sizes gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
