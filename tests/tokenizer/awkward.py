"""Texts that break tokenizers, written down or drawn at random with a fixed seed."""

from __future__ import annotations

import random

WRITTEN = [
    *(
        "",
        " ",
        "   ",
        " a",
        "a ",
        "  a  b  ",
        "a\tb",
        "\t",
        "\t\t\t",
        "\n",
        "a\nb\n\n\nc",
        "a\r\nb\r\n",
        "\r",
        "\n\n\n",
    ),
    *("a\0b", "\0", "\x01\x02\x7f\x80", "\ufeffabc", "\ufeff", "\ufeff a", "\u200b", " \u200b a", "\u2060"),
    *("a\u200db", "a\u200cb", "\u200d", "क्\u200dष", "می\u200cخواهم", "\u00adsoft\u00adhy"),
    *("\u0301", "\u0301a", "a\u0301\u0302\u0303", "\u093c\u093e", "a\u0300\u0316", "a\u0316\u0300", "ाााााा"),
    *("क़", "क\u093c", "ড়", "\u09a1\u09bc", "ऩ", "न\u093c", "e\u0301 é", "\u1100\u1161\u11a8", "각"),
    *("கெ\u0bbe", "\u0bc6\u0bbe", "\u0c46\u0c56", "\u0cc6\u0cc2\u0cd5", "\u0d46\u0d3e", "\u0dd9\u0dcf\u0dca"),
    *("👩🏽\u200d💻👨\u200d👩\u200d👧\u200d👦", "🇮🇳🇮", "1️⃣", "❤️", "\ufe0f", "a\ufe0f", "\U000e0100"),
    *("العربية\u200e النص\u064b\u0651", "اردو میں", "ﷺ", "ﻻ", "שָׁלוֹם", "\u202eabc\u202c"),
    "abc हिंदी தமிழ் العربية 中文 日本語 한국어",
    "0123456789 ٠١٢٣ ०१२३४ ௧௨௩ ൧൨ ߁߂ ①②③ ⅷ ½ ²³ 𝟘𝟙 1234567",
    *("x" * 300, "क्षत्रिय" * 200, "\u0378\u0379", "\U0001ffff", "\U0010fffd\ue000", "\uffff", "\U0010ffff"),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<pad> a <mask>",
        "a<s>b</s>",
        "<0x0A>",
        "<0x41>a",
        "<extra_id_0>",
        "<bos>",
        "<bos>a",
    ),
    *(
        "<|endoftext|>",
        "<|im_start|>user",
        "[CLS] [SEP] [MASK]",
        "[UNK]",
        "__hi__ a",
        "hin_Deva hello",
        ">>hin<< hi",
    ),
    *(
        "<2hin_Deva> x",
        "madeupword0000",
        "<unused1>",
        "<start_of_turn>",
        "<table>",
        "</h1>",
        "<sep>x",
        "x<sep>",
        "[X]<s>[X]",
    ),
    *("▁", "▁▁a▁", "a▁b", "a ▁", "▁ a", " ▁", "ＡＢＣ　１２３", "ｶﾞｷﾞ", "ﬁ ﬂ ﬀ ﬃ", "Ⅳ ㎏ ℃ ™", "İıſß ΑΣ ΣΑΣ"),
    *(
        "\u00a0a\u00a0",
        "a\u2003b\u3000c\u2028d\u2029e\u0085f",
        "...",
        "---------",
        "!!!!!!!!!!!!",
        "hahahahahahahaha",
    ),
    *("    indented\n        more", "=====\n=====", "don't we'll I'M it'S ſ'ſ 'ſ a'Ll", "ครับๆๆๆ"),
]
_UNITS = ("a", "ab", "क", "ab ", "-", "aab", "0", "▁", " ", "\n", "the", "ने")


def texts(drawn: int = 300, long: int = 100_000) -> list[str]:
    """The written texts, repetitions, `drawn` random mixtures of their characters and of all of Unicode, and some of
    `long` characters."""
    source = random.Random(0)
    pool = [character for text in WRITTEN for character in text] + [" "] * 60 + list("etaoin") * 10
    found = [*WRITTEN]
    found += [front + unit * times for unit in _UNITS for times in (2, 3, 5, 11, 33) for front in ("", "x")]
    found += ["".join(source.choices(pool, k=source.randint(1, 30))) for _ in range(drawn)]
    limits = (0x250, 0x3000, 0x10000, 0x110000)
    for _ in range(drawn // 2):
        codes = [source.randrange(source.choice(limits)) for _ in range(source.randint(1, 12))]
        found.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
    if long:
        found += ["".join(source.choices(pool, k=long)), "a" * long, ("कि " * long)[:long]]
    return found
