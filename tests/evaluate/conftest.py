"""A run folder as the quickstart leaves it, its numbers made up and its names real, for the report's tests."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nalanda.base import io
from nalanda.config import dump_yaml
from nalanda.evaluate.rows import Translation
from nalanda.evaluate.scoring import Settings
from nalanda.evaluate.translation import evaluate_translations

CODES = ("ben_Beng", "hin_Deva", "kan_Knda", "mar_Deva", "ory_Orya", "pan_Guru", "tam_Taml")
# English, then the seven languages in the order of CODES; one block for each name.
_NAMES = """\
Sri Lanka
শ্রীলঙ্কা
श्रीलंका
ಶ್ರೀಲಂಕಾ
श्रीलंका
ଶ୍ରୀଲଙ୍କା
ਸ਼੍ਰੀਲੰਕਾ
இலங்கை

Nepal
নেপাল
नेपाल
ನೇಪಾಳ
नेपाळ
ନେପାଳ
ਨੇਪਾਲ
நேபாளம்

Bangladesh
বাংলাদেশ
बांग्लादेश
ಬಾಂಗ್ಲಾದೇಶ
बांगलादेश
ବାଂଲାଦେଶ
ਬੰਗਲਾਦੇਸ਼
பங்களாதேஷ்

Bhutan
ভুটান
भूटान
ಭೂತಾನ್
भूतान
ଭୁଟାନ
ਭੂਟਾਨ
பூடான்

Maldives
মালদ্বীপ
मालदीव
ಮಾಲ್ಡೀವ್ಸ್
मालदीव
ମାଳଦୀପ
ਮਾਲਦੀਵ
மாலத்தீவுகள்

Indian Rupee
ভারতীয় রুপি
भारतीय रुपया
ಭಾರತೀಯ ರೂಪಾಯಿ
भारतीय रुपया
ଭାରତୀୟ ଟଙ୍କା
ਭਾਰਤੀ ਰੁਪਇਆ
இந்திய ரூபாய்

Old Tamil language
প্রাচীন তামিল ভাষা
पुरानी तमिल भाषा
ಹಳೆಯ ತಮಿಳು ಭಾಷೆ
जुनी तमिळ भाषा
ପୁରୁଣା ତାମିଲ ଭାଷା
ਪੁਰਾਣੀ ਤਮਿਲ ਭਾਸ਼ਾ
பழைய தமிழ் மொழி

Please enter a valid email address.
একটি বৈধ ইমেইল ঠিকানা লিখুন।
कृपया एक मान्य ईमेल पता दर्ज करें।
ದಯವಿಟ್ಟು ಸರಿಯಾದ ಇಮೇಲ್ ವಿಳಾಸವನ್ನು ನಮೂದಿಸಿ.
कृपया वैध ईमेल पत्ता भरा.
ଦୟାକରି ଏକ ବୈଧ ଇମେଲ ଠିକଣା ଦିଅନ୍ତୁ।
ਕਿਰਪਾ ਕਰਕੇ ਇੱਕ ਵੈਧ ਈਮੇਲ ਪਤਾ ਦਰਜ ਕਰੋ।
சரியான மின்னஞ்சல் முகவரியை உள்ளிடவும்."""
NAMES = tuple(tuple(block.split("\n")) for block in _NAMES.split("\n\n"))
ENVIRONMENT = {
    "nalanda": "0.1.0",
    "commit": "062aeb1c2d3e",
    "python": "3.11.9",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "cores": 2,
    "threads": 2,
    "instruction_set": "AVX512",
    "cuda": [],
    "packages": {"torch": "2.13.0", "numpy": "2.1.1", "tokenizers": "0.21.0", "sacrebleu": "2.5.1"},
    "command": ["nalanda", "run", "recipes/quickstart.yaml"],
}
SETTINGS = Settings(resamples=200)


def _damaged(text: str, rate: float, rng: random.Random) -> str:
    letters = [rng.choice(text) if rng.random() < rate else c for c in text if rng.random() > rate * 0.3]
    return "".join(letters).strip()


def _rows(error: float, seed: str, count: int) -> list[Translation]:
    rows = []
    for i in range(count):
        pick = random.Random(i)
        names = pick.choice(NAMES)
        language = pick.choices(range(7), weights=(1, 6, 3, 3, 2, 3, 6))[0]
        noise = random.Random(f"{seed}{i}")
        rate = 0.0 if noise.random() > error * 1.4 else error * noise.random()
        reference = names[language + 1]
        rows.append(
            Translation(
                f"names:{i}", names[0], reference, _damaged(reference, rate, noise), CODES[language],
                "django" if "email" in names[0] else ("babel" if i % 5 == 0 else "pycountry"),
                1.1 * len(reference) * (0.4 + error), len(reference),
            )
        )  # fmt: skip
    return rows


def _stage(
    folder: Path, config: dict[str, Any], result: dict[str, Any], seconds: float, memory: float
) -> None:
    folder.mkdir(parents=True)
    io.write_text(folder / "config.yaml", dump_yaml(config))
    io.write_json(folder / "environment.json", ENVIRONMENT)
    io.write_json(folder / "inputs.json", {"fingerprint": "0" * 16, "format": 1, "inputs": {}})
    stamp = {"fingerprint": io.fingerprint(config), "format": 1, "seconds": seconds}
    io.write_json(folder / "result.json", {**stamp, "peak_memory_bytes": int(memory * 2**20), **result})


def _metrics(folder: Path, seconds: float, steps: int, low: float, dev: bool, speed: float) -> None:
    rng = random.Random(folder.name)
    lines = []
    for step in range(10, steps + 1, 10):
        part = step / steps
        loss = low + (6.9 - low) * math.exp(-speed * part) + rng.gauss(0, 0.06)
        time = {"seconds": round(seconds * part, 2), "lr": 1e-3 * (1 - part), "tokens_per_second": 10300}
        lines.append({"step": step, "loss": loss + 0.2, "nll": loss, **time})
        if step % (steps // 8) < 10 and step > 10:
            dev_row: dict[str, Any] = {"step": step, "dev_loss": loss + 0.3, "dev_nll": loss + 0.15}
            if dev:
                dev_row["dev_chrf"] = 62 * (1 - math.exp(-speed * part * 0.6))
            lines.append(dev_row)
    io.write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _data_stages(folder: Path) -> None:
    corpus, tokens = {"verb": "corpus", "seed": 0}, {"verb": "tokenizer", "vocabulary": 3000}
    _stage(folder / "corpus", corpus, {}, 38.2, 412)
    rng = random.Random(2)
    sources: dict[str, Any] = {}
    for source, scale in (("pycountry", 9000), ("babel", 2200), ("django", 480)):
        for code in CODES:
            counts = {
                "kept": rng.randint(scale // 2, scale), "duplicate": rng.randint(0, scale // 9), "quarantined": 0,
                "filtered": {"untranslated": rng.randint(0, scale // 2), "leaks into test": rng.randint(0, 40)},
            }  # fmt: skip
            read = counts["kept"] + counts["duplicate"] + sum(counts["filtered"].values())
            sources.setdefault(source, {})[code] = {"read": read, **counts}
    io.write_json(folder / "corpus" / "ledger.json", {"sources": sources})
    fits = {
        code: {
            "texts": rng.randint(900, 9000), "fertility": rng.uniform(2.1, 3.4), "round_trip_failures": 0,
            "tokens_per_character": rng.uniform(0.38, 0.52), "byte_share": rng.uniform(0, 0.004),
        }
        for code in ("eng_Latn", *CODES, "all")
    }  # fmt: skip
    _stage(folder / "tokenizer", tokens, {"vocabulary": 3000, "fit": fits}, 6.4, 350)


def _train_stages(folder: Path) -> None:
    result = {"parameters": 6_130_432}
    model = {"model": {"kind": "encoder_decoder", "layers": 3, "hidden": 192}}
    _stage(folder / "pretrain", {"verb": "train", "seed": 1, **model}, result, 182.0, 1480)
    tuned = {"verb": "train", "seed": 1, "model": str(folder / "pretrain")}
    _stage(folder / "finetune", tuned, result, 421.0, 1516)
    _stage(folder / "random", {"verb": "train", "seed": 1, **model}, result, 603.5, 1502)
    _metrics(folder / "pretrain", 180, 1400, 2.6, False, 5)
    _metrics(folder / "finetune", 418, 3000, 0.9, True, 6)
    _metrics(folder / "random", 600, 4300, 1.05, True, 4.4)


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, bool], Path]:
    return {}


@pytest.fixture
def make_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, _built: dict[tuple[int, bool], Path]
) -> Callable[..., Path]:
    """Gives a fresh copy of a run folder; `same` gives both arms answers of one quality."""

    def make(rows: int = 200, same: bool = False) -> Path:
        if (rows, same) not in _built:
            _built[rows, same] = build_run(tmp_path_factory.mktemp("built") / "quickstart", rows, same)
        copy = tmp_path / "quickstart"
        shutil.copytree(_built[rows, same], copy)
        tuned = copy / "finetune" / "config.yaml"
        text = tuned.read_text(encoding="utf-8")
        tuned.write_text(text.replace(str(_built[rows, same]), str(copy)), encoding="utf-8")
        return copy

    return make


def build_run(folder: Path, rows: int = 200, same: bool = False) -> Path:
    """The whole pipeline's folder at `folder`."""
    _data_stages(folder)
    _train_stages(folder)
    _stage(folder / "scores", {"verb": "evaluate"}, {}, 64.8, 1210)
    systems: tuple[tuple[str, str, str, float], ...] = (
        ("pre-trained", "main", "finetune", 0.45),
        ("from random", "control", "random", 0.45 if same else 0.62),
        ("copy", "baseline", "", 0.0),
        ("nearest neighbour", "baseline", "", 0.95),
        ("word by word", "baseline", "", 1.1),
    )
    for name, role, model, error in systems:
        found = _rows(error, name, rows)
        if name == "copy":
            found = [
                Translation(r.id, r.source, r.reference, r.source, r.target_language, r.origin) for r in found
            ]
        place = folder / "scores" / name.replace(" ", "-")
        evaluate_translations(found, place, name=name, role=role, model=model, settings=SETTINGS)  # type: ignore[arg-type]
    stages = ("corpus", "tokenizer", "pretrain", "finetune", "random", "scores")
    about = "English to seven Indian languages, from package catalogs"
    plan = {"name": "quickstart", "about": about, "stages": {name: {} for name in stages}}
    io.write_json(folder / "pipeline.json", plan)
    return folder
