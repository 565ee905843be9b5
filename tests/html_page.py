"""A page of HTML taken apart, so that tests can ask what it shows and what it would load."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "path", "line", "link", "input", "hr"}


class Page(HTMLParser):
    """A report taken apart: elements with their attributes, the text a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.text = ""
        self.by_id: dict[str, list[str]] = {}
        self.of: dict[str, list[str]] = {}  # texts of the elements of a tag
        self.feed(html)
        self.close()
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))
            self.of.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] in ("style", "script"):
            return
        self.text += " ".join(data.split()) + " " if data.strip() else ""
        for tag, name in self.open:
            self.of[tag][-1] += data
            if name:
                self.by_id.setdefault(name, []).append(data)

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.elements if "id" in attrs]

    def exact(self, name: str) -> str:
        """The text of the element with this id, as a copy button takes it."""
        return "".join(self.by_id[name])

    def section(self, name: str) -> str:
        """The same for reading: elements and lines parted by one space."""
        return " ".join(" ".join(self.by_id[name]).split())
