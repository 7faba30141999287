"""Files of the repository that pages link to, outside of docs/, are named in the built site instead of linked."""

import re


def on_page_markdown(markdown, page, **_):
    """Turn links that lead out of docs/ into code."""
    depth = page.file.src_uri.count("/")
    out = r"\.\./" * (depth + 1)
    markdown = re.sub(rf"\[`?([^\]`]+)`?\]\({out}([^)#]+)(?:#[^)]*)?\)", r"`\2`", markdown)
    return markdown
