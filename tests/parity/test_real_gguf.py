"""Two real models out of GGUF files: what they find likely and what they write, as transformers reads the same file.

Rounding alone moves these log-probabilities by 2e-4 between fp32 and fp64 (Gemma's stream is large), so ours equal
theirs only where the operations come in the same order: the norms and rotary angles do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.generate.decode import generate
from nalanda.generate.options import DecodeConfig
from nalanda.stages.use import Opened, open_model

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXTS = [
    "The capital of India is New Delhi.", "Once upon a time there was a king", "def fibonacci(n):\n    ",
    "Water boils at 100 degrees", "भारत की राजधानी नई दिल्ली है।", "एक समय की बात है", "मैं घर जा रहा हूँ",
    "सूरज पूर्व में उगता है", "இந்தியாவின் தலைநகரம் புது தில்லி.", "ஒரு காலத்தில் ஒரு ராஜா இருந்தார்",
    "நான் வீட்டிற்கு செல்கிறேன்", "ভারতের রাজধানী নতুন দিল্লি।", "এক সময় এক রাজা ছিল", "আমি বাড়ি যাচ্ছি",
    "بھارت کا دارالحکومت نئی دہلی ہے۔", "ایک دفعہ کا ذکر ہے", "میں گھر جا رہا ہوں",
    "La capitale de l'Inde est New Delhi.", "Il était une fois un roi", "Je vais à la maison",
]  # fmt: skip


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Opened]:
    """Their model and ours."""
    folder = os.environ.get("NALANDA_MODELS", "")
    path = Path(folder) / f"{request.param}.gguf"
    if not folder or not path.is_file():
        pytest.skip(f"NALANDA_MODELS names no folder with {path.name}; scripts/models makes one")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=path.name, dtype=torch.float32
    )
    return theirs.eval(), open_model(path)


@torch.no_grad()
def test_next_token_log_probabilities(pair: tuple[Any, Opened]) -> None:
    theirs, ours = pair
    for text in TEXTS:
        ids = torch.tensor([ours.prompting.prompt(text)])
        expected = theirs(ids).logits.log_softmax(-1)
        found = ours.model.logits(ours.model({"ids": ids}).hidden_BTD).log_softmax(-1)
        assert (found - expected).abs().max() <= 1e-4, text


@torch.no_grad()
def test_64_greedy_tokens(pair: tuple[Any, Opened]) -> None:
    theirs, ours = pair
    prompts = [ours.prompting.prompt(text) for text in TEXTS[::4]]
    config = DecodeConfig(kind="greedy", max_length=64, min_length=64)
    for prompt, found in zip(prompts, generate(ours.model, prompts, ours.prompting, config)):
        written = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=64, min_new_tokens=64
        )[0, len(prompt) :]
        assert found.ids == written.tolist()
