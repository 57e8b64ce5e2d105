"""Build the site into _docs, with Quarto where it is installed and with smalldocs where it is not."""
import re
import shutil
import subprocess

from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs


def with_plain_names(
    project,  # folder of processed notebooks
):
    "Give pages the addresses that Quarto gives them: `00_config.ipynb` asks for config.html, which smalldocs does not read."
    for notebook in list(project.rglob("*.ipynb")):
        text = re.sub(r'"output-file: [^"]*",?', "", notebook.read_text(encoding="utf-8"))
        notebook.unlink()
        notebook.with_name(re.sub(r"^\d+[a-z]?_", "", notebook.name)).write_text(without_numbers(text), encoding="utf-8")
    sidebar = project / "sidebar.yml"
    sidebar.write_text(without_numbers(sidebar.read_text(encoding="utf-8")), encoding="utf-8")


def without_numbers(
    text,  # that may name numbered notebooks
):  # the text, naming them without
    "Drop the numbers from the names of notebooks."
    return re.sub(r"(?<!\w)\d+[a-z]?_(\w+\.ipynb)", r"\1", text)


if __name__ == "__main__":
    config = get_config()
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    project = proc_nbs(force=True)
    if shutil.which("quarto"):
        subprocess.run(["quarto", "render", "--no-cache"], cwd=project, check=True)
    else:
        with_plain_names(project)
        subprocess.run(["smalldocs", "check"], cwd=project, check=True)  # dead links too
        subprocess.run(["smalldocs", "render", "--strict"], cwd=project, check=True)
    shutil.rmtree(config.doc_path, ignore_errors=True)
    shutil.move(project / config.doc_path.name, config.doc_path)
    print(f"The site is in {config.doc_path.name}/index.html")
