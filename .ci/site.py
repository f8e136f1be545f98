"""The built site must not ask anybody else for anything: no page may load from another host."""

import re
import sys
from pathlib import Path

LOADS = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(https?:)?//([^"'/ >]+)""", re.IGNORECASE
)
IMPORTS = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", re.IGNORECASE)
HARMLESS = re.compile(r"""rel=["']?(?:canonical|alternate|next|prev|me)""", re.IGNORECASE)

pages = sorted(Path("site").rglob("*.html"))
if not pages:
    sys.exit("site/ holds no page: build it first")
found = [
    f"{page}: loads from {match[2]}"
    for page in pages
    for match in LOADS.finditer(page.read_text("utf-8"))
    if not HARMLESS.search(match[0])
]
found += [
    f"{sheet}: imports from another host"
    for sheet in Path("site").rglob("*.css")
    if IMPORTS.search(sheet.read_text("utf-8"))
]
print("\n".join(found) or f"{len(pages)} pages, no external request")
sys.exit(bool(found))
