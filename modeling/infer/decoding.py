"""What to say of a file that is not UTF-8."""

import re
import shlex
from pathlib import Path
from typing import IO

_BINARY = {b"PK\x03\x04": "a workbook or a ZIP archive", b"\x1f\x8b": "compressed by gzip", b"PAR1": "a Parquet file"}
_SAMPLE_BYTES = 2**24


def describe_encoding(path: Path, file: IO[bytes], error: UnicodeDecodeError) -> str:
    """Which line is not UTF-8, what the bytes may be, and the remedy."""
    start, name = file.read(4), shlex.quote(path.name)
    kind = next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), None)
    if kind:
        return f"line 1: the file is {kind}, whatever its name says. Remedy: name it so, or save it as its name says"
    if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return f"line 1: the file is UTF-32. Remedy: save it as UTF-8, or run iconv -f UTF-32 -t UTF-8 {name} > fixed"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"line 1: the file is UTF-16. Remedy: save it as UTF-8, or run iconv -f UTF-16 -t UTF-8 {name} > fixed"
    content = start + file.read(_SAMPLE_BYTES)
    try:
        content.decode("utf-8")
        return f"after {_SAMPLE_BYTES:,} bytes: {error}. Remedy: save the file as UTF-8"
    except UnicodeDecodeError as found:
        place = found.start
    begin = content.rfind(b"\n", 0, place) + 1
    text = content[begin:].partition(b"\n")[0].decode("utf-8", "replace")
    where = f"line {content.count(10, 0, begin) + 1}: byte {place} is not UTF-8: {text!r:.80}"
    decoded = content.decode("utf-8", "replace")
    if sum(sign > "\x7f" and sign != "\ufffd" for sign in decoded) > decoded.count("\ufffd"):
        return f"{where}. The rest of the file is UTF-8. Remedy: correct this line"
    # Western letters stand between ASCII ones; those of other scripts follow each other.
    western = not re.search(rb"[\x80-\xff]{3}", content)
    return (
        f"{where}. The encoding of the file is unknown. Remedy: save it as UTF-8 where it was made, or run iconv -f "
        f"ENCODING -t UTF-8 {name} > fixed"
        + (", where ENCODING may be WINDOWS-1252 if Windows in western Europe made it" if western else "")
    )
