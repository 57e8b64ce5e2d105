"""Make README.md from nbs/index.ipynb, the same with and without Quarto."""
import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

root = Path(__file__).resolve().parent.parent
notes = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
directive = re.compile(r"^#\s*\|.*\n?", re.MULTILINE)
hidden = re.compile(r"^#\s*\|\s*(hide|include:\s*false)\s*$", re.MULTILINE)
output_only = re.compile(r"^#\s*\|\s*(hide_input|echo:\s*false)\s*$", re.MULTILINE)
link = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+:|[#/])([^)\s]+)")


def from_top(text):
    "Point relative links from the notebook's folder to the top one."
    return link.sub(lambda found: found[1] + posixpath.normpath("nbs/" + found[2]), text)


def readable(notebook):
    "Drop hidden cells and directive lines; point relative links from the notebook's folder to the top one."
    cells = [cell for cell in notebook.cells if not hidden.search(cell.source)]
    for cell in cells:
        if cell.cell_type == "code":
            cell.metadata.tags = ["output only"] if output_only.search(cell.source) else []
            cell.source = directive.sub("", cell.source).strip()
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}): output.data["text/markdown"] = from_top(output.data["text/markdown"])
        else:
            cell.source = from_top(cell.source)
    notebook.cells = [cell for cell in cells if cell.source]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def readme():
    "The files that the index notebook makes, as {path: bytes}."
    settings = Config()
    settings.ExtractOutputPreprocessor.output_filename_template = "nbs/images/index-{cell_index}-{index}{extension}"
    settings.TagRemovePreprocessor.enabled = True
    settings.TagRemovePreprocessor.remove_input_tags = {"output only"}
    settings.NbConvertBase.display_data_priority = ["text/markdown", "image/svg+xml", "image/png", "text/plain"]
    notebook = readable(nbformat.read(root / "nbs/index.ipynb", as_version=4))
    text, resources = MarkdownExporter(config=settings).from_notebook_node(notebook)
    text = re.sub(r"^```python\n[!%]+(?:bash\n)?", "```bash\n", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return {"README.md": (notes + text).encode(), **resources["outputs"]}


def out_of_step():
    "The files that differ from what the index notebook makes."
    return [name for name, content in readme().items()
            if not (root / name).exists() or (root / name).read_bytes() != content]


if __name__ == "__main__":
    for name, content in readme().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
