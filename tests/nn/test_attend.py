"""Every way of working attention out against one plain float64 reference: who sees whom by a rule in words, softmax
by exp and sum. All kinds of masks, soft-capping, sinks, grouped heads, gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from nalanda.nn import attend as attending
from nalanda.nn import mask as masks
from nalanda.nn.attend import attend, attention_map
from nalanda.nn.mask import AttentionMask, Backend, Places, cross_mask, self_masks

HEADS, DIM, SCALE, SOFTCAP = 4, 8, 0.3, 1.5
ROWS = 2
# Twice the largest differences measured over all scenes and four seeds: values up to 3, gradients up to 46.
#              fp32                          bf16 (against float64 on the rounded inputs)
# sdpa         8.1e-7, gradients 9.4e-6      2.0e-2, 1.4e-1
# manual       8.4e-7, 9.5e-6                2.1e-2, 1.4e-1
# flex         6.0e-7                        1.8e-2
FORWARD = {torch.float32: 1.7e-6, torch.bfloat16: 4.2e-2}
GRADIENT = {torch.float32: 2e-5, torch.bfloat16: 2.8e-1}
MAP = 5e-7  # 2.4e-7


@dataclasses.dataclass(frozen=True)
class Scene:
    """One kind of attention: `width` queries, the keys' last columns (or, `cross`, of a stream of their own)."""

    width: int = 7
    causal: bool = True
    window: int | None = None
    segments: tuple[tuple[int, ...], ...] | None = None  # of the keys
    prefix: tuple[tuple[int, ...], ...] | None = None
    keys: int = 7
    relative: Literal["shared", "rows"] | None = None
    cross: tuple[tuple[int, ...], ...] | None = None  # segments of the queries

    def positions(self) -> list[list[int]]:
        """Places inside their segment, counted one by one; padding has what it has in the cache: 0."""
        found = []
        for row in self.segments or ((1,) * self.keys,) * ROWS:
            seen: dict[int, int] = {}
            found.append([])
            for segment in row:
                found[-1].append(seen.get(segment, 0))
                seen[segment] = seen.get(segment, 0) + 1
        return found


PACKED = ((1, 1, 1, 2, 2, 2, 2), (1, 1, 1, 1, 1, 0, 0))
LEFT, RIGHT = ((0, 0, 1, 1, 1, 1, 1), (1,) * 7), ((1, 1, 1, 0, 0, 1, 1), (1,) * 7)
PREFIX = ((1, 1, 1, 0, 0, 0, 0), (1, 0, 0, 1, 1, 0, 0))
SCENES = {
    "causal": Scene(),
    "causal padded left": Scene(segments=((0, 0, 1, 1, 1, 1, 1), (1,) * 7)),
    "causal padded right": Scene(segments=((1, 1, 1, 1, 0, 0, 0), (1,) * 7)),
    "bidirectional": Scene(causal=False),
    "bidirectional padded": Scene(causal=False, segments=((1, 1, 1, 1, 0, 0, 0), (0, 1, 1, 1, 1, 1, 1))),
    "packed": Scene(segments=PACKED),
    "packed bidirectional": Scene(causal=False, segments=PACKED),
    "sliding": Scene(window=3),
    "sliding bidirectional": Scene(window=2, causal=False),
    "sliding packed": Scene(window=2, segments=PACKED),
    "window wider than the text": Scene(window=9),
    "prefix": Scene(prefix=PREFIX),
    "prefix packed": Scene(prefix=PREFIX, segments=PACKED),
    "prefix sliding": Scene(prefix=PREFIX, window=3),
    "relative": Scene(relative="shared"),
    "relative bidirectional packed": Scene(relative="shared", causal=False, segments=PACKED),
    "relative cached": Scene(relative="rows", width=2, segments=LEFT),
    "cross": Scene(causal=False, width=4, cross=((1, 1, 1, 1),) * 2),
    "cross, some without a source": Scene(
        causal=False, width=4, segments=PACKED, cross=((1, 2, 2, 3), (1, 1, 2, 2))
    ),
    "step": Scene(width=1),
    "step padded left": Scene(width=1, segments=LEFT),
    "step padded right": Scene(width=1, segments=RIGHT),
    "step sliding": Scene(width=1, window=3, segments=RIGHT),
    "cached columns": Scene(width=3),
    "cached columns padded left": Scene(width=3, segments=LEFT, window=4),
    "cached columns padded right": Scene(width=2, segments=RIGHT, window=3),
    "cached columns with a prefix": Scene(width=3, prefix=((0, 0, 0, 0, 1, 1, 0), (0, 0, 0, 0, 0, 1, 1))),
}


def may_see(scene: Scene, row: int, query: int, key: int) -> bool:
    """The rule, in words."""
    segments = scene.segments or ((1,) * scene.keys,) * ROWS
    if scene.cross is not None:
        return scene.cross[row][query] == segments[row][key]
    column, positions = scene.keys - scene.width + query, scene.positions()
    if segments[row][column] != segments[row][key]:
        return False
    if scene.causal and key > column and not (scene.prefix and scene.prefix[row][key]):
        return False
    return scene.window is None or abs(positions[row][column] - positions[row][key]) < scene.window


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scene: Scene,
    learned: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums and weights, float64."""
    allowed = torch.tensor(
        [
            [[may_see(scene, b, t, s) for s in range(scene.keys)] for t in range(scene.width)]
            for b in range(ROWS)
        ]
    )
    k, v = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (k, v))
    score = torch.einsum("bhtk,bhsk->bhts", q, k) * SCALE
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    if learned is not None:
        score = score + learned
    weight = score.exp() * allowed[:, None]
    total = weight.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.exp()[:, None, None]
    weight = weight / torch.where(total > 0, total, 1)
    return torch.einsum("bhts,bhsk->bhtk", weight, v), weight


def tensor(rows: tuple[tuple[int, ...], ...] | None, device: str) -> Tensor | None:
    return None if rows is None else torch.tensor(rows, device=device)


def build(scene: Scene, learned: Tensor | None, dtype: torch.dtype, device: str = "cpu") -> AttentionMask:
    """The mask as a stack makes it."""
    positions = torch.tensor(scene.positions(), device=device)
    segments, prefix = tensor(scene.segments, device), tensor(scene.prefix, device)
    key = Places(segments, positions, None if prefix is None else prefix.bool())
    if scene.cross is not None:
        query = tensor(scene.cross, device)
        return cross_mask(
            Places(None if segments is None else query, torch.arange(scene.width, device=device)[None]),
            key,
            dtype,
        )
    query = key
    if scene.width < scene.keys:
        query = Places(
            None if segments is None else segments[:, -scene.width :], positions[:, -scene.width :]
        )
    found = self_masks(query, key, scene.causal, {scene.window}, learned, dtype)
    return found[scene.window]


def inputs(scene: Scene, groups: int, with_sinks: bool, seed: int = 0) -> list[Tensor | None]:
    """q, k, v, learned bias, sinks in float64; sharp enough that masks, caps and sinks matter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bias_rows = {"shared": 1, "rows": ROWS, None: 0}[scene.relative]
    return [
        draw(ROWS, HEADS, scene.width, DIM) * 2,
        draw(ROWS, groups, scene.keys, DIM),
        draw(ROWS, groups, scene.keys, DIM),
        draw(bias_rows, HEADS, scene.width, scene.keys) if bias_rows else None,
        draw(HEADS) if with_sinks else None,
    ]


def cast(values: list[Tensor | None], dtype: torch.dtype, grad: bool) -> list[Tensor | None]:
    return [None if x is None else x.detach().to(dtype).requires_grad_(grad) for x in values]


def force(monkeypatch: pytest.MonkeyPatch, backend: Backend | Literal["strips"]) -> None:
    """`strips`: by hand, in strips of two queries."""
    if backend == "strips":
        monkeypatch.setattr(attending, "_STRIP", 2)
        backend = "manual"
    monkeypatch.setattr(masks, "choose_backend", lambda *_: backend)


def compare(
    scene: Scene, groups: int, softcap: float | None, sinks: bool, dtype: torch.dtype, grad: bool
) -> None:
    own = cast(inputs(scene, groups, sinks), dtype, grad)
    exact = cast(own, torch.float64, grad)
    expected, weight = reference(*exact[:3], scene, exact[3], softcap, exact[4])
    mask = build(scene, own[3], dtype)
    found = attend(*own[:3], mask, SCALE, softcap=softcap, sinks_H=own[4])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=FORWARD[dtype], rtol=0)
    seen = attention_map(own[0], own[1], mask, SCALE, softcap, own[4])
    torch.testing.assert_close(seen.double(), weight, atol=MAP, rtol=0)
    if grad:
        wanted = torch.autograd.grad(expected.square().sum(), [x for x in exact if x is not None])
        had = torch.autograd.grad(found.double().square().sum(), [x for x in own if x is not None])
        for one, two in zip(had, wanted, strict=True):
            torch.testing.assert_close(one.double(), two, atol=GRADIENT[dtype], rtol=0)


def test_strips_of_queries_leave_out_what_no_query_of_theirs_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "strips")
    sliding = build(Scene(window=2), None, torch.float32)
    for mask, lows in ((build(Scene(), None, torch.float32), [0, 0, 0, 0]), (sliding, [0, 1, 3, 5])):
        found = attending._strips(mask, 7)
        assert [(here.start, here.stop) for here, _, _ in found] == [(0, 2), (2, 4), (4, 6), (6, 7)]
        assert [(seen.start, seen.stop) for _, seen, _ in found] == list(zip(lows, [2, 4, 6, 7]))
    for scene in (Scene(causal=False), Scene(width=2), Scene(prefix=PREFIX)):
        assert len(attending._strips(build(scene, None, torch.float32), scene.width)) == 1


SCORINGS = [(4, None, False), (2, None, False), (1, SOFTCAP, False), (2, None, True), (2, SOFTCAP, True)]


@pytest.mark.parametrize("backend", ["sdpa", "manual", "strips"])
@pytest.mark.parametrize("name", SCENES)
def test_all_ways_are_the_reference(name: str, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, backend)
    for groups, softcap, sinks in SCORINGS:
        compare(SCENES[name], groups, softcap, sinks, torch.float32, grad=True)


# Flex on a CPU is slow, most of it set-up, and has no backward pass.
QUICK = ("packed", "prefix sliding", "relative bidirectional packed", "cross, some without a source")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SCENES]
)
def test_flex_is_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "flex")
    for groups, softcap, sinks in SCORINGS[-1:] if name in QUICK else SCORINGS:
        compare(SCENES[name], groups, softcap, sinks, torch.float32, grad=False)


@pytest.mark.parametrize("backend", ["sdpa", "manual", "strips"])
@pytest.mark.parametrize(
    "name", ["causal", "relative bidirectional packed", "prefix sliding", "step padded left"]
)
def test_bf16_is_the_reference_within_its_rounding(
    name: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, backend)
    for groups, softcap, sinks in SCORINGS:
        compare(SCENES[name], groups, softcap, sinks, torch.bfloat16, grad=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SCENES)
def test_flex_on_a_gpu_is_the_reference(name: str) -> None:
    """Long enough for several of flex's blocks; values and gradients, against the manual way in float64."""
    scene = SCENES[name]
    if scene.width < scene.keys or scene.cross is not None:
        pytest.skip("steps and short queries are not for flex")
    times, dim = 40, 32
    longer = dataclasses.replace(
        scene,
        width=scene.width * times,
        keys=scene.keys * times,
        window=None if scene.window is None else scene.window * times,
        **{
            key: None if rows is None else tuple(tuple(x for x in row for _ in range(times)) for row in rows)
            for key, rows in (("segments", scene.segments), ("prefix", scene.prefix))
        },
    )
    q, k, v, learned, sinks = inputs(longer, 2, True)
    q, k, v = (x.repeat_interleave(dim // DIM, dim=-1) / 2 for x in (q, k, v))

    def run(device: str, dtype: torch.dtype, backend: Backend) -> list[Tensor]:
        own = [None if x is None else x.to(device, dtype).requires_grad_() for x in (q, k, v, learned, sinks)]
        with pytest.MonkeyPatch.context() as patch:
            force(patch, backend)
            mask = build(longer, own[3], dtype, device)
        out = attend(*own[:3], mask, SCALE, softcap=SOFTCAP, sinks_H=own[4])
        return [out, *torch.autograd.grad(out.square().sum(), [x for x in own if x is not None])]

    for one, two in zip(run("cuda", torch.float32, "flex"), run("cpu", torch.float64, "manual"), strict=True):
        torch.testing.assert_close(one.cpu().double(), two, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", ["sdpa", "manual", "flex"])
def test_dropout_keeps_the_mean(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, backend)
    scene = SCENES["packed"]
    q, k, v, _, _ = cast(inputs(scene, 2, False), torch.float32, False)
    assert q is not None
    mask = build(scene, None, torch.float32)
    torch.manual_seed(0)
    drawn = [attend(q, k, v, mask, SCALE, dropout=0.25) for _ in range(400)]
    assert not torch.equal(drawn[0], drawn[1])
    plain = attend(q, k, v, masks.AttentionMask(mask.dense(q.dtype).bias), SCALE)
    error = (torch.stack(drawn).mean(0) - plain).abs().max()
    assert error < 0.4  # of 400 draws: 0.2 measured; without the scaling it would be 0.25 x values of 3


def test_softmax_spelt_out_for_compiling_is_the_safe_one() -> None:
    """Rows that see nothing give zeros and no gradient; the rest agree to rounding."""
    found = []
    for softmax in (attending._spelt_softmax, lambda x: torch._safe_softmax(x, -1)):
        torch.manual_seed(0)
        score = torch.randn(3, 5, 7, dtype=torch.float64) * 4
        score[0, 1], score[1, 2, :4] = -torch.inf, -torch.inf
        score.requires_grad_()
        out = softmax(score)
        (out * torch.randn(3, 5, 7, dtype=torch.float64)).sum().backward()
        found.append((out.detach(), score.grad))
    assert torch.equal(found[0][0][0, 1], torch.zeros(7, dtype=torch.float64))
    for mine, safe in zip(*found, strict=True):
        torch.testing.assert_close(mine, safe, rtol=1e-14, atol=1e-15)
