"""Text in Markdown documents: text of others stays text, also if it looks like HTML or a link."""

import re

# Signs that begin HTML, links, pictures, emphasis, code or a cell of a table.
_SIGNS = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")
_CODE = re.compile(
    r"((?P<fence>`{3,}|~{3,}).*?(?:(?P=fence)|\Z)|(?P<tick>`+).*?(?P=tick))", re.DOTALL
)
_TAG = re.compile(r"<(?!https?://[^\s<>]+>)(?=[A-Za-z/!?])")
_SCRIPT_LINK = re.compile(r"(\]\(|\]:|<)(\s*)(javascript|vbscript|data):", re.IGNORECASE)


def plain(text: str) -> str:
    """Return text on one line, without HTML and without signs of Markdown.

    Example:
        >>> plain("<b>bold</b> & so on")
        '&lt;b&gt;bold&lt;/b&gt; &amp; so on'
    """
    flat = " ".join(text.split()).replace("&", "&amp;")
    return _SIGNS.sub(r"\\\1", flat).replace("<", "&lt;").replace(">", "&gt;")


def without_html(markdown: str) -> str:
    """Return a Markdown document whose HTML is shown as text, and whose links run no scripts.

    Example:
        >>> without_html("# A <script>x</script> `<b>`")
        '# A &lt;script>x&lt;/script> `<b>`'
    """
    parts, place = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_harmless(markdown[place : code.start()]), code.group()]
        place = code.end()
    return "".join([*parts, _harmless(markdown[place:])])


def fenced(text: str) -> str:
    """Return text as a block of code; it may contain backticks."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _harmless(markdown: str) -> str:
    return _TAG.sub("&lt;", _SCRIPT_LINK.sub(r"\1\2#", markdown))
