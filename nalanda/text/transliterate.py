"""Rough romanization by rule, from the names that Unicode gives to letters: keys and comparison, not show.

    romanize("नमस्ते")   # "namaste"
    romanize("ஸ்ரீ லங்கா")   # "srii langkaa"

A Brahmic consonant carries an inherent `a`; a vowel sign takes its place and a virama removes it. No table
per script is needed: DEVANAGARI LETTER KA is `ka`, its name says so. Alphabets of the region (Ol Chiki,
Warang Citi, Arabic) give each letter its sound. What has no rule, Latin included, passes through. Information
is lost.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_CONSONANT, _VOWEL_SIGN, _VIRAMA, _NUKTA, _PLAIN = range(5)
_Rule = tuple[int, str]

# Sinhala's names describe the shape of the sign, not its sound.
_SINHALA_SIGNS = {
    0x0DCF: "aa", 0x0DD0: "ae", 0x0DD1: "aae", 0x0DD2: "i", 0x0DD3: "ii", 0x0DD4: "u", 0x0DD6: "uu",
    0x0DD8: "r", 0x0DD9: "e", 0x0DDA: "ee", 0x0DDB: "ai", 0x0DDC: "o", 0x0DDD: "oo", 0x0DDE: "au",
    0x0DDF: "l", 0x0DF2: "rr", 0x0DF3: "ll",
}  # fmt: skip
_SINHALA_ASPIRATES = {
    "ka": "kha", "ga": "gha", "ca": "cha", "ja": "jha", "tta": "ttha", "dda": "ddha", "ta": "tha",
    "da": "dha", "pa": "pha", "ba": "bha",
}  # fmt: skip
_SINHALA_PREFIXES = {
    "ALPAPRAANA": "",
    "MAHAAPRAANA": "h",
    "DANTAJA": "",
    "MUURDHAJA": "x",
    "TAALUJA": "y",
    "SANYAKA": "n",
}
_ARABIC = {
    "ALEF": "a", "AIN": "'", "HAMZA": "'", "WAW": "v", "YEH": "y", "TCHEH": "ch", "TCHEHEH": "chh",
    "HEH": "h", "KEHEH": "k", "BEEH": "b", "BEHEH": "bh", "TEHEH": "th", "TTEHEH": "tth", "DAHAL": "dh",
    "DYEH": "jj", "NYEH": "ny", "DDAHAL": "ddh", "PEHEH": "ph", "NGOEH": "ng", "GUEH": "gg",
    "RNOON": "nn", "TEH": "t", "ALEF MAKSURA": "aa",
}  # fmt: skip
_NUKTA_SOUNDS = {"k": "q", "j": "z", "ph": "f", "dd": "rr", "ddh": "rrh", "g": "gh"}
_SIGNS = {
    "ANUSVARA": "n", "CANDRABINDU": "n", "BINDI": "n", "TIPPI": "n", "ANUSVARAYA": "n", "VISARGA": "h",
    "VISARGAYA": "h", "AYTHAM": "h", "AVAGRAHA": "'", "DANDA": ".", "DOUBLE DANDA": ".", "OM": "om",
    "ADDAK": "",
}  # fmt: skip
_VIRAMAS = ("SIGN VIRAMA", "AL-LAKUNA", "APUN IYEK", "SIGN PULLI")
_BRAHMIC = (
    "DEVANAGARI",
    "BENGALI",
    "GURMUKHI",
    "GUJARATI",
    "ORIYA",
    "TAMIL",
    "TELUGU",
    "KANNADA",
    "MALAYALAM",
    "SINHALA",
)
_VOWEL = re.compile(r"(?:A|AA|AE|AAE|I|II|U|UU|E|EE|AI|O|OO|AU|OE|OOE|AW|UE|UUE)")
_MARKS = {"FATHA": "a", "KASRA": "i", "DAMMA": "u", "FATHATAN": "an", "KASRATAN": "in", "DAMMATAN": "un"}
_ARABIC_STOPS = {"FULL STOP": ".", "COMMA": ",", "SEMICOLON": ";", "QUESTION MARK": "?", "PERCENT SIGN": "%"}


def romanize(text: str) -> str:
    """`text` with Brahmic, Ol Chiki, Meetei Mayek, Warang Citi and Arabic letters as rough ASCII."""
    if text.isascii():
        return text
    pieces: list[str] = []
    inherent = False  # whether pieces[-1] is the `a` that the next sign may replace
    for character in text:
        kind, sound = _rule(character)
        if kind == _CONSONANT:
            pieces += (sound, "a")
            inherent = True
        elif kind == _NUKTA:
            if inherent:
                pieces[-2] = _NUKTA_SOUNDS.get(pieces[-2], pieces[-2])
        elif kind == _PLAIN:
            pieces.append(sound)
            inherent = False
        elif inherent:  # a vowel sign, or a virama, whose sound is empty
            pieces[-1] = sound
            inherent = False
        else:
            pieces.append(sound)
    return "".join(pieces)


@functools.lru_cache(maxsize=1 << 15)
def _rule(character: str) -> _Rule:
    """What `character` does to the romanization, read off its Unicode name."""
    if character in "\u200c\u200d":
        return _NUKTA, ""
    name = unicodedata.name(character, "")
    if unicodedata.category(character) == "Nd":
        return _PLAIN, str(unicodedata.decimal(character))
    script, _, rest = name.partition(" ")
    if script in _BRAHMIC:
        return _sinhala(character, rest) if script == "SINHALA" else _brahmic(character, rest)
    if name.startswith("MEETEI MAYEK "):
        return _meetei(name.removeprefix("MEETEI MAYEK "))
    if name.startswith(("OL CHIKI ", "WARANG CITI ")):
        return _alphabet(character, name)
    if script == "ARABIC":
        return _arabic(character, rest)
    return _PLAIN, character


def _brahmic(character: str, name: str) -> _Rule:
    """Devanagari to Malayalam: LETTER KA, VOWEL SIGN II, SIGN VIRAMA ..."""
    if name in _VIRAMAS:
        return _VIRAMA, ""
    if name == "SIGN NUKTA":
        return _NUKTA, ""
    if name.startswith("VOWEL SIGN "):
        return _VOWEL_SIGN, _vowel(name.removeprefix("VOWEL SIGN "))
    for prefix in ("SIGN ", "TIPPI", "ADDAK", "DANDA", "DOUBLE DANDA", "OM"):
        if name.startswith(prefix):
            return _PLAIN, _SIGNS.get(name.removeprefix("SIGN "), "")
    if name in _SIGNS:
        return _PLAIN, _SIGNS[name]
    if not name.startswith("LETTER "):
        return _PLAIN, character if unicodedata.category(character)[0] not in "LM" else ""
    letter = name.removeprefix("LETTER ")
    if letter.startswith("CHILLU "):
        return _PLAIN, letter.removeprefix("CHILLU ").lower()
    if letter in ("KHANDA TA", "TAMIL OM"):
        return _PLAIN, "t"
    if letter.startswith(("VOCALIC", "CANDRA", "SHORT")) or _VOWEL.fullmatch(letter):
        return _PLAIN, _vowel(letter)
    sound = letter.split()[-1].lower()
    sound = "zha" if sound == "llla" else sound  # as Tamil is romanized everywhere
    return (_CONSONANT, sound[:-1]) if sound.endswith("a") else (_PLAIN, sound)


def _vowel(name: str) -> str:
    return name.removeprefix("VOCALIC ").removeprefix("CANDRA ").removeprefix("SHORT ").split()[0].lower()


def _sinhala(character: str, name: str) -> _Rule:
    """LETTER MAHAAPRAANA KAYANNA is `kha`; LETTER AAYANNA is `aa`."""
    if name.startswith("SIGN AL-LAKUNA"):
        return _VIRAMA, ""
    if ord(character) in _SINHALA_SIGNS:
        return _VOWEL_SIGN, _SINHALA_SIGNS[ord(character)]
    if not name.startswith("LETTER "):
        return _PLAIN, _SIGNS.get(
            name.removeprefix("SIGN "), "" if unicodedata.category(character)[0] in "LM" else character
        )
    words = name.removeprefix("LETTER ").split()
    prefix = _SINHALA_PREFIXES.get(words[0], "") if len(words) > 1 else ""
    sound = words[-1].removesuffix("YANNA").lower()
    if _VOWEL.fullmatch(sound.upper()) or len(sound) < 2:
        return _PLAIN, sound
    if prefix == "h":
        sound = _SINHALA_ASPIRATES.get(sound, sound)
    elif prefix == "n":
        sound = "n" + sound
    elif prefix == "x" and sound in ("na", "la"):
        sound = sound[0] + sound
    elif prefix == "y" and sound in ("na", "sa"):
        sound = "nya" if sound == "na" else "sha"
    return _CONSONANT, sound.removesuffix("a")


def _meetei(name: str) -> _Rule:
    """LETTER KOK is `ka`, KOK LONSUM the final `k`, VOWEL SIGN INAP `i`."""
    if name == "APUN IYEK":
        return _VIRAMA, ""
    if name.startswith("VOWEL SIGN "):
        sign = name.removeprefix("VOWEL SIGN ")
        if sign == "NUNG":
            return _PLAIN, "ng"
        sound = sign.removesuffix("NAP").lower().lstrip("yscht")
        return _VOWEL_SIGN, {"a": "aa"}.get(sound, sound)
    if not name.startswith("LETTER "):
        return _PLAIN, {"CHEIKHEI": ".", "LUM IYEK": "", "HEAVY TONE": ""}.get(name, "")
    words = name.removeprefix("LETTER ").split()
    onset = re.match(r"[^AEIOU]*", words[0])
    consonant = onset.group().lower() if onset else ""
    if not consonant:
        return _PLAIN, words[0][0].lower()
    return (_PLAIN, consonant) if "LONSUM" in words else (_CONSONANT, consonant)


def _alphabet(character: str, name: str) -> _Rule:
    """Ol Chiki and Warang Citi, whose letters are named for their sound: LI is `i`, AT `t`, UNN `nn`."""
    if " LETTER " not in name:
        return _PLAIN, {"MUCAAD": ".", "DOUBLE MUCAAD": "."}.get(name.partition("PUNCTUATION ")[2], "")
    letter = name.split(" LETTER ")[1]
    if name.startswith("OL CHIKI") and letter[0] == "L" and set(letter[1:]) <= set("AEIOU"):
        vowel = letter[1:].lower()
        return _PLAIN, {"a": "o", "aa": "a", "o": "oo"}.get(vowel, vowel)
    tail = letter.lstrip("AEIOU")
    if not tail:
        return _PLAIN, letter.lower()
    if letter[0] in "AEIOU":
        return _PLAIN, tail.lower()
    return _PLAIN, (re.split(r"[AEIOU]", letter)[0] or character).lower()


def _arabic(character: str, name: str) -> _Rule:
    """ARABIC LETTER JEEM is `j`; the few whose name does not begin with their sound are in a table."""
    if not name.startswith("LETTER "):
        return _PLAIN, _MARKS.get(
            name, _ARABIC_STOPS.get(name, "" if unicodedata.category(character)[0] in "LM" else character)
        )
    words = [
        w
        for w in name.removeprefix("LETTER ").split(" WITH ")[0].split()
        if w not in ("FARSI", "HIGH", "SWASH")
    ]
    if name.endswith("YEH BARREE"):
        return _PLAIN, "e"
    if name == "LETTER ALEF WITH MADDA ABOVE":
        return _PLAIN, "aa"
    letter = words[0] if words else ""
    if letter in _ARABIC:
        return _PLAIN, _ARABIC[letter]
    return _PLAIN, re.split(r"[AEIOU]", letter)[0].lower()
