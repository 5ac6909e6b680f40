"""One HTML page that needs no other file and no script."""

import base64
import io
from html import escape

from PIL import Image

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def make_page(title: str, style: str, body: str) -> str:
    """`body` is HTML, `title` a text. Characters beyond ASCII become references, as texts of people and models may hold
    what is no Unicode."""
    page = f"{HEAD.format(title=escape(title), style=style)}{body}\n</body>\n</html>\n"
    return page.encode("ascii", "xmlcharrefreplace").decode()


def picture_source(image: Image.Image, form: str = "PNG", **options: int) -> str:
    """The picture as a data URI."""
    data = io.BytesIO()
    image.save(data, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
