"""Memory of common cards, for planning on a device that is not here.

Totals are what the driver reports for the card (`nvidia-smi`, `nvmlDeviceGetMemoryInfo`), which is less than the number
in its name where error correction or the firmware keeps a part. Figures from the cards' data sheets and from public
`nvidia-smi` listings; none was read off a card by this project.
"""

from __future__ import annotations

import re

from ..core.errors import ArgumentError

MIB = 1 << 20
CONTEXT_BYTES = 512 * MIB
"""What a process's CUDA context takes before the first tensor: 0.3 to 0.6 GiB by card and driver; assumed here."""

CARDS_MIB = {
    "B200 180GB": 183_359,
    "H200 141GB": 143_771,
    "H100 80GB": 81_559,
    "H100 NVL 94GB": 95_830,
    "GH200 96GB": 97_871,
    "A100 80GB": 81_920,
    "A100 40GB": 40_960,
    "A40 48GB": 46_068,
    "A30 24GB": 24_576,
    "A10 24GB": 23_028,
    "A10G 24GB": 23_028,
    "L40S 48GB": 46_068,
    "L40 48GB": 46_068,
    "L4 24GB": 23_034,
    "V100 32GB": 32_768,
    "V100 16GB": 16_384,
    "P100 16GB": 16_384,
    "T4 16GB": 15_360,
    "RTX A6000 48GB": 49_140,
    "RTX A5000 24GB": 24_564,
    "RTX 6000 Ada 48GB": 49_140,
    "RTX 5090 32GB": 32_607,
    "RTX 5080 16GB": 16_303,
    "RTX 4090 24GB": 24_564,
    "RTX 4080 16GB": 16_376,
    "RTX 4070 12GB": 12_282,
    "RTX 4060 Ti 16GB": 16_380,
    "RTX 4060 8GB": 8_188,
    "RTX 3090 24GB": 24_576,
    "RTX 3080 10GB": 10_240,
    "RTX 3060 12GB": 12_288,
}


def card_bytes(name: str) -> tuple[str, int]:
    """Return the full name and the total memory of a card.

    Raises:
        ArgumentError: No card is called so, or several are; the message lists them.

    Example:
        >>> card_bytes("h100 80gb")
        ('H100 80GB', 85520809984)
        >>> card_bytes("RTX4090")[0]
        'RTX 4090 24GB'
    """
    words = _words(name)
    found = [card for card in CARDS_MIB if words and words <= _words(card)]
    if not found:  # As `RTX4090`, written in one.
        found = [card for card in CARDS_MIB if (short := _in_one(name)) and _in_one(card).startswith(short)]
    exact = [card for card in found if _words(card) == words]
    if len(exact or found) == 1:
        card = (exact or found)[0]
        return card, CARDS_MIB[card] * MIB
    said = f"could be {' or '.join(found)}" if found else f"is not in the table of cards ({', '.join(CARDS_MIB)})"
    raise ArgumentError(f"gpu={name!r} {said}. Name one of them, or give its memory with --memory 24GiB.")


_MAKERS = ("nvidia", "geforce", "tesla")
_FORMS = ("pcie", "sxm", "sxm4", "sxm5", "hbm3", "hbm3e")


def _words(name: str) -> set[str]:
    name = re.sub(r"(\d)\s*(gib|gb|g)\b", r"\1gb", name.lower())
    return set(re.findall(r"[a-z0-9]+", name)) - {*_MAKERS, *_FORMS}


def _in_one(name: str) -> str:
    """Return the name without maker, blanks and case.

    Example:
        >>> _in_one("NVIDIA GeForce RTX4090"), _in_one("RTX 4090 24GB")
        ('rtx4090', 'rtx409024gb')
    """
    name = re.sub(r"(\d)\s*(gib|gb|g)\b", r"\1gb", name.lower())
    return re.sub("|".join(_MAKERS), "", "".join(re.findall(r"[a-z0-9]+", name)))
