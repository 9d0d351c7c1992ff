"""What becomes of a binary file on a bad disk, a full one, or a broken copy."""

import io
import random
import zipfile
from collections.abc import Iterator, Sequence


def bit(
    data: bytes, rng: random.Random, start: int = 0, stop: int | None = None
) -> tuple[str, bytes]:
    """One bit flipped, between two places."""
    place, number = rng.randrange(start, stop or len(data)), rng.randrange(8)
    flipped = bytes([data[place] ^ 1 << number])
    return f"bit {number} of byte {place:,} flipped", data[:place] + flipped + data[place + 1 :]


def damages(
    data: bytes, rng: random.Random, places: Sequence[int] = ()
) -> Iterator[tuple[str, bytes]]:
    """``(what was done, the file then)``, without end; each place is cut, zeroed and flipped at."""
    size = len(data)
    yield "empty", b""
    yield "all zeros", bytes(size)
    yield "a page", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
    for place in places:
        yield from (
            bit(data, rng, max(0, place - 8), min(size, place + 40)),
            (f"cut at {place:,}", data[:place]),
            (f"16 zeros at {place:,}", (data[:place] + bytes(16) + data[place + 16 :])[:size]),
        )
    while True:
        place, length = rng.randrange(size), rng.randrange(1, 5000)
        end, page = min(size, place + length), place // 4096 * 4096
        part = f"{place:,} to {end:,}"
        yield from (
            bit(data, rng),
            (f"cut at {place:,}", data[:place]),
            bit(data, rng),
            (f"zeros from {part}", data[:place] + bytes(end - place) + data[end:]),
            bit(data, rng),
            (f"zeros from {page:,} on", data[:page] + bytes(size - page)),
            bit(data, rng),
            (f"random bytes from {part}", data[:place] + rng.randbytes(end - place) + data[end:]),
            bit(data, rng),
            (f"without {part}", data[:place] + data[end:]),
            bit(data, rng),
            (f"{part} twice", data[:end] + data[place:]),
            bit(data, rng),
            (f"{length:,} bytes more", data + rng.randbytes(length)),
        )


def archive_places(data: bytes) -> list[int]:
    """Where the parts of a zip archive begin, such as a checkpoint: headers, contents, its list."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        heads = {member.header_offset for member in members}
        contents = {m.header_offset + 30 + len(m.filename) for m in members}
        return sorted({*heads, *contents, archive.start_dir, len(data) - 22, len(data) - 1})
