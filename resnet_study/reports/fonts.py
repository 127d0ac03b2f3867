"""Text of any script in figures: fonts that have its characters, or a line that says which are missing."""

import contextlib
import re
import sys
import textwrap
import unicodedata
import warnings

from matplotlib import font_manager

# For Chinese, Japanese and Korean, which matplotlib's own font lacks; as Linux, macOS and Windows have them.
_EAST_ASIAN = (
    "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans TC", "Noto Sans JP",
    "Noto Sans KR", "Source Han Sans SC", "Source Han Sans JP", "Source Han Sans KR", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum",
    "PingFang SC", "PingFang HK", "Hiragino Sans GB", "Hiragino Sans", "Heiti TC", "Apple SD Gothic Neo", "AppleGothic",
    "Microsoft YaHei", "Microsoft JhengHei", "SimHei", "Yu Gothic", "MS Gothic", "Meiryo", "Malgun Gothic", "Gulim",
    "Arial Unicode MS",
)  # fmt: skip
_told = set()  # characters, so that each is told once and not with every figure


def font_families() -> list[str]:
    """Families for `rcParams["font.family"]`: the usual font, then all installed ones that have East Asian characters.

    matplotlib takes each character from the first of them that has it.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["sans-serif", *(name for name in _EAST_ASIAN if name in installed)]


def wrap(text: str, width: int) -> str:
    """Breaks a text into lines of at most `width` letters; East Asian characters are twice as wide, and need no spaces."""
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)
    return textwrap.fill(text, width // 2 if is_wide else width)


@contextlib.contextmanager
def missing_characters_told():
    """Says in one line which characters of the figures drawn within are boxes, and what to do; each character once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Glyph .* missing from")
        yield
    missing = set()
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) .* missing from", str(warning.message)):
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    new = sorted(missing - _told)
    if new:
        _told.update(new)
        print(
            f"figures show boxes for {''.join(new[:20])}{'...' if len(new) > 20 else ''}: no installed font has them; install a "
            "Noto font, such as Noto Sans CJK for Chinese, Japanese and Korean (apt install fonts-noto-cjk), and draw again",
            file=sys.stderr,
        )
