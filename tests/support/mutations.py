"""Corrupt the bytes of files."""

import random


def mutations(content: bytes, seed: str, count: int) -> list[bytes]:
    """Return corrupted copies: truncated, with changed bytes, or with bytes replaced or removed."""
    chance = random.Random(seed)
    made = []
    for turn in range(count):
        some = bytearray(content)
        place = chance.randrange(len(some))
        if turn % 3 == 0:
            some = some[:place]
        elif turn % 3 == 1:
            for _ in range(chance.randint(1, 8)):
                some[chance.randrange(len(some))] = chance.randrange(256)
        else:
            place = chance.randrange(min(len(some), 1500))
            some[place : place + chance.randint(0, 30)] = chance.randbytes(chance.randint(0, 30))
        made.append(bytes(some))
    return made
