"""What may have become of a raw file: damages of any bytes, and of text in particular."""

import random
from collections.abc import Iterator

LONG = 3 << 20  # bytes of what is long, of a field or a line; more than any buffer's first block


def mutations(data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """``(what was done, the file then)``, without end: the kinds in turn, their places drawn."""
    while True:
        for kind, mutate in KINDS.items():
            yield kind, mutate(data, rng)


def _at(data: bytes, rng: random.Random, old: int, new: bytes) -> bytes:
    """With ``new`` in place of ``old`` bytes somewhere."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + new + data[place + old :]


def _bit(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _bits(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(2, 30)):
        data = _bit(data, rng)
    return data


def _swapped(data: bytes, rng: random.Random) -> bytes:
    old, new = rng.sample([b",", b"\t", b";", b"|", b"::", b":", b" ", b'"', b"\n", b"{", b"["], 2)
    return data.replace(old, new)


def _line(data: bytes, rng: random.Random, new: bytes) -> bytes:
    """With a line more."""
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines)), new)
    return b"\n".join(lines)


def _field(data: bytes, rng: random.Random, new: bytes) -> bytes:
    """With another value of a field, an id, a time or a name in the header."""
    for sign in rng.sample([b",", b"\t", b"::", b" ", b": "], 5):
        places = [k for k in range(len(data)) if data.startswith(sign, k)]
        if places:
            start = rng.choice(places) + len(sign)
            ends = [k for k in (data.find(sign, start), data.find(b"\n", start)) if k >= 0]
            return data[:start] + new + data[min(ends, default=len(data)) :]
    return data + new


def _doubled(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:]


def _shuffled(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


DEEP = b"[" * 100_000
OBJECTS = b'{"a":' * 100_000
SIGNS = (
    *(b"-5", b"1e400", b"99999999999999999999999", b"inf", b"NaN", b"", b"0x1F", b"2018-02-30"),
    *(
        b"\x1b[31mred\x1b[0m",
        b"[/x]",
        b"=1+1",
        b"\xe2\x80\xae",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"../x",
    ),
)

KINDS = {
    "nothing": lambda data, rng: data,
    "one bit": _bit,
    "many bits": _bits,
    "cut short": lambda data, rng: data[: rng.randrange(len(data))],
    "beginning gone": lambda data, rng: data[rng.randrange(len(data)) :],
    "doubled part": _doubled,
    "part gone": lambda data, rng: _at(data, rng, rng.randrange(1, 100), b""),
    "zeros": lambda data, rng: _at(data, rng, n := rng.randrange(1, 600), b"\0" * n),
    "random bytes": lambda data, rng: _at(data, rng, 0, rng.randbytes(rng.randrange(1, 100))),
    "all zeros": lambda data, rng: bytes(len(data)),
    "empty": lambda data, rng: b"",
    "separators swapped": _swapped,
    "lines shuffled": _shuffled,
    "carriage returns": lambda data, rng: data.replace(b"\n", b"\r"),
    "line ends of all kinds": lambda data, rng: b"".join(
        line + rng.choice([b"\n", b"\r", b"\r\n", b"\n\r", b"\r\r\n"]) for line in data.split(b"\n")
    ),
    "a carriage return": lambda data, rng: _at(data, rng, 0, b"\r"),
    "a quote": lambda data, rng: _at(data, rng, 0, rng.choice([b'"', b'""', b',"', b"'"])),
    "UTF-16": lambda data, rng: data.decode("latin-1").encode("utf-16"),
    "Latin-1": lambda data, rng: _at(data, rng, 0, "café".encode("latin-1")),
    "byte order marks": lambda data, rng: b"\xef\xbb\xbf" * rng.randrange(1, 3) + data,
    "no line ends": lambda data, rng: data.replace(b"\n", b" "),
    "a long line": lambda data, rng: _line(data, rng, b"7 12," * (LONG // 5)),
    "a long first line": lambda data, rng: b"a,b\t" * (LONG // 4) + b"\n" + data,
    "an endless line": lambda data, rng: data + b"12 " * (30 << 18),
    "a long field": lambda data, rng: _field(data, rng, b"x" * LONG),
    "a long number": lambda data, rng: _field(data, rng, b"9" * LONG),
    "a long quoted field": lambda data, rng: _field(data, rng, b'"' + b"x\n" * (LONG // 2)),
    "a strange value": lambda data, rng: _field(data, rng, rng.choice(SIGNS)),
    "nested lists": lambda data, rng: rng.choice([DEEP, DEEP + b"]" * len(DEEP)]) + b"\n" + data,
    "nested objects": lambda data, rng: _line(data, rng, OBJECTS + b"1" + b"}" * 100_000),
    "a nested value": lambda data, rng: _field(data, rng, DEEP + b"]" * len(DEEP)),
    "a nested literal": lambda data, rng: _line(data, rng, b"{'title': " + b"-" * 90_000 + b"1}"),
    "objects on one line": lambda data, rng: data.replace(b"}\n{", b"}{"),
    "a list a line": lambda data, rng: b"\n".join(b"[" + x + b"]" for x in data.split(b"\n")),
}
