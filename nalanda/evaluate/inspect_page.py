"""The page of `nalanda inspect`: one HTML file with its style, script and numbers inside; nothing is fetched.

    write_text(path, page(inspection, title="runs/causal", facts={"layers": "4"}, text="Sri Lanka"))

Numbers travel small. An attention weight w is one byte, round(255 sqrt(w)): faint weights keep their difference, the
largest error is 0.4 percent points. Probabilities of the logit lens are 16 bits. `tables` says how they are laid out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from nalanda.evaluate.html import Markup, document, element
from nalanda.evaluate.inspection import Attention, Inspection, Predictions, Stream
from nalanda.evaluate.token_labels import right_to_left, spelled

ATTENTIONS = {
    "encoder.attention": ("encoder", "each token looks at all tokens of the text"),
    "decoder.attention": ("decoder", "each token looks at itself and the tokens before it"),
    "decoder.cross_attention": ("decoder to encoder", "each token written looks at the tokens of the source"),
}
"""Each kind of attention: its name on the page, and who looks at whom."""

_HOW = {
    "tokens": "Choose a token: the others are shaded by how much it looks at them, in the layer and head above. "
    "Below, in a short text, lines lead from each token on the left to those it looks at.",
    "next": "The likeliest tokens to come after the chosen one; the one that really follows is marked.",
    "read": "What the output head says at the chosen place; hide the token, and the model has to guess it. "
    "Attention and stream are those of the whole text, with nothing hidden.",
    "grid": "All layers (rows) and heads (columns), each a small map of who looks at whom. Choose one to enlarge it.",
    "matrix": "A row is the token that looks, a column the token looked at; each row adds up to 1, less "
    "what a sink takes in models that have them. Shade is the square root of the weight: faint ones can be seen.",
    "lens": "The stream after each layer, read as if the model ended there: the likeliest token, shaded by its "
    "probability and underlined where it is the right one. The last row is what the model really says.",
    "similar": "The stream after each layer: the other token of this text whose stream points most nearly the same "
    "way, shaded by the cosine of the angle.",
}


def page(inspection: Inspection, title: str, facts: Mapping[str, str], text: str) -> str:
    """The whole page as text. `facts` are shown beside the title, `text` is what was read."""
    values = tables(inspection)
    said = "next" if any(found.kind == "next" for found in inspection.predictions) else "read"
    streams = {stream.kind for stream in inspection.streams}
    body = element(
        "main",
        element("h1", title),
        element("p", ", ".join(f"{name} {value}" for name, value in facts.items()), class_="subtitle"),
        element("p", element("bdi", text), class_="lead"),
        [element("p", note, class_="notice") for note in inspection.notes],
        element("noscript", element("p", "This page draws itself with a script inside it; allow it to run.")),
        element("div", id="controls", role="group", aria_label="What is shown"),
        element(
            "div",
            _section("tokens", "Where a token looks", (_HOW["tokens"], None)),
            _section("predictions", "What the model says", (_HOW[said], None)) if inspection.predictions else None,
            class_="pair wide-left" if inspection.predictions else None,
        ),
        element(
            "div",
            _section("grid", "All layers and heads", (_HOW["grid"], None)),
            _section("matrix", "One head, whole", (_HOW["matrix"], None)),
            class_="pair",
        ),
        _section("stream", "The stream, layer by layer", *((_HOW[kind], kind) for kind in sorted(streams))),
    )  # fmt: skip
    script = [
        element("script", Markup(embed(values)), type="application/json", id="data"),
        element("script", Markup(_file("inspect.js"))),
    ]
    return document(f"{title}: seen inside", _file("report.css") + _file("inspect.css"), [body, "\n", script])


def _section(name: str, title: str, *how: tuple[str, str | None]) -> Markup:
    """`how` are sentences on how to read the view, each with the kind of content it is about, if not any."""
    return element(
        "section",
        element("h2", title),
        [element("p", sentence, class_="note how", data_kind=kind) for sentence, kind in how],
        element("div", id=name),
        element("p", id=f"{name}-says", class_="says", aria_live="polite"),
        element("div", id="lines") if name == "tokens" else None,
        class_=f"view view-{name}",
    )


def _file(name: str) -> str:
    return resources.files("nalanda.evaluate").joinpath(name).read_text(encoding="utf-8")


def embed(values: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>`, `&` or line separator is left as it is."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def tables(inspection: Inspection) -> dict[str, Any]:
    """What the script reads. Tokens are numbers into `vocabulary`; arrays are base64, little-endian, last axis last.

    attentions[i].data   uint8, for each layer H x T x S
    streams[i].ids       uint32 R x T x K: into `vocabulary` (lens), or places of the same side (similar)
    streams[i].values    uint16 R x T x K: probability x 65535, or (cosine + 1) / 2 x 65535
    streams[i].truth     uint16 R x T: probability of the true token; streams[i].norms: float32 R x T
    predictions[i]       lists, T x K; truth -1 where none is known
    """
    index = {number: place for place, number in enumerate(inspection.labels)}
    return {
        "vocabulary": [
            [number, item.name, item.text, item.kind, int(item.word)]
            for number, item in inspection.labels.items()
        ],
        "sides": {name: _side(inspection, name, ids, index) for name, ids in inspection.sides.items()},
        "attentions": [_attention(found) for found in inspection.attentions],
        "streams": [_stream(stream, index) for stream in inspection.streams],
        "predictions": [_predictions(found, index) for found in inspection.predictions],
    }


def _side(inspection: Inspection, name: str, ids: Sequence[int], index: dict[int, int]) -> dict[str, Any]:
    labels = [inspection.labels[number] for number in ids]
    letters = "".join(item.text for item in labels if item.kind == "text")
    return {
        "tokens": [index[number] for number in ids],
        "spelled": spelled(labels),
        "rtl": right_to_left(letters),
        "generated": inspection.generated if name == "decoder" else 0,
    }


def _attention(found: Attention) -> dict[str, Any]:
    title, how = ATTENTIONS[found.name]
    packed = [quantize(weights_HTS).tobytes() for weights_HTS in found.maps]
    return {
        "name": title,
        "how": how,
        "query": found.query,
        "key": found.key,
        "layers": list(found.layers),
        "heads": [len(weights_HTS) for weights_HTS in found.maps],
        "data": base64.b64encode(b"".join(packed)).decode("ascii"),
    }


def quantize(weights: np.ndarray) -> np.ndarray:
    """Weights in [0, 1] as bytes, round(255 sqrt(w)); read back as (byte / 255) squared, off by at most 0.004."""
    return np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)


def _stream(stream: Stream, index: dict[int, int]) -> dict[str, Any]:
    lens = stream.kind == "lens"
    ids = np.vectorize(index.__getitem__, otypes=[np.int64])(stream.ids_RTK) if lens else stream.ids_RTK
    values = stream.values_RTK if lens else (stream.values_RTK + 1) / 2
    truth = None if stream.truth_RT is None else _shares(np.nan_to_num(stream.truth_RT))
    return {
        "side": stream.side,
        "kind": stream.kind,
        "why": stream.why,
        "rows": list(stream.rows),
        "count": int(stream.ids_RTK.shape[-1]),
        "ids": base64.b64encode(ids.astype("<u4").tobytes()).decode("ascii"),
        "values": _shares(values),
        "truth": truth,
        "norms": base64.b64encode(stream.norms_RT.astype("<f4").tobytes()).decode("ascii"),
    }


def _shares(values: np.ndarray) -> str:
    packed = np.rint(65535 * np.clip(values, 0, 1)).astype("<u2")
    return base64.b64encode(packed.tobytes()).decode("ascii")


def _predictions(found: Predictions, index: dict[int, int]) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "ids": [[index[int(number)] for number in row] for row in found.ids_TK],
        "values": [[float(f"{value:.6g}") for value in row] for row in found.values_TK],
        "truth": [-1 if number is None else index[number] for number in found.truth],
        "truth_value": [float(f"{value:.6g}") for value in np.nan_to_num(found.truth_value)],
        "truth_rank": [int(rank) for rank in found.truth_rank],
    }
